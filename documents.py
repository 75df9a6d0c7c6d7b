"""Documents of text: read from files, or from a folder of tokens as rows of equal length.

prepare_documents.py makes such a folder. Its train.bin and val.bin are token ids, uint16; <|bos|>
begins every document and stands nowhere else.
"""
import hashlib
import json
import os
import re
from bisect import bisect_right, insort
from itertools import islice
from pathlib import Path

import numpy as np

from files import find_files, read_jsonl, read_lines
from record import need

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
STRINGS = re.compile(r"(dictionary<values=)?(large_)?string(_view)?(, .*>)?")  # Arrow's names


# ---- files of documents

def list_documents(setting, paths):
    """Return the files (list of str) of comma-separated files and folders, in order, each once.

    FileNotFoundError names the setting.
    """
    files = []
    for path in filter(None, map(str.strip, paths.split(","))):
        found = find_files(path, SUFFIXES) if os.path.isdir(path) else [path]
        if not found or not os.path.isfile(found[0]):
            raise FileNotFoundError(f"{setting}={path}: no such file, or a folder without "
                                    f"{' '.join(SUFFIXES)}")
        files += found
    return list(dict.fromkeys(files))


def read_documents(path, doc_chars):
    """Yield the documents (str) of a file of SUFFIXES; null is an empty one.

    doc_chars: .txt and .md are cut at the first empty line after this many characters, or anywhere
    after twice as many. ValueError names file and line.
    """
    if path.lower().endswith(".parquet"):
        yield from read_parquet(path)
        return
    if path.lower().endswith(".jsonl"):
        for where, row in read_jsonl(path, '"text"'):
            if not isinstance(row.get("text", 0), str | None):
                raise ValueError(f'{where}: "text" is no string, or not among {", ".join(row)}')
            yield (row["text"] or "").encode(errors="replace").decode()  # half a surrogate pair: ?
        return
    pieces, n_chars = [], 0
    for line in read_lines(path):
        for start in range(0, len(line) + 1, doc_chars):
            pieces.append(f"{line}\n"[start:start + doc_chars])
            n_chars += len(pieces[-1])
            if n_chars >= doc_chars * (2 if pieces[-1].strip() else 1):
                yield "".join(pieces).strip("\n")
                pieces, n_chars = [], 0
    yield "".join(pieces).strip("\n")


def hash_of(text):
    """Return a number below 2**64 that depends on a text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def read_parquet(path):
    """Yield the strings, categories or views of strings of the column "text"."""
    need("pyarrow")
    import pyarrow.parquet as parquet
    try:
        with parquet.ParquetFile(path) as f:
            kinds = [str(field.type) for field in f.schema_arrow if field.name == "text"]
            if len(kinds) == 1 and STRINGS.fullmatch(kinds[0]):
                for batch in f.iter_batches(1024, columns=["text"]):
                    yield from (text or "" for text in batch.column(0).to_pylist())
                return
            found = ", ".join(f"{field.name} ({field.type})" for field in f.schema_arrow)
    except (ValueError, OSError) as e:  # as Arrow raises them
        raise ValueError(f"{path}: {e} (cut short? delete it, copy it again)") from None
    raise ValueError(f'{path}: needs one column "text" of strings, and has {found}')


# ---- rows of tokens

def pack(starts, lengths, width, n_buffer=1000):
    """Pack documents into full rows of `width` tokens -> [[(start, end), ...] for each row].

    starts, lengths: int64 (n_docs,), in the stream of all tokens. Best fit, as in nanochat: a row
    takes the longest document that fits, from the next n_buffer; of equals the first. If none fits,
    it takes the start of the shortest, of equals the last; its end is lost, as is a last row that
    isn't full.
    """
    waiting = zip(lengths.tolist(), (-starts).tolist())
    buffer = sorted(islice(waiting, n_buffer))
    rows, row, left = [], [], width
    while buffer:
        at = bisect_right(buffer, (left, 1)) - 1  # -1: none fits
        n, minus_start = buffer.pop(max(at, 0))
        n = min(n, left)
        row.append((-minus_start, n - minus_start))
        left -= n
        if not left:
            rows.append(row)
            row, left = [], width
        for document in islice(waiting, 1):
            insort(buffer, document)
    return rows


class Documents:
    """A split ("train", "val") of a folder, in rows of `width` tokens.

    n_docs, n_tokens: documents and their tokens; n_rows; n_cropped: tokens that are in no row;
    share: n_cropped / n_tokens. The tokens stay on disk. tokenizer_sha256: of the run's
    tokenizer.json; "": any. ValueError: no finished folder, a damaged file, another tokenizer, or
    no full row.
    """

    def __init__(self, folder, split, width, tokenizer_sha256=""):
        self.tokens = map_tokens(folder, split, tokenizer_sha256)
        starts = np.flatnonzero(self.tokens == self.tokens[0])  # of <|bos|>
        self.n_docs, self.n_tokens = len(starts), len(self.tokens)
        self.pieces = pack(starts, np.diff(starts, append=self.n_tokens), width)
        self.width, self.n_rows = width, len(self.pieces)
        if not self.n_rows:
            raise ValueError(f"{folder}: the {self.n_tokens:,} tokens of {split} fill no row of "
                             f"{width}: use shorter rows, or more text")
        self.n_cropped = self.n_tokens - self.n_rows * width
        self.share = self.n_cropped / self.n_tokens
        self.order, self.order_of = None, None

    def batch(self, n, batch_size, seed):
        """Return microbatch n, int64 (B, width); an epoch has no row twice."""
        batch_size = min(batch_size, self.n_rows)
        epoch, i = divmod(n, self.n_rows // batch_size)
        if self.order_of != (seed, epoch):
            self.order_of = seed, epoch
            self.order = np.random.default_rng(self.order_of).permutation(self.n_rows)
        return self.rows(self.order[i * batch_size:(i + 1) * batch_size])

    def rows(self, at):
        """Return the tokens of rows `at` (ints (B,), 0..n_rows-1): int64 (B, width)."""
        out = np.empty((len(at), self.width), np.int64)
        for row, i in zip(out, at):
            np.concatenate([self.tokens[start:end] for start, end in self.pieces[i]], out=row)
        return out


def map_tokens(folder, split, tokenizer_sha256):
    """Map the tokens of a split into memory -> uint16 (n_tokens,)."""
    path, again = f"{folder}/{split}.bin", f"prepare_documents.py --out_dir={folder}"
    try:
        meta = json.loads(Path(folder, "meta.json").read_bytes())
        made_with, n_bytes = meta["tokenizer_sha256"], meta["files"][f"{split}.bin"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{folder} holds no finished documents: run {again}") from None
    if tokenizer_sha256 not in ("", made_with):
        raise ValueError(f"{folder} has another tokenizer: run {again} --tokenizer=<its folder>")
    if not os.path.exists(path) or os.path.getsize(path) != n_bytes:
        raise ValueError(f"{path} is missing, or not of {n_bytes:,} bytes: run {again}")
    return np.memmap(path, "<u2", "r")
