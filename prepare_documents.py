"""Make tokens for train_base.py out of whole documents.

    python prepare_documents.py --documents=folder,more.jsonl
    python prepare_documents.py --documents=data/climbmix --vocab_size=32768 --tokenizer_mb=500 \\
        --out_dir=data/web    # runs/gpu.sh fetches nanochat's web text

Reads  .txt and .md, cut at empty lines into documents of about 4,000 characters; .jsonl with
       a "text" on each line; .parquet with a column "text" (needs pyarrow). 2 MB a second and core.
Writes tokenizer.json, train.bin and val.bin (documents.py), meta.json (counts).

A document's hash decides whether it is val's (1%); a book that is cut is in both splits.
"""
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configurator import configure
from documents import hash_of, list_documents, read_documents
from record import make_folder, sums
from tokenizer import load_tokenizer, train_bpe

# config: set by a config file or --name=value
documents = ""           # comma-separated files and folders
out_dir = "data/documents"
tokenizer = ""           # folder of a tokenizer.json or nanochat's .pkl; '': train a new one
vocab_size = 2048        # of a new one, at most 65,536
tokenizer_mb = 50.0      # text that a new one is trained on
config = configure(globals())
# ----
VAL_SHARE = 0.01         # of the documents, and at least one
CHUNK_BYTES = 4_000_000  # tokenized at once, on all cores; 100 bytes of memory a token


def read_chunks(paths, left_out):
    """Yield lists of documents (str) of about CHUNK_BYTES; left_out counts empty ones."""
    chunk, n_bytes = [], 0
    for text in chain.from_iterable(map(read_documents, paths)):
        if not text.strip():
            left_out["empty"] += 1
            continue
        chunk.append(text)
        n_bytes += len(text.encode())
        if n_bytes >= CHUNK_BYTES:
            yield chunk
            chunk, n_bytes = [], 0
    if chunk:
        yield chunk


def deal(paths, left_out):
    """Yield [(split, document), ...] for each chunk; val has the lowest hash of the first one."""
    bound = 0
    for chunk in read_chunks(paths, left_out):
        keys = list(map(hash_of, chunk))
        bound = bound or max(int(VAL_SHARE * 2**64), min(keys) + 1)
        yield [("val" if key < bound else "train", text) for key, text in zip(keys, chunk)]


def train_texts(paths):
    n_bytes = 0
    for split, text in chain.from_iterable(deal(paths, Counter())):
        if n_bytes >= 1e6 * tokenizer_mb:
            return
        if split == "train":
            n_bytes += len(text.encode())
            yield text


def write_tokens(paths, tok):
    """Write train.bin and val.bin -> {split: Counter, "left_out": Counter}."""
    counts = {name: Counter() for name in ("train", "val", "left_out")}
    with (open(f"{out_dir}/train.bin", "wb") as train, open(f"{out_dir}/val.bin", "wb") as val,
          tqdm(unit="B", unit_scale=True, disable=None) as bar):
        for chunk in deal(paths, counts["left_out"]):
            encoded = tok.bpe.encode_batch_fast([text for _, text in chunk])
            for (split, text), each in zip(chunk, encoded):
                ids = np.array([tok.bos_id, *each.ids], "<u2")
                (val if split == "val" else train).write(ids)
                n_bytes = len(text.encode())
                counts[split].update(documents=1, tokens=len(ids), bytes=n_bytes)
                bar.update(n_bytes)
    if not counts["train"]:
        raise ValueError(f"documents={documents}: fewer than two documents: give more text")
    return counts


def find_inputs():
    if not documents:
        raise ValueError("documents must name files or folders")
    own = sorted(Path(tokenizer).glob("tokenizer.*")) if tokenizer else []
    return sums(*list_documents("documents", documents), *own)


def make():
    paths = list_documents("documents", documents)
    tok = load_tokenizer(tokenizer) if tokenizer else train_bpe(train_texts(paths), vocab_size)
    if tok.vocab_size > 2**16:
        raise ValueError(f"{tokenizer=}, {vocab_size=}: a BPE of at most 65,536 ids is needed")
    tok.save(out_dir)
    counts = {name: dict(count) for name, count in write_tokens(paths, tok).items()}
    return ["tokenizer.json", "train.bin", "val.bin"], counts


if __name__ == "__main__":
    make_folder(out_dir, config, find_inputs, make)
