"""Feature shards, batches and the download, against plain tarfile, numpy and a local web server with faults."""
import hashlib
import http.server
import io
import json
import os
import shutil
import tarfile
import threading

import numpy as np
import pytest

import files
from data import (Features, batch_indices, cut_points, epoch_batches, load_batch, mean_std, write_index,
                  write_shard)
from download import download

BODY = b"PAR1" + bytes(np.random.default_rng(0).integers(0, 256, 299_992, dtype=np.uint8)) + b"PAR1"  # parquet's ends
SHA256, MD5 = hashlib.sha256(BODY).hexdigest(), hashlib.md5(BODY).hexdigest()


class Faulty(http.server.BaseHTTPRequestHandler):
    """Serves BODY; the first word of the path says what goes wrong, and how often."""

    def do_GET(self):
        asked, requests = self.headers.get("Range"), self.server.requests
        requests.append((self.path, asked))
        n_before = sum(path == self.path for path, _ in requests) - 1
        fault = self.path.strip("/").split("/")[0]
        if fault == "missing":
            return self.send_error(404)
        if fault in ("busy", "closed") and n_before < 2:
            self.send_response(503)
            self.send_header("Retry-After", "3" if fault == "busy" else "3600")
            return self.end_headers()
        body = BODY[::-1] if fault == "wrong" else BODY
        start = int(asked[6:-1]) if asked and fault != "norange" else 0
        start += 100 if start and fault == "shifted" else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        self.wfile.write(body[start : start + 50_000] if fault == "cut" else body[start:])
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A running server; .url, .requests [(path, Range)] and .slept, the seconds that download waited (none really)."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    server.url, server.requests, server.slept = f"http://127.0.0.1:{server.server_port}", [], []
    monkeypatch.setattr(files.time, "sleep", server.slept.append)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("checks", [{"sha256": SHA256}, {"md5": MD5}, {"size": len(BODY)}, {}])
def test_download_resumes_after_cuts(server, tmp_path, checks):
    """Broken: a line that drops every 50,000 bytes is given up, costs new starts, or leaves other bytes than served."""
    path = tmp_path / "new" / "file"
    assert download(f"{server.url}/cut", str(path), **checks) == f"{server.url}/cut"
    assert path.read_bytes() == BODY and os.listdir(path.parent) == ["file"]
    assert [asked for _, asked in server.requests[1:]] == [f"bytes={n}-" for n in range(50_000, 300_000, 50_000)]
    assert download(f"{server.url}/cut", str(path), **checks) == str(path) and len(server.requests) == 6


@pytest.mark.parametrize("source, part, n_requests", [
    ("whole", BODY[:70_000], 1),         # an earlier process's part: its rest is asked for
    ("norange", BODY[:70_000], 1),       # 200 instead of 206: from the start, not appended
    ("shifted", BODY[:70_000], 2),       # 206 of other bytes than asked for: again from the start
    ("whole", BODY, 1),                  # 416, all is there
    ("whole", BODY + b"x", 2),           # 416, too much is there: again from the start
    ("whole", b"x" * 70_000, 2)])        # a part that came from elsewhere: seen by the checksum, again from the start
