"""Documents of text: read from files, split by hash, kept as shards of tokens, packed into rows that start at one.

A shard (train-000000.bin, val-000000.bin) holds, little-endian: HEADER (magic, version, bytes a token, documents,
tokens, bytes of text, sha256 of tokenizer.json); each document's length in tokens (uint32); the tokens (uint16 or
uint32), where <|bos|> begins every document. prepare_text.py makes them; documents.json beside them names them.
"""
import hashlib
import json
import os
import re
import struct
from array import array
from bisect import bisect_right, insort
from itertools import accumulate, chain
from pathlib import Path

import numpy as np

from download import download
from files import read_jsonl, read_lines

# data sets of Hugging Face: where, and the number of files, each 250 million characters in a column "text", shuffled,
# or "messages" (CHATS); as nanochat's dataset.py names them: now (its commit 92d63d4), and at first (3a5e0bc)
SOURCES = {"climbmix": ("karpathy/climbmix-400b-shuffle/resolve/main/shard_{:05d}.parquet", 6543),
           "fineweb-edu": ("karpathy/fineweb-edu-100b-shuffle/resolve/main/shard_{:05d}.parquet", 1823)}
CHATS = {"smoltalk": ("HuggingFaceTB/smol-smoltalk/resolve/main/data/train-{:05d}-of-00004.parquet", 4)}
SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
HEADER = struct.Struct("<8sII3Q32s")
MAGIC, VERSION = b"omnidocs", 1
BATCH_BYTES = 4_000_000  # handed to the tokenizer at once: enough for many cores; its results take 100 bytes a token
ORDER = 2**32 - 1        # a document's key in packing: its length in the upper 32 bits, ORDER - its number in these
MAKE = "run prepare_text.py with --documents"


# ---- files of documents

def fetch_source(name, n_files, mirrors, folder):
    """Download the first n_files of a public source into folder, those that it lacks -> their paths."""
    address, n_all = (SOURCES | CHATS)[name]
    if not 1 <= n_files <= n_all:
        raise ValueError(f"n_files={n_files}: {name} has {n_all} files, so 1 to {n_all}")
    import_parquet()  # before gigabytes come
    hubs = [os.environ.get("HF_ENDPOINT") or "https://huggingface.co", *mirrors]
    paths = [os.path.join(folder, os.path.basename(address.format(i))) for i in range(n_files)]
    for i, path in enumerate(paths):
        if (served := download([f"{hub.rstrip('/')}/datasets/{address.format(i)}" for hub in hubs], path)) != path:
            print(f"{path}: from {served}")
        with open(path, "rb") as f:  # no checksum is known; documents.json will name its own, the hub's page has theirs
            if f.read(4) != b"PAR1" or f.seek(-4, os.SEEK_END) and f.read() != b"PAR1":
                raise ValueError(f"{path} is no parquet file (a proxy's page?): delete it, and try other --mirrors")
    return paths


def import_parquet():
    """Return pyarrow.parquet; only parquet files need it."""
    try:
        import pyarrow.parquet as parquet
        return parquet
    except ImportError:
        raise ValueError("pyarrow reads parquet, and is not installed: .venv/bin/pip install pyarrow") from None


def read_documents(path, keys, doc_chars):
    """Yield the documents (str) of a file; keys: names of jsonl's text and parquet's column, the first there counts.

    doc_chars: .txt and .md are cut about every so many characters, 0: not at all. ValueError names path and line.
    """
    kind = Path(path).suffix.lower()
    if kind not in SUFFIXES:
        raise ValueError(f"{path}: documents are of {', '.join(SUFFIXES)}")
    return (read_parquet(path, keys) if kind == ".parquet" else read_texts(path, keys) if kind == ".jsonl" else
            read_text(path, doc_chars))


