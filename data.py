"""Features on disk (write, index, read), and batches of clips of similar length.

A folder of features holds shard-000000.tar ... (WebDataset: <key>.npy, float16 (T, n_taps, D), and
<key>.json of each clip), index.json (where each clip's numbers stand) and manifest.json, written
last (encoder and its sha256, taps, D, counts, seconds, sizes of shards).
"""
import hashlib
import io
import json
import os
import tarfile
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from files import sha256_file, write_json

AGAIN = "run prepare_librispeech.py"


# ---- shards

def write_shard(path, clips):
    """Write a tar of clips (key without . and /, float16 (T, n_taps, D), info dict).

    Returns its rows of the index.
    """
    rows = []
    with tarfile.open(path + ".tmp", "w", format=tarfile.GNU_FORMAT) as tar:
        for key, features, info in clips:
            info, npy = {"key": key} | info, io.BytesIO()
            np.save(npy, np.ascontiguousarray(features, dtype=np.float16))
            parts = (f"{key}.json", json.dumps(info).encode()), (f"{key}.npy", npy.getvalue())
            for name, data in parts:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            padding = -len(data) % tarfile.BLOCKSIZE
            rows.append({"shard": os.path.basename(path), "frames": len(features), "info": info,
                         "offset": tar.offset - padding - 2 * features.size})
    os.replace(path + ".tmp", path)
    return rows


def write_index(folder, rows, shards, manifest):
    """Write index.json (rows of all shards), then manifest.json; return it with totals added.

    shards: {name: {"bytes", "sha256"}}; manifest: encoder, encoder_sha256, taps, D.
    """
    seconds = {}
    for row in rows:
        seconds.setdefault(row["info"]["split"], []).append(row["info"]["seconds"])
    manifest = manifest | {
        "clips": {split: len(each) for split, each in seconds.items()}, "shards": shards,
        "seconds": {split: round(sum(each), 2) for split, each in seconds.items()}}
    write_json(f"{folder}/index.json", rows)
    write_json(f"{folder}/manifest.json", manifest)
    return manifest


def read_index(folder, encoder_sha256, taps):
    """Return manifest.json, and index.json with paths in the place of names."""
    try:
        manifest, rows = (json.loads(Path(folder, name).read_bytes())
                          for name in ("manifest.json", "index.json"))
    except (FileNotFoundError, ValueError):
        raise ValueError(f"{folder}: no whole manifest.json and index.json: {AGAIN}") from None
    found, stored = manifest["encoder_sha256"], manifest["taps"]
    if encoder_sha256 not in ("", found) or not set(taps or []) <= set(stored):
        raise ValueError(f"{folder}: encoder_sha256 {found}, taps {stored}, but the run needs "
                         f"{encoder_sha256 or 'any'}, {taps or 'any'}: {AGAIN}")
    for name, shard in manifest["shards"].items():
        path = Path(folder, name)
        n = path.stat().st_size if path.exists() else 0
        if n != shard["bytes"]:
            raise ValueError(f"{path}: {n:,} bytes instead of {shard['bytes']:,}: delete it and "
                             f"{AGAIN}")
    for row in rows:
        row |= {name: os.path.join(folder, row.get(name, "")) for name in ("shard", "audio")}
    return {"language": "en"} | manifest, rows


class Features:
    """Random access to the clips of a split ('' for all); no file stays open.

    folder: one, or several of one encoder and the same taps: "a,b*3" counts each clip of b three
    times, but in val once. encoder_sha256, taps: what the run needs ("", None: any); only those
    taps are given out.
    infos: a dict for each clip; keys, texts, seconds: of it; lengths: frames, int32 (N,).
    manifest: the first folder's. ValueError: no features, of another encoder or other taps, or a
    shard cut short.
    """

    def __init__(self, folder, split="", encoder_sha256="", taps=None):
        self.split, self.rows, self.folders, first = split, [], {}, None
        for part in folder.split(","):
            part, _, times = part.strip().partition("*")
            manifest, rows = read_index(part, encoder_sha256, taps)
            first = first or manifest
            encoder_sha256, stored = manifest["encoder_sha256"], manifest["taps"]
            if stored != first["taps"]:
                raise ValueError(f"{folder}: taps {first['taps']} and {stored} don't mix")
            self.folders[part] = manifest
            rows = [row for row in rows if split in ("", row["info"]["split"])]
            if not (times or "1").isdigit():
                raise ValueError(f"{folder}: a folder that counts three times is {part}*3")
            self.rows += rows if split == "val" else rows * int(times or 1)
        if not self.rows:
            raise ValueError(f"{folder}: no {split!r} clip, only {sorted(manifest['clips'])}: "
                             "add a folder, as a,b")
        taps = list(taps or stored)
        self.keep = None if taps == stored else [stored.index(tap) for tap in taps]
        self.manifest = first | {"taps": taps}
        self.shape = len(stored), manifest["D"]  # of a frame on disk: (n_taps, D)
        self.infos = [row["info"] for row in self.rows]
        self.keys = [info["key"] for info in self.infos]
        self.texts = [info["text"] for info in self.infos]
        self.seconds = [info["seconds"] for info in self.infos]
        self.lengths = np.array([row["frames"] for row in self.rows], dtype=np.int32)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        """-> (float16 (T, n_taps, D), info)"""
        return load_batch(self, [i])[0][0], self.infos[i]

    def sums(self):
        found = []
        for folder, manifest in self.folders.items():
            index = sha256_file(f"{folder}/index.json")
            what = index, manifest["encoder_sha256"], manifest["shards"]
            found.append(hashlib.sha256(str(what).encode()).hexdigest())
        return found