def test_download_goes_on_from_a_part(server, tmp_path, source, part, n_requests):
    """Broken: what an earlier process left is trusted blindly, or thrown away."""
    (tmp_path / "file.part").write_bytes(part)
    download([f"{server.url}/{source}"], str(tmp_path / "file"), sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == BODY and os.listdir(tmp_path) == ["file"]
    assert server.requests[0][1] == f"bytes={len(part)}-" and len(server.requests) == n_requests


def test_download_without_checksum_trusts_no_old_part(server, tmp_path):
    """Broken: an old part of unknown origin becomes the beginning of a file that nothing verifies."""
    (tmp_path / "file.part").write_bytes(b"x" * 70_000)
    download(f"{server.url}/whole", str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == BODY


def test_download_tries_the_next_source(server, tmp_path):
    """Broken: a missing file, wrong bytes or a dead host end the download although a mirror has it."""
    urls = ["http://127.0.0.1:9/dead", f"{server.url}/missing", f"{server.url}/wrong", f"{server.url}/whole"]
    assert download(urls, str(tmp_path / "file"), sha256=SHA256) == urls[-1]
    assert (tmp_path / "file").read_bytes() == BODY
    assert [path for path, _ in server.requests] == ["/missing", "/wrong", "/whole"] and not server.slept


def test_download_names_every_reason(server, tmp_path):
    """Broken: the user is not told why each source failed, or half a file keeps the final name."""
    urls = ["http://127.0.0.1:9/dead", f"{server.url}/missing", f"{server.url}/wrong"]
    with pytest.raises(OSError) as e:
        download(urls, str(tmp_path / "file"), sha256=SHA256)
    for url, reason in zip(urls, ("refused", "404", "sha256 is")):
        assert url in str(e.value) and reason in str(e.value).split(url)[1].split(";")[0]
    assert not os.listdir(tmp_path)


def test_download_waits_as_asked(server, tmp_path):
    """Broken: Retry-After is ignored, or an hour of it is waited for."""
    urls = [f"{server.url}/closed", f"{server.url}/busy"]
    assert download(urls, str(tmp_path / "file")) == urls[1]
    assert server.slept == [3.0, 3.0]


# -----------------------------------------------------------------------------


LENGTHS = [5, 3, 9, 1, 4]


@pytest.fixture
def folder(tmp_path):
    """Two shards of features: train with 4 clips, test with 1; 2 taps, D 6."""
    rng, shards, rows = np.random.default_rng(1), {}, []
    for name, split, which in (("shard-000000.tar", "train", range(4)), ("shard-000001.tar", "test", range(4, 5))):
        infos = [{"text": f"it's {i}", "seconds": LENGTHS[i] / 50, "split": split} for i in which]
        clips = ((f"k{i}", rng.normal(size=(LENGTHS[i], 2, 6)), info) for i, info in zip(which, infos))
        rows += write_shard(str(tmp_path / name), clips)
        shards[name] = {"bytes": os.path.getsize(tmp_path / name), "sha256": ""}
    write_index(str(tmp_path), rows, shards, {"encoder": "tiny", "encoder_sha256": "ab12", "taps": [0, -1], "D": 6})
    return tmp_path


def read_tar(path):
    """{key: (features, info)} of a shard, read the slow way."""
    with tarfile.open(path) as tar:
        members = {m.name: tar.extractfile(m) for m in tar.getmembers()}
        return {name[:-4]: (np.load(io.BytesIO(f.read())), json.load(members[name[:-4] + ".json"]))
                for name, f in members.items() if name.endswith(".npy")}


def test_features_are_those_of_the_tar(folder):
    """Broken: offsets of the index point beside the numbers, or a WebDataset reader can't read our shards."""
    features, slow = Features(str(folder), "train", "ab12", (0, -1)), read_tar(folder / "shard-000000.tar")
    assert len(features) == 4 and features.keys == list(slow) and features.lengths.tolist() == LENGTHS[:4]
    for i, key in enumerate(features.keys):
        x, info = features[i]
        assert x.dtype == np.float16 and np.array_equal(x, slow[key][0]) and info == slow[key][1]
    assert features.texts[2] == "it's 2" and features.seconds[2] == 0.18
    assert features.manifest["clips"] == {"train": 4, "test": 1} and features.manifest["seconds"]["test"] == 0.08
    assert len(Features(str(folder))) == 5


def test_load_batch_pads_with_zeros(folder):
    """Broken: clips of two shards land in the wrong rows, or padding holds what memory held."""
    features = Features(str(folder))
    x, lens = load_batch(features, np.array([4, 2, 3]))
    assert x.shape == (3, 9, 2, 6) and x.dtype == np.float16 and lens.tolist() == [4, 9, 1] and lens.dtype == np.int64
    for b, i in enumerate((4, 2, 3)):
        assert np.array_equal(x[b, : lens[b]], features[i][0]) and not x[b, lens[b] :].any()


def test_only_the_taps_asked_for(folder):
    """Broken: a run that asks for some of the taps gets others, or their order is lost."""
    both, last = Features(str(folder)), Features(str(folder), taps=[-1])
    assert last.manifest["taps"] == [-1] and both.manifest["taps"] == [0, -1]
    assert np.array_equal(last[2][0], both[2][0][:, 1:])
    assert np.array_equal(Features(str(folder), taps=[-1, 0])[2][0], both[2][0][:, ::-1])


def test_mean_std(folder):
    """Broken: a projector is standardized with the wrong numbers."""
    features = Features(str(folder), "train")
    frames = np.concatenate([features[i][0] for i in range(4)]).astype(np.float64)  # (18, 2, 6)
    mean, std = mean_std(features[i][0] for i in range(4))
    assert mean.dtype == std.dtype == np.float32 and mean.shape == (2, 6)
    assert np.allclose(mean, frames.mean(0), atol=1e-6) and np.allclose(std, frames.std(0), atol=1e-6)


@pytest.mark.parametrize("needs, words", [
    ({"encoder_sha256": "cd34"}, ["ab12", "cd34"]), ({"taps": [3]}, ["[0, -1]", "[3]"]),
    ({"split": "val"}, ["val", "train"])])
def test_other_features_are_refused(folder, needs, words):
    """Broken: a run trains on features that its encoder does not make."""
    with pytest.raises(ValueError) as e:
        Features(str(folder), **needs)
    assert all(word in str(e.value) for word in [str(folder), *words]) and "\n" not in str(e.value)


def test_folders_are_mixed(folder, tmp_path):
    """Broken: two folders of features don't add up, a clip is read from the wrong one, or encoders are mixed."""
    other = shutil.copytree(folder, tmp_path / "other")
    rows = json.loads((other / "index.json").read_text())
    rows[0]["info"]["text"] = "of the other"
    (other / "index.json").write_text(json.dumps(rows))
    features = Features(f"{folder}, {other}*2", "train")
    assert len(features) == 12 and features.texts[4] == features.texts[8] == "of the other"
    x, lens = load_batch(features, np.array([1, 5, 9]))
    assert np.array_equal(x[0], x[1]) and np.array_equal(x[0], x[2]) and lens.tolist() == [3, 3, 3]
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"encoder_sha256": "cd34"}))
    for wrong, words in ((f"{folder},{other}", "cd34.*ab12"), (f"{folder}*x", "three times"), (f"{folder},", "whole")):
        with pytest.raises(ValueError, match=words):
            Features(wrong, "train")


