"""Feature shards (write, index, read) and deterministic length-sorted batches.

A folder of features holds WebDataset tars (shard-000000.tar: per clip <key>.npy, float16 (T, n_taps, D), and
<key>.json), index.json (a row per clip: shard, byte offset of its numbers, frames, audio, info) and, written last,
manifest.json (encoder and its weights' sha256, taps, D, counts, hours, bytes and sha256 of each shard).
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


def write_shard(path, clips):
    """Write one tar of clips (key, features float16 (T, n_taps, D), info) as .tmp, rename it, return its index rows."""
    rows = []
    with tarfile.open(path + ".tmp", "w", format=tarfile.GNU_FORMAT) as tar:
        for key, features, info in clips:
            if not key or "." in key or "/" in key:
                raise ValueError(f"{path}: key {key!r} must not be empty or hold '.' or '/' (WebDataset splits there)")
            info, npy = {"key": key} | info, io.BytesIO()
            np.save(npy, np.ascontiguousarray(features, dtype=np.float16))
            for name, data in ((f"{key}.json", json.dumps(info).encode()), (f"{key}.npy", npy.getvalue())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            offset = tar.offset - -len(data) % 512 - 2 * features.size  # its numbers' start; padded to 512
            rows.append({"shard": os.path.basename(path), "offset": offset, "frames": len(features), "info": info})
    os.replace(path + ".tmp", path)
    return rows


def write_index(folder, rows, shards, manifest):
    """Write index.json (rows of all shards), then manifest.json; returns the manifest with totals added.

    shards: {name: {"bytes": int, "sha256": hex}}; manifest: dict of at least encoder, encoder_sha256, taps, D.
    """
    seconds = {row["info"]["split"]: [] for row in rows}
    for row in rows:
        seconds[row["info"]["split"]].append(row["info"]["seconds"])
    manifest = manifest | {"clips": {split: len(s) for split, s in seconds.items()}, "shards": shards,
                           "seconds": {split: round(sum(s), 2) for split, s in seconds.items()},
                           "hours": round(sum(map(sum, seconds.values())) / 3600, 4)}
    write_json(os.path.join(folder, "index.json"), rows)
    write_json(os.path.join(folder, "manifest.json"), manifest)
    return manifest


def read_index(folder, encoder_sha256, taps, online):
    """Check a folder of features against the encoder and taps needed ("", None: any) -> (manifest, rows with paths)."""
    again = "run prepare_librispeech.py"
    try:
        manifest, rows = (json.loads(Path(folder, name).read_bytes()) for name in ("manifest.json", "index.json"))
    except (FileNotFoundError, ValueError):
        raise ValueError(f"{folder}: no whole manifest.json and index.json there: {again}") from None
    if encoder_sha256 and manifest["encoder_sha256"] != encoder_sha256 or not set(taps or []) <= set(manifest["taps"]):
        raise ValueError(f"{folder}: features of encoder_sha256 {manifest['encoder_sha256']}, taps {manifest['taps']}, "
                         f"but the run needs {encoder_sha256 or 'any'}, {taps or 'any'}: {again}")
    for path, shard in ((Path(folder, name), shard) for name, shard in manifest["shards"].items()):
        n = path.stat().st_size if path.exists() else 0
        if n != shard["bytes"]:
            raise ValueError(f"{path}: {n:,} bytes instead of {shard['bytes']:,}: delete it and {again}")
    missing = "audio" if online else "shard"
    if not all(missing in row for row in rows):
        raise ValueError(f"{folder}: its index names no {missing} of each clip: {again}")
    return manifest, [row | {name: os.path.join(folder, row[name]) for name in ("shard", "audio") if name in row}
                      for row in rows]


class Features:
    """Random access to the clips of a split ('' for all); it holds no open file, so it can be forked and pickled.

    folder: one, or several of the same encoder and taps: "a,b*3" counts each clip of b three times. encoder_sha256,
    taps: what the run needs, of which only those taps are given out; online: of the clips' audio, not of shards.
    ValueError: no features, of other encoder or taps, a shard cut short.
    """

    def __init__(self, folder, split="", encoder_sha256="", taps=None, online=False):
        self.rows, self.folders = [], []
        for part in folder.split(","):
            part, _, times = part.strip().partition("*")
            if not (times or "1").isdigit():
                raise ValueError(f"{folder}: write a folder that counts three times as {part}*3")
            manifest, rows = read_index(part, encoder_sha256, taps, online)
            if self.folders and manifest["taps"] != self.manifest["taps"]:
                raise ValueError(f"{folder}: of taps {self.manifest['taps']} and {manifest['taps']}: make them alike")
            encoder_sha256, self.manifest = manifest["encoder_sha256"], manifest
            self.folders.append(part)
            self.rows += [row for row in rows if split in ("", row["info"]["split"])] * int(times or 1)
        if not self.rows:
            raise ValueError(f"{folder}: no {split!r} clip, only {sorted(manifest['clips'])}: name two folders, as a,b")
        stored = manifest["taps"]
        self.keep = [stored.index(tap) for tap in taps] if taps and list(taps) != stored else None
        self.manifest = manifest | {"taps": list(taps or stored)}
        self.shape = len(stored), manifest["D"]  # of a frame on disk: (n_taps, D)
        self.infos = [row["info"] for row in self.rows]
        self.keys, self.texts, self.seconds = ([i[name] for i in self.infos] for name in ("key", "text", "seconds"))
        self.lengths = np.array([row["frames"] for row in self.rows], dtype=np.int32)

    def __len__(self):
        return len(self.rows)

    def sums(self):
        """Return what tells these features from others: of each folder, checksums of index, shards and encoder."""
        found = []
        for folder in self.folders:
            manifest = json.loads(Path(folder, "manifest.json").read_bytes())
            shards = [shard.get("sha256", "") for shard in manifest["shards"].values()]
            what = [sha256_file(os.path.join(folder, "index.json")), manifest["encoder_sha256"], *shards]
            found.append(hashlib.sha256(" ".join(what).encode()).hexdigest())
        return found

    def __getitem__(self, i):
        """-> (float16 (T, n_taps, D), info)"""
        return load_batch(self, [i])[0][0], self.infos[i]


def mean_std(clips):
    """Mean and standard deviation over the frames of clips (T, n_taps, D): two float32 (n_taps, D)."""
    n, total, squares = 0, 0.0, 0.0
    for x in clips:
        x = x.astype(np.float64)
        n, total, squares = n + len(x), total + x.sum(0), squares + (x * x).sum(0)
    mean = total / n
    return mean.astype(np.float32), np.sqrt(np.maximum(squares / n - mean**2, 0)).astype(np.float32)


def load_batch(features, indices):
    """Read clips -> (float16 (B, T_max, n_taps, D) zero padded, int64 (B,) frames). ValueError: a shard ends early."""
    lens, by_shard = features.lengths[indices].astype(np.int64), {}
    x = np.zeros((len(indices), lens.max(), *features.shape), dtype=np.float16)
    for b, i in enumerate(indices):
        by_shard.setdefault(features.rows[i]["shard"], []).append((features.rows[i]["offset"], x[b, : lens[b]]))
    for path, reads in by_shard.items():
        with open(path, "rb", buffering=0) as f:
            for offset, clip in reads:
                if os.preadv(f.fileno(), [clip], offset) != clip.nbytes:  # from the page cache into the batch, no copy
                    raise ValueError(f"{f.name}: ends before byte {offset + clip.nbytes:,}: make the features again")
    return x if features.keep is None else np.ascontiguousarray(x[:, :, features.keep]), lens


@lru_cache(maxsize=8)
def cut_points(lengths, batch_size, batch_tokens):
    """Where clips sorted by length are cut into batches; the same in every epoch, so that its steps can be counted."""
    lengths, cuts, first = np.sort(np.frombuffer(lengths, dtype=np.int32)), [], 0
    if not batch_tokens:  # no small rest: sizes differ by one at most
        return np.cumsum([len(part) for part in np.array_split(lengths, -(-len(lengths) // batch_size))])[:-1]
    for i, length in enumerate(lengths):
        if i > first and (i + 1 - first) * length > batch_tokens or i - first == (batch_size or -1):
            cuts.append(first := i)
    return np.array(cuts, dtype=np.int64)


@lru_cache(maxsize=8)
def epoch_batches(lengths, seed, split, epoch, batch_size, jitter, batch_tokens=0):
    """An epoch's batches, each clip once: a list of int64 arrays of indices, and each clip's stretch, float64 (N,).

    lengths: bytes of int32 (N,). A clip is sorted as if it were `stretch` times as long, 1 - jitter to 1 + jitter.
    """
    cuts = cut_points(lengths, batch_size, batch_tokens)
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), epoch])
    lengths = np.frombuffer(lengths, dtype=np.int32)
    shuffled, stretch = rng.permutation(len(lengths)), np.empty(len(lengths))  # clips of equal length meet others anew
    stretch[shuffled] = rng.uniform(1 - jitter, 1 + jitter, len(lengths))
    batches = np.split(shuffled[np.argsort((lengths * stretch)[shuffled])], cuts)
    return [batches[i] for i in rng.permutation(len(batches))], stretch


def stretched_batch(lengths, seed, split, step, microbatch, batch_size, grad_accum=1, jitter=0.03, batch_tokens=0):
    """Clips of a microbatch, a function of its arguments alone: any rank may ask for any step, resume needs no state.

    lengths: of clips (N,); seed >= 0; microbatch: 0..grad_accum-1; jitter: share by which lengths move before sorting.
    An epoch: batches of similar length in random order, each clip once, of batch_size clips at most (0: any), and where
    batch_tokens is given of so many (padding counts; up to the jitter over it), or of one longer clip. -> int64 (B,),
    and how much longer each clip was taken to be, float64 (B,)
    """
    lengths = np.asarray(lengths, np.int32).tobytes()
    epoch, i = divmod(step * grad_accum + microbatch, len(cut_points(lengths, batch_size, batch_tokens)) + 1)
    batches, stretch = epoch_batches(lengths, seed, split, epoch, batch_size, jitter, batch_tokens)
    return batches[i], stretch[batches[i]]


def batch_indices(*arguments, **settings):
    """The clips alone of what stretched_batch returns: int64 (B,)."""
    return stretched_batch(*arguments, **settings)[0]
