"""Feature shards and batches, against plain tarfile and numpy."""
import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest

from commands import raises
from data import (Features, epoch_batches, load_batch, mean_std, stretched_batch, write_index,
                  write_shard)

LENGTHS = [5, 3, 9, 1, 4]


def write_features(folder, *shards, taps, sha256):
    """Write shards of clips as a folder of features."""
    folder.mkdir(exist_ok=True)
    rows, sizes = [], {}
    for n, clips in enumerate(shards):
        path = folder / f"shard-{n:06d}.tar"
        rows += write_shard(str(path), clips)
        sizes[path.name] = {"bytes": os.path.getsize(path)}
    write_index(str(folder), rows, sizes, {"encoder": "random", "encoder_sha256": sha256,
                                           "taps": taps, "D": clips[0][1].shape[2]})


@pytest.fixture
def folder(tmp_path):
    """Two shards of features: train with 4 clips, test with 1; 2 taps, D 6."""
    rng, clips = np.random.default_rng(1), []
    for i, n in enumerate(LENGTHS):
        info = {"text": f"it's {i}", "seconds": n / 50, "split": "train" if i < 4 else "test"}
        key = "k" * 120 if i == 3 else f"k{i}"  # a long name has tar headers of its own
        clips.append((key, rng.normal(size=(n, 2, 6)), info))
    write_features(tmp_path, clips[:4], clips[4:], taps=[0, -1], sha256="ab12")
    return tmp_path


def test_features_are_those_of_the_tar(folder):
    """Broken: offsets are wrong, WebDataset can't read them, or another encoder's are taken."""
    features = Features(str(folder), "train", "ab12")
    with tarfile.open(folder / "shard-000000.tar") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    assert len(files) == 8 and features.lengths.tolist() == LENGTHS[:4]
    for i, key in enumerate(features.keys):
        x, info = features[i]
        slow = np.load(io.BytesIO(files[f"{key}.npy"]))
        assert x.dtype == slow.dtype == np.float16 and np.array_equal(x, slow)
        assert info == json.loads(files[f"{key}.json"])
    assert features.texts[2] == "it's 2" and features.seconds[2] == 0.18
    assert features.manifest["clips"] == {"train": 4, "test": 1}
    some = Features(str(folder), "train", taps=[-1, 0])
    assert some.manifest["taps"] == [-1, 0]
    assert np.array_equal(some[2][0], features[2][0][:, ::-1])
    for needs, words in (({"encoder_sha256": "cd34"}, "ab12.*cd34"), ({"taps": [3]}, ".0, -1.*3"),
                         ({"split": "val"}, "val.*train")):
        raises(f"{folder}.*{words}", Features, str(folder), **needs)


def test_load_batch_pads_with_zeros(folder):
    """Broken: clips of two shards land in wrong rows, padding is no zero, or statistics are off."""
    features = Features(str(folder))
    x, lens = load_batch(features, np.array([4, 2, 3]))
    assert x.shape == (3, 9, 2, 6) and lens.tolist() == [4, 9, 1]
    for b, i in enumerate((4, 2, 3)):
        assert np.array_equal(x[b, :lens[b]], features[i][0]) and not x[b, lens[b]:].any()
    frames = np.concatenate([features[i][0] for i in range(4)]).astype(np.float64)  # (18, 2, 6)
    mean, std = mean_std(features[i][0] for i in range(4))
    assert mean.dtype == std.dtype == np.float32 and mean.shape == (2, 6)
    assert np.allclose(mean, frames.mean(0), atol=1e-6)
    assert np.allclose(std, frames.std(0), atol=1e-6)


def test_folders_are_mixed(folder, tmp_path):
    """Broken: folders don't add up, a clip is read from the wrong one, or encoders are mixed."""
    other = shutil.copytree(folder, tmp_path / "other")
    index, manifest = other / "index.json", other / "manifest.json"
    index.write_text(index.read_text().replace("it's 0", "of the other"))
    features = Features(f"{folder}, {other}*2", "train")
    assert len(features) == 12 and features.texts[4] == features.texts[8] == "of the other"
    assert len(set(features.sums())) == 2
    x, _ = load_batch(features, np.array([1, 5, 9]))
    assert np.array_equal(x[0], x[1]) and np.array_equal(x[0], x[2])
    manifest.write_text(manifest.read_text().replace("ab12", "cd34"))
    for wrong, words in ((f"{folder},{other}", "cd34.*ab12"), (f"{folder}*x", "three times"),
                         (f"{folder},", "whole")):
        raises(words, Features, wrong, "train")


def test_broken_shards_are_found(folder):
    """Broken: a shard cut short is read as zeros, or an index cut short is a traceback."""
    features = Features(str(folder))
    os.truncate(folder / "shard-000001.tar", 600)
    raises("shard-000001.tar: 600 bytes instead of 10,240", Features, str(folder))
    raises("shard-000001.tar: ends", load_batch, features, [0, 4])
    os.truncate(folder / "index.json", 100)
    raises("no whole manifest.json and index.json", Features, str(folder))


def test_batches():
    """Broken: clips are seen twice or never; a batch is too large, nearly empty, over 5% padding,
    in order or as before."""
    lengths = np.random.default_rng(2).integers(20, 800, 1001)
    batches = [stretched_batch(lengths, 0, 63 + i, 16)[0] for i in range(63)]
    assert sorted(np.concatenate(batches)) == list(range(1001))
    assert {len(batch) for batch in batches} == {15, 16}
    rng = np.random.default_rng(5)  # like LibriSpeech: a quarter is short, the rest about 14.6 s
    seconds = np.where(rng.random(9000) < 0.25, rng.uniform(1.5, 11, 9000),
                       rng.normal(14.6, 1.2, 9000).clip(11, 24.5))
    lengths = (15 * seconds).astype(np.int32)
    n = len(epoch_batches(lengths.tobytes(), 0, "train", 0, 0, 0.03, 3400)[0])
    batches = [stretched_batch(lengths, 0, step, 0, batch_tokens=3400)[0]
               for step in range(2 * n)]
    first, second = batches[:n], batches[n:]
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    for batches in (first, second):
        sizes = np.array([len(batch) * lengths[batch].max() for batch in batches])
        assert sorted(np.concatenate(batches)) == list(range(9000)) and sizes.max() <= 1.05 * 3400
        assert 1 - lengths.sum() / sizes.sum() < 0.05 and np.median(sizes) > 0.9 * 3400
        means = [lengths[batch].mean() for batch in batches]
        assert abs(np.corrcoef(means, range(n))[0, 1]) < 0.3
    assert len(stretched_batch(lengths, 0, 7, 0, batch_tokens=1)[0]) == 1  # a longer clip