def test_cut_shard_is_found_at_opening(folder):
    """Broken: a shard cut short is noticed hours later, or read as zeros."""
    features = Features(str(folder))
    os.truncate(folder / "shard-000001.tar", 600)
    with pytest.raises(ValueError, match="shard-000001.tar: 600 bytes instead of 10,240"):
        Features(str(folder))
    with pytest.raises(ValueError, match="shard-000001.tar: ends"):
        load_batch(features, [0, 4])
    os.remove(folder / "shard-000001.tar")
    with pytest.raises(ValueError, match="shard-000001.tar: 0 bytes"):
        Features(str(folder))
    os.truncate(folder / "index.json", 100)
    with pytest.raises(ValueError, match="no whole manifest.json and index.json"):
        Features(str(folder))


def test_failed_shard_leaves_no_final_name(tmp_path):
    """Broken: an error in the middle leaves a tar that looks whole."""
    def clips():
        yield "a", np.zeros((2, 1, 4), np.float16), {}
        yield "b.c", np.zeros((2, 1, 4), np.float16), {}
    with pytest.raises(ValueError, match="'b.c'"):
        write_shard(str(tmp_path / "shard-000000.tar"), clips())
    assert not (tmp_path / "shard-000000.tar").exists()


# -----------------------------------------------------------------------------


