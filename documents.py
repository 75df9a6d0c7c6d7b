"""Documents of text: read from files, or from a folder of tokens as rows of equal length.

prepare_documents.py makes such a folder: train.bin and val.bin are ids, uint16, <|bos|> before
every document and nowhere else.
"""
import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

import numpy as np

from files import find_files, read_jsonl, read_lines
from record import need

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")


# ---- files of documents

def list_documents(setting, paths):
    """Return the files ([str]) of comma-separated files and folders, each once; or an OSError."""
    files = []
    for path in filter(None, map(str.strip, paths.split(","))):
        found = find_files(path, SUFFIXES) if os.path.isdir(path) else [path]
        if not found or not os.path.isfile(found[0]):
            raise FileNotFoundError(f"{setting}={path}: no such file, or a folder without "
                                    f"{' '.join(SUFFIXES)}")
        files += found
    return list(dict.fromkeys(files))


def read_documents(path, doc_chars=4000):
    """Yield the documents (str) of a file of SUFFIXES; null is an empty one.

    doc_chars: .txt and .md are cut at the first empty line after this many characters, or at any
    line's end after twice as many. ValueError names file and line.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in (".jsonl", ".parquet"):
        yield from read_text(path, doc_chars)
        return
    for where, row in read_jsonl(path, '"text"') if suffix == ".jsonl" else read_parquet(path):
        if not isinstance(row.get("text", 0), str | None):
            raise ValueError(f'{where}: "text" is no string, or not among {", ".join(row)}')
        yield (row["text"] or "").encode(errors="replace").decode()  # half a surrogate pair: ?


def read_text(path, doc_chars):
    lines, n_chars = [], 0
    for line in read_lines(path):
        lines.append(line)
        n_chars += len(line) + 1
        if n_chars >= doc_chars * (2 if line.strip() else 1):
            yield "\n".join(lines).strip("\n")
            lines, n_chars = [], 0
    yield "\n".join(lines).strip("\n")


def read_parquet(path):
    """Yield (path, row) of each row; of the column "text" alone if there is one."""
    need("pyarrow")
    import pyarrow.parquet as parquet
    try:
        with parquet.ParquetFile(path) as f:
            columns = ["text"] if "text" in f.schema_arrow.names else None
            for batch in f.iter_batches(1024, columns=columns):
                yield from ((path, row) for row in batch.to_pylist())
    except (ValueError, OSError) as e:  # as Arrow raises them
        raise ValueError(f"{path}: {e} (cut short? delete it, copy it again)") from None


def hash_of(text):
    """Return a number below 2**64 for a text, on every machine the same."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


# ---- rows of tokens

class Documents:
    """A split ("train", "val") of a folder: one stream, cut into rows of `width` tokens at most.

    Each row begins with the last token of the row before: every token is a target once. n_docs,
    n_tokens, n_rows; n_cropped: tokens at the end in no row. ValueError: no finished folder, or a
    damaged file.
    """

    def __init__(self, folder, split, width):
        path = Path(folder, f"{split}.bin")
        try:
            meta = json.loads(Path(folder, "meta.json").read_bytes())
            for name in (path.name, "tokenizer.json"):
                if Path(folder, name).stat().st_size != meta["files"][name]:
                    raise ValueError(f"{name} is not of {meta['files'][name]:,} bytes")
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ValueError(f"{folder} holds no finished documents ({e}): run "
                             f"prepare_documents.py --out_dir={folder}") from None
        tokens = np.memmap(path, "<u2", "r")
        self.n_docs, self.n_tokens = meta[split]["documents"], len(tokens)
        width = min(width, self.n_tokens)
        self.stream = np.lib.stride_tricks.sliding_window_view(tokens, width)[::width - 1]
        self.n_rows = len(self.stream)
        self.n_cropped = self.n_tokens - self.n_rows * (width - 1) - 1

    def batch(self, n, batch_size, seed):
        """Return microbatch n, int64 (B, width); an epoch has no row twice."""
        batch_size = min(batch_size, self.n_rows)
        epoch, i = divmod(n, self.n_rows // batch_size)
        return self.rows(shuffled(self.n_rows, seed, epoch)[i * batch_size:(i + 1) * batch_size])

    def rows(self, at):
        """Return rows `at` (ints (B,), 0..n_rows-1): int64 (B, width)."""
        return self.stream[at].astype(np.int64)


@lru_cache(maxsize=1)
def shuffled(n, seed, epoch):
    return np.random.default_rng((seed, epoch)).permutation(n)