def read_text(path, doc_chars):
    """Cut a text at the first empty line after doc_chars, or a line's end (or that of many characters) after twice."""
    lines, n = [], 0
    try:
        with open(path, encoding="utf-8-sig") as f:
            for line in iter(lambda: f.readline(doc_chars or -1), ""):
                if "\0" in line:
                    raise ValueError(f"{path}: no text, it holds zero bytes")
                lines.append(line)
                n += len(line)
                if doc_chars and n >= doc_chars * (2 if line.strip() else 1):
                    yield "".join(lines).strip("\n")
                    lines, n = [], 0
    except UnicodeDecodeError:
        for _ in read_lines(path):
            pass  # it stops at the line that is no UTF-8 and names it
    yield "".join(lines).strip("\n")


def read_texts(path, keys):
    """Yield what the object of each line says under the first of keys that it has; null is no text, as in parquet."""
    names = f'text under "{", ".join(keys)}" (json_key)'
    for where, row in read_jsonl(path, names):
        key = next((key for key in keys if key in row), "")
        if not isinstance(row.get(key, 0), str | None):
            found = json.dumps(row[key])[:40] if key else ", ".join(row)[:80]
            raise ValueError(f"{where}: no JSON object with {names}, but with {found}")
        yield (row[key] or "").encode("utf-8", "replace").decode()  # half a surrogate pair: ?


def find_column(schema, keys):
    """-> (the column of a parquet file that is one of keys, ''), or ('', what is wrong)."""
    column = next((key for key in keys if key in schema.names), "")
    kinds = [str(field.type) for field in schema if field.name == column]
    if len(kinds) > 1:
        return "", f'the column "{column}" is there {len(kinds)} times: keep one of them'
    if not kinds or not re.fullmatch(r"(dictionary<values=)?(string|large_string|string_view)(, .*>)?", kinds[0]):
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        return "", f'no column of strings "{", ".join(keys)}" (json_key), only {found}'
    return column, ""


def read_parquet(path, keys):
    """Yield the strings of the first column that is one of keys; pandas' categories and views are strings too."""
    parquet = import_parquet()
    try:
        with parquet.ParquetFile(path) as f:
            column, wrong = find_column(f.schema_arrow, keys)
            for batch in f.iter_batches(1024, columns=[column]) if column else ():
                yield from (text or "" for text in batch.column(0).to_pylist())
    except (ValueError, OSError) as e:  # Arrow's are of these kinds
        raise ValueError(f"{path}: {e}; if it was cut short, delete it and copy or download it again") from None
    if wrong:
        raise ValueError(f"{path}: {wrong}")