def load_batch(features, indices):
    """Read clips -> (float16 (B, T_max, n_taps, D), zero past their ends; frames int64 (B,))."""
    lens = features.lengths[indices].astype(np.int64)
    x = np.zeros((len(indices), lens.max(), *features.shape), dtype=np.float16)
    for b, i in enumerate(indices):
        clip, path = x[b, :lens[b]], features.rows[i]["shard"]
        numbers = np.fromfile(path, np.float16, clip.size, offset=features.rows[i]["offset"])
        if len(numbers) < clip.size:
            raise ValueError(f"{path}: ends within clip {features.keys[i]}: {AGAIN}")
        clip[:] = numbers.reshape(clip.shape)
    if features.keep is not None:
        x = np.ascontiguousarray(x[:, :, features.keep])
    return x, lens


def mean_std(clips):
    """Return mean and deviation over frames of clips (T, n_taps, D): float32 (n_taps, D) each."""
    n, total, squares = 0, 0.0, 0.0
    for x in clips:
        x = x.astype(np.float64)
        n, total, squares = n + len(x), total + x.sum(0), squares + (x * x).sum(0)
    mean = total / n
    variance = np.maximum(squares / n - mean**2, 0)
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


# ---- batches

@lru_cache(maxsize=8)
def cut_points(lengths, batch_size, batch_tokens):
    lengths, cuts, first = np.sort(np.frombuffer(lengths, np.int32)), [], 0
    if not batch_tokens:  # sizes differ by one at most
        parts = np.array_split(lengths, -(-len(lengths) // batch_size))
        return np.cumsum(list(map(len, parts)))[:-1]
    for i, length in enumerate(lengths):
        is_full = i > first and (i + 1 - first) * length > batch_tokens
        if is_full or i - first == (batch_size or -1):
            first = i
            cuts.append(first)
    return np.array(cuts, dtype=np.int64)


@lru_cache(maxsize=8)
def epoch_batches(lengths, seed, split, epoch, batch_size, jitter, batch_tokens=0):
    """Return an epoch's batches [int64 (B,), ...] and each clip's stretch, float64 (N,).

    lengths: bytes of int32 (N,). Clips are sorted as if `stretch` times as long: 1 +- jitter.
    """
    cuts = cut_points(lengths, batch_size, batch_tokens)
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), epoch])
    lengths = np.frombuffer(lengths, np.int32)
    shuffled = rng.permutation(len(lengths))  # clips of equal length meet others in each epoch
    stretch = np.empty(len(lengths))
    stretch[shuffled] = rng.uniform(1 - jitter, 1 + jitter, len(lengths))
    batches = np.split(shuffled[np.argsort((lengths * stretch)[shuffled])], cuts)
    return [batches[i] for i in rng.permutation(len(batches))], stretch


def stretched_batch(lengths, seed, n, batch_size, jitter=0.03, batch_tokens=0):
    """Return a run's n-th batch of clips, int64 (B,), and their stretch (B,).

    lengths: tokens of each clip (N,). A batch has at most batch_size clips and batch_tokens tokens,
    padding included and up to `jitter` over it (0: any number), or is one longer clip. An epoch
    holds each clip once, its batches in random order.
    """
    lengths = np.asarray(lengths, np.int32).tobytes()
    n_batches = len(cut_points(lengths, batch_size, batch_tokens)) + 1
    epoch, i = divmod(n, n_batches)
    batches, stretch = epoch_batches(lengths, seed, "train", epoch, batch_size, jitter,
                                     batch_tokens)
    return batches[i], stretch[batches[i]]
