"""The 40 kinds of input of public bug reports: a table of how the tests marked with them ended.

    bash test.sh --cases             # after all tests
    bash test.sh -m case --cases     # these tests alone

A kind is right when it has a test and each of its tests passed.
"""
from collections import defaultdict

KINDS = dict(line.split(" ", 1) for line in """\
B01 FLAC of unknown length
B02 Ogg without its end, or cut
B03 WAV of size 0 or unknown
B04 odd chunks and headers of WAV
B05 mp3 without Xing header
B06 cover art and tags
B07 joined ogg and mp3 files
B08 channels that cancel
B09 float files in integer range
B10 silence (hiss and music: a known limit)
B11 quiet, clipped and offset recordings
B12 limits at their edge
B13 webm, m4a and other containers
B14 content other than the extension says
B15 byte order marks, UTF-16
B16 rows with U+2028 and U+0085
B17 keys that collide, dots in names
B18 ._files and .DS_Store
B19 upper-case extensions
B20 tabs, CRLF and Latin-1 in transcripts
B21 numbers, tags and empty transcripts
B22 accents composed or decomposed
B23 parquet columns and folders
B24 special tokens and long runs in text
B25 two system messages, or a later one
B26 base64 with line ends, data URIs
B27 format labels of sound
B28 null and unsupported fields of a chat
B29 transcription formats and empty fields
B30 a form's part without a filename
B31 bearer in any case
B32 an unknown Host
B33 two servers on one port
B34 ~ in paths
B35 no HOME, no user name
B36 settings files with a byte order mark, another folder
B37 shards and other files of Whisper
B38 older nanochat checkpoints
B39 ranks and accumulation, resume elsewhere
B40 slashes, HEAD and addresses""".splitlines())


class Table:
    """A pytest plugin that prints the table."""

    def __init__(self):
        self.outcomes = defaultdict(list)

    def pytest_collection_modifyitems(self, items):
        for item in items:
            kinds = [kind for mark in item.iter_markers("case") for kind in mark.args]
            item.user_properties.append(("kinds", kinds))  # reaches pytest-xdist's reports too

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            for kind in dict(report.user_properties).get("kinds", ()):
                self.outcomes[kind].append(report.outcome)

    def pytest_terminal_summary(self, terminalreporter):
        for kind, what in KINDS.items():
            seen = self.outcomes[kind]
            is_right = "passed" in seen and "failed" not in seen
            terminalreporter.write_line(f"{kind}  {'right' if is_right else 'WRONG'}  "
                                        f"{seen.count('passed')} of {len(seen)} tests  {what}")

    def pytest_sessionfinish(self, session):
        if set(KINDS) - set(self.outcomes) and not session.exitstatus:
            session.exitstatus = 1  # a kind without a test is not right