def deal_chunks(texts, val_share, val_bytes, chunk_bytes, dropped):
    """Yield {"val": [bytes], "train": [bytes]}, documents in UTF-8, for every chunk_bytes of texts or a little more.

    A document's hash decides: val_share of all are held out, and the lowest of the first chunk, so there is one. When
    val has val_bytes, held-out documents are left out: dropped (Counter) counts them, and those of white space.
    """
    limit, lowest, n_val, chunk, n_chunk = int(val_share * 2**64), None, 0, [], 0
    for text in chain(texts, [None]):
        if text and not text.isspace():
            data = text.encode()
            chunk.append((int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little"), data))
            n_chunk += len(data)
        elif text is not None:
            dropped["empty"] += 1
        if chunk and (text is None or n_chunk >= chunk_bytes):
            lowest, splits = min(chunk)[0] if lowest is None else lowest, {"val": [], "train": []}
            for key, data in chunk:
                is_held_out = key < limit or key == lowest
                if is_held_out and n_val and n_val + len(data) > val_bytes:
                    dropped["held out, but val is full"] += 1
                else:
                    splits["val" if is_held_out else "train"].append(data)
                    n_val += len(data) * is_held_out
            yield splits
            chunk, n_chunk = [], 0


def encode_documents(tok, rows):
    """Yield the ids of documents (bytes) after <|bos|>, uint16 where they fit, else uint32; a BPE uses all cores."""
    dtype, batch, n = np.dtype("<u2" if tok.vocab_size <= 2**16 else "<u4"), [], 0
    for i, data in enumerate(rows, 1):
        batch.append(data.decode())
        n += len(data)
        if n >= BATCH_BYTES or i == len(rows):
            encoded = (e.ids for e in tok.bpe.encode_batch_fast(batch)) if tok.kind == "bpe" else map(tok.encode, batch)
            yield from (np.array([tok.bos_id, *ids], dtype) for ids in encoded)
            batch, n = [], 0


# ---- shards

def write_shard(path, docs, text_bytes, tokenizer_sha256):
    """Write documents (a list of arrays of ids of one dtype) as path + '.tmp', then rename; OSError: no room."""
    head = HEADER.pack(MAGIC, VERSION, docs[0].itemsize, len(docs), sum(map(len, docs)), text_bytes,
                       bytes.fromhex(tokenizer_sha256))
    try:
        with open(path + ".tmp", "wb") as f:
            f.write(head + np.array([len(ids) for ids in docs], "<u4").tobytes())
            f.write(np.concatenate(docs))
        os.replace(path + ".tmp", path)
    except OSError as e:
        Path(path + ".tmp").unlink(missing_ok=True)
        raise OSError(f"{path}: {e.strerror}: make room and run again, it goes on from here") from None


def read_shard(path, tokenizer_sha256=""):
    """Map a shard into memory -> (lengths uint32 (n_docs,), tokens (n_tokens,), bytes of text).

    tokenizer_sha256: of the tokenizer.json that it must be made with, '': any. ValueError: what is wrong with it.
    """
    try:
        with open(path, "rb") as f:
            head, size = f.read(HEADER.size), os.fstat(f.fileno()).st_size
    except OSError as e:
        raise ValueError(f"{path}: {e.strerror}: {MAKE} again") from None
    if len(head) < HEADER.size or head[:8] != MAGIC:
        raise ValueError(f"{path}: no shard of documents (it starts with {head[:8]!r}): delete it and {MAKE} again")
    _, version, width, n_docs, n_tokens, text_bytes, sha256 = HEADER.unpack(head)
    expected = HEADER.size + 4 * n_docs + width * n_tokens
    if version != VERSION or size != expected:
        raise ValueError(f"{path}: {size:,} bytes instead of {expected:,}, version {version} instead of {VERSION}: "
                         f"delete it and {MAKE} again")
    if tokenizer_sha256 not in ("", sha256.hex()):
        raise ValueError(f"{path}: made with another tokenizer.json ({sha256.hex()[:8]}, not {tokenizer_sha256[:8]}): "
                         f"{MAKE}, --tokenizer=<its folder> and another --out_dir")
    lengths = np.memmap(path, "<u4", "r", HEADER.size, (n_docs,))
    return lengths, np.memmap(path, f"<u{width}", "r", HEADER.size + 4 * n_docs, (n_tokens,)), text_bytes


def pack(lengths, width, keep_rest=False, n_buffer=1000):
    """Pack documents into rows of `width` tokens, each row from the start of one and full (best fit, as nanochat's).

    lengths: int (n_docs,), each 1 or more. From a buffer of the next n_buffer documents a row takes the longest that
    fits, of equals the first; if none does, it takes the start of the shortest, of equals the last, whose rest is lost,
    or with keep_rest goes back as a document, which begins where the row's part ended (there <|bos|> is read). A last
    row that nothing fills is lost. -> (starts int64 (n_pieces,) in the stream of all documents, sizes int64
    (n_pieces,), firsts int64 (n_rows + 1,): row i is of pieces firsts[i]:firsts[i + 1], tokens lost)
    """
    assert width > 1, f"{width=}: a row holds <|bos|> and at least one token more"
    lengths = np.asarray(lengths, np.int64)
    starts = array("q", (np.cumsum(lengths) - lengths).tobytes())  # and of rests, as they come
    keys = memoryview((lengths << 32) + ORDER - np.arange(len(lengths)))
    following, buffer = iter(keys[n_buffer:]), sorted(keys[:n_buffer])
    taken, sizes, firsts, left, n_lost = array("q"), array("q"), [0], width, 0
    while buffer:
        i = bisect_right(buffer, left << 32 | ORDER) - 1  # the longest that fits; -1: none does
        key = buffer.pop(max(i, 0))
        start, n = starts[ORDER - (key & ORDER)], key >> 32
        taken.append(start)
        sizes.append(min(n, left))
        if n > left and keep_rest:
            insort(buffer, (n - left + 1 << 32) + ORDER - len(starts))
            starts.append(start + left - 1)
        elif (key := next(following, None)) is not None:
            insort(buffer, key)
        n_lost += max(n - left, 0) * (not keep_rest)
        left -= sizes[-1]
        if not left:
            firsts.append(len(taken))
            left = width
    n = firsts[-1]
    return np.array(taken[:n]), np.array(sizes[:n]), np.array(firsts), n_lost + sum(sizes[n:])


class Documents:
    """The shards of a split ('train', 'val') of a folder, mapped into memory and packed into rows of `width` tokens.

    n_docs, n_tokens, n_bytes: documents, tokens, bytes of text in all; n_rows; n_cropped: tokens in no row; share:
    of all tokens. The same files give the same rows, on any rank; batch() shuffles them. tokenizer_sha256:
    of the run's tokenizer.json, '': any. keep_rest: as pack's, for scarce text and documents longer than rows.
    ValueError: no finished folder, a shard damaged or of another tokenizer, too few tokens for a row.
    """

    def __init__(self, folder, split, width, tokenizer_sha256="", keep_rest=False):
        try:
            names = json.loads(Path(folder, "documents.json").read_bytes())["shards"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(f"{folder}: no finished documents.json there: {MAKE} and --out_dir={folder}") from None
        names = sorted(name for name in names if name.startswith(f"{split}-"))
        shards = [read_shard(os.path.join(folder, name), tokenizer_sha256) for name in names]
        lengths = np.concatenate([np.zeros(0, np.uint32), *(lengths for lengths, _, _ in shards)])
        self.tokens, self.n_bytes = [tokens for _, tokens, _ in shards], sum(n for _, _, n in shards)
        self.ends = list(accumulate(map(len, self.tokens)))  # of each shard, in the stream of all tokens
        self.starts, self.sizes, self.firsts, self.n_cropped = pack(lengths, width, keep_rest)
        self.width, self.n_docs, self.n_rows = width, len(lengths), len(self.firsts) - 1
        self.n_tokens = sum(map(len, self.tokens))
        if not self.n_rows:
            raise ValueError(f"{folder}: the {self.n_tokens:,} tokens of {split} fill no row of {width}: use shorter "
                             "rows, or more text or a greater --val_share of prepare_text.py")
        self.bos, self.share = int(self.tokens[0][0]), self.n_cropped / self.n_tokens
        self.order, self.order_of = None, None

    def batch(self, n, batch_size, seed):
        """-> int64 (B, width): the rows of microbatch n; as many in a row as fill an epoch have each once."""
        batch_size = min(batch_size, self.n_rows)
        epoch, i = divmod(n, self.n_rows // batch_size)
        if self.order_of != (seed, epoch):
            self.order_of = seed, epoch
            self.order = np.random.default_rng(self.order_of).permutation(self.n_rows)
        return self.rows(self.order[i * batch_size:(i + 1) * batch_size])

    def rows(self, at):
        """-> int64 (B, width): the tokens of rows `at` (ints (B,), 0..n_rows-1)."""
        out = np.empty((len(at), self.width), np.int64)
        for row, i in zip(out, at):
            pieces, n = slice(self.firsts[i], self.firsts[i + 1]), 0
            for start, size in zip(self.starts[pieces].tolist(), self.sizes[pieces].tolist()):
                shard = bisect_right(self.ends, start)
                start -= self.ends[shard] - len(self.tokens[shard])
                row[n:n + size] = self.tokens[shard][start:start + size]
                row[n] = self.bos  # it is there already, but for a rest's
                n += size
        return out
