"""The 40 kinds of input of public bug reports: runs the tests marked with them and prints a table.

    python tests/cases.py            # every kind
    python tests/cases.py B05 B21    # these alone

A kind is right when it has a test and each of its tests passed. Exit status 0: all are right.
"""
import os
import sys
from collections import defaultdict

import pytest

KINDS = {
    "B01": "FLAC of unknown length", "B02": "Ogg without its end, or cut", "B03": "WAV of size 0 or unknown",
    "B04": "odd chunks and headers of WAV", "B05": "mp3 without Xing header", "B06": "cover art and tags",
    "B07": "joined ogg and mp3 files", "B08": "channels that cancel", "B09": "float files in integer range",
    "B10": "silence (hiss and music: a known limit)", "B11": "quiet, clipped and offset recordings", "B12": "limits at their edge",
    "B13": "webm, m4a and other containers", "B14": "content other than the extension says",
    "B15": "byte order marks, UTF-16", "B16": "rows with U+2028 and U+0085", "B17": "keys that collide, dots in names",
    "B18": "._files and .DS_Store", "B19": "upper-case extensions", "B20": "tabs, CRLF and Latin-1 in transcripts",
    "B21": "numbers, tags and empty transcripts", "B22": "accents composed or decomposed",
    "B23": "parquet columns and folders", "B24": "special tokens and long runs in text",
    "B25": "two system messages, or a later one", "B26": "base64 with line ends, data URIs",
    "B27": "format labels of sound", "B28": "null and unsupported fields of a chat",
    "B29": "transcription formats and empty fields", "B30": "a form's part without a filename",
    "B31": "bearer in any case", "B32": "an unknown Host", "B33": "two servers on one port", "B34": "~ in paths",
    "B35": "no HOME, no user name", "B36": "settings files with a byte order mark, another working directory",
    "B37": "shards and other files of Whisper", "B38": "older nanochat checkpoints",
    "B39": "ranks and accumulation, resume elsewhere", "B40": "slashes, HEAD and addresses"}


class Table:
    """A pytest plugin: chooses the tests of the kinds asked for, and collects how each ended."""

    def __init__(self, kinds):
        self.kinds, self.outcomes, self.ids = kinds, defaultdict(list), {}

    def pytest_collection_modifyitems(self, items):
        for item in items:
            self.ids[item.nodeid] = [kind for mark in item.iter_markers("case") for kind in mark.args]
        items[:] = [item for item in items if set(self.ids[item.nodeid]) & set(self.kinds)]

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            for kind in self.ids[report.nodeid]:
                self.outcomes[kind].append((report.outcome, report.nodeid))

    def print(self):
        """Print a line a kind; returns how many are not right."""
        n_wrong = 0
        for kind in self.kinds:
            outcomes = [outcome for outcome, _ in self.outcomes[kind]]
            verdict = "right" if outcomes and set(outcomes) == {"passed"} else "NO TEST" if not outcomes else "WRONG"
            n_wrong += verdict != "right"
            print(f"{kind}  {verdict:8}{outcomes.count('passed'):3} of {len(outcomes):2} tests  {KINDS[kind]}")
            for outcome, name in self.outcomes[kind]:
                if outcome != "passed":
                    print(f"     {outcome}: {name}")
        print(f"{len(self.kinds) - n_wrong} of {len(self.kinds)} kinds are right")
        return n_wrong


if __name__ == "__main__":
    kinds = sys.argv[1:] or list(KINDS)
    if unknown := set(kinds) - set(KINDS):
        sys.exit(f"cases.py: {sorted(unknown)[0]} is no kind: use B01 to B40")
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    table = Table(kinds)
    pytest.main(["-q", "--no-header", "-m", "case", "tests"], plugins=[table])
    sys.exit(table.print() > 0)
