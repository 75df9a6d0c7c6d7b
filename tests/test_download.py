"""The download, against a local web server with faults."""
import hashlib
import http.server
import os
import threading
import time

import numpy as np
import pytest

from download import download

BODY = bytes(np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8))
SHA256 = "sha256:" + hashlib.sha256(BODY).hexdigest()
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()


class Faulty(http.server.BaseHTTPRequestHandler):
    """Serves BODY; the first word of the path says what goes wrong, and how often."""

    def do_GET(self):
        asked, requests = self.headers.get("Range"), self.server.requests
        requests.append((self.path, asked))
        fault = self.path.strip("/")
        if fault in ("missing", "busy"):
            return self.send_error(404 if fault == "missing" else 503)
        body = BODY[::-1] if fault == "wrong" else BODY
        start = int(asked[6:-1]) if asked and fault != "norange" else 0
        start += 100 if start and fault == "shifted" else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        self.wfile.write(body[start:start + 50_000] if fault == "cut" else body[start:])
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A running server; .url, .requests [(path, Range)], .slept: seconds waited (none really)."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    server.url, server.requests = f"http://127.0.0.1:{server.server_port}", []
    server.slept = []
    monkeypatch.setattr(time, "sleep", server.slept.append)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("checksum", [SHA256, MD5, ""])
def test_resumes_after_cuts(server, tmp_path, checksum):
    """Broken: a line that drops every 50,000 bytes is given up, costs new starts, or leaves other
    bytes than served."""
    path = tmp_path / "new" / "file"
    assert download(f"{server.url}/cut", str(path), checksum) == f"{server.url}/cut"
    assert path.read_bytes() == BODY and os.listdir(path.parent) == ["file"]
    asked = [f"bytes={n}-" for n in range(50_000, 300_000, 50_000)]
    assert [ranges for _, ranges in server.requests] == [None, *asked]
    assert download(f"{server.url}/cut", str(path), checksum) == str(path)
    assert len(server.requests) == 6


@pytest.mark.parametrize("source, part, n_requests", [
    ("whole", BODY[:70_000], 1),    # an earlier process's part: its rest is asked for
    ("norange", BODY[:70_000], 1),  # 200 instead of 206: from the start, not appended
    ("shifted", BODY[:70_000], 2),  # 206 of other bytes than asked for: again from the start
    ("whole", BODY, 1),             # 416, all is there
    ("whole", BODY + b"x", 2),      # 416, too much is there: again from the start
    ("whole", b"x" * 70_000, 2)])   # a part from elsewhere: seen by the checksum, again
def test_goes_on_from_a_part(server, tmp_path, source, part, n_requests):
    """Broken: what an earlier process left is trusted blindly, or thrown away."""
    (tmp_path / "file.part").write_bytes(part)
    download([f"{server.url}/{source}"], str(tmp_path / "file"), SHA256)
    assert (tmp_path / "file").read_bytes() == BODY and os.listdir(tmp_path) == ["file"]
    assert server.requests[0][1] == f"bytes={len(part)}-" and len(server.requests) == n_requests


def test_without_checksum_no_old_part_is_trusted(server, tmp_path):
    """Broken: an old part of unknown origin becomes the beginning of a file."""
    (tmp_path / "file.part").write_bytes(b"x" * 70_000)
    download(f"{server.url}/whole", str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == BODY


def test_tries_the_next_source_and_names_every_reason(server, tmp_path):
    """Broken: a missing file, wrong bytes or a dead host end the download although a mirror has it;
    a busy one is not asked again; why each failed is not told; half a file keeps the final name."""
    urls = ["http://127.0.0.1:9/dead", *(f"{server.url}/{why}" for why in ("missing", "wrong"))]
    for more, slept in (([], []), ([f"{server.url}/busy"], [1, 2, 4])):
        with pytest.raises(OSError) as e:
            download(urls + more, str(tmp_path / "file"), SHA256)
        for url, reason in zip(urls + more, ("refused", "404", "sha256 is", "503")):
            assert reason in str(e.value).split(url)[1].split(";")[0]
        assert not os.listdir(tmp_path) and server.slept == slept
    urls.append(f"{server.url}/whole")
    assert download(urls, str(tmp_path / "file"), SHA256) == urls[-1]
    assert (tmp_path / "file").read_bytes() == BODY