def epoch_of(lengths, seed, split, epoch, batch_size):
    n = -(-len(lengths) // batch_size)
    return [batch_indices(lengths, seed, split, step, 0, batch_size) for step in range(epoch * n, (epoch + 1) * n)]


@pytest.mark.parametrize("n, batch_size", [(1000, 16), (1001, 16), (5, 8), (7, 1)])
def test_an_epoch_holds_each_clip_once(n, batch_size):
    """Broken: clips are seen twice or never, a batch is over its size, or nearly empty."""
    lengths = np.random.default_rng(2).integers(20, 800, n)
    for epoch in range(3):
        batches = epoch_of(lengths, 0, "train", epoch, batch_size)
        assert sorted(np.concatenate(batches)) == list(range(n))
        sizes = {len(batch) for batch in batches}
        assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1


def test_batches_of_tokens():
    """Broken: a batch overruns its tokens, over 5% of them are padding, or clips are lost."""
    rng = np.random.default_rng(5)  # LibriSpeech-like: a quarter 1.5-11 s, the rest about 14.6 s; 15 tokens a second
    seconds = np.where(rng.random(9000) < 0.25, rng.uniform(1.5, 11, 9000), rng.normal(14.6, 1.2, 9000).clip(11, 24.5))
    lengths = (15 * seconds).astype(np.int32)
    for batch_tokens in (3400, 16000):
        n = len(cut_points(lengths.tobytes(), 0, batch_tokens)) + 1
        batches = [batch_indices(lengths, 0, "train", step, 0, 0, batch_tokens=batch_tokens) for step in range(n)]
        sizes = np.array([len(batch) * lengths[batch].max() for batch in batches])
        assert sorted(np.concatenate(batches)) == list(range(9000)) and sizes.max() <= 1.05 * batch_tokens
        assert 1 - lengths.sum() / sizes.sum() < 0.05 and np.median(sizes) > 0.9 * batch_tokens
        few = batch_indices(lengths, 0, "train", 7, 0, 5, batch_tokens=batch_tokens)
        assert len(few) == 5 and len(cut_points(lengths.tobytes(), 5, batch_tokens)) == 1799
    assert len(cut_points(lengths.tobytes(), 0, 1)) == 8999  # a clip that is longer stands alone


def test_batches_hold_similar_lengths_in_random_order():
    """Broken: padding wastes the step, or the run sees all short clips first, or each epoch the same batches."""
    lengths = np.random.default_rng(3).gamma(6, 100, 4000).astype(int) + 50
    first, second = (epoch_of(lengths, 0, "train", epoch, 16) for epoch in (0, 1))
    padded = sum(len(b) * lengths[b].max() for b in first)
    assert 1 - lengths.sum() / padded < 0.05
    means = np.array([lengths[b].mean() for b in first])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3
    assert {frozenset(b) for b in first} != {frozenset(b) for b in second}


def test_a_batch_depends_on_its_arguments_alone():
    """Broken: a resumed run, or another number of ranks, sees other batches."""
    lengths = np.random.default_rng(4).integers(20, 800, 100)
    straight = [batch_indices(lengths, 1, "train", step, m, 8, grad_accum=3) for step in range(20) for m in range(3)]
    epoch_batches.cache_clear()
    for n in (57, 3, 31, 12):
        assert np.array_equal(batch_indices(list(lengths), 1, "train", n // 3, n % 3, 8, grad_accum=3), straight[n])
    assert np.array_equal(batch_indices(lengths, 1, "train", 31, 0, 8), straight[31])
    for seed, split in ((2, "train"), (1, "val")):
        assert not np.array_equal(batch_indices(lengths, seed, split, 0, 0, 8, grad_accum=3), straight[0])
