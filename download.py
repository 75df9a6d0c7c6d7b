"""Download a file: resumed after a cut, verified, from the first source that works."""
import hashlib
import os
import time

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError, MaxRetryError

TIMEOUTS_S = 5.0, 30.0  # without an answer, without a byte
RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)


def download(urls, path, checksum="", n_tries=4):
    """Download a file to path + '.part', verify it, then rename it.

    urls: str or list of str, tried in order. checksum: "md5:" or "sha256:" and hex, "": unknown.
    n_tries: failures in a row, without a new byte, before the next source. Returns the url that
    served, or path when it was there. OSError: each source's reason.
    """
    if os.path.exists(path) and not mismatch(path, checksum):
        return path
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    part, reasons = path + ".part", ""
    for url in [urls] if isinstance(urls, str) else urls:
        if os.path.exists(part) and not checksum:
            os.remove(part)  # it may come from another source: only a checksum could tell
        reason = download_from(url, part, checksum, n_tries)
        if not reason:
            os.replace(part, path)
            return url
        reasons += f"; {url}: {reason}"
    raise OSError(f"{path}: no source could be downloaded{reasons}")


def download_from(url, part, checksum, n_tries):
    """Fill `part` from one source and verify it -> '' or why that failed."""
    n_failed, is_mixed = 0, os.path.exists(part)
    while True:
        had = size_of(part)
        try:
            fetch(url, part)
            wrong = mismatch(part, checksum)
            if not wrong:
                return ""
            os.remove(part)
            if not is_mixed:
                return wrong
            is_mixed = False  # its beginning came from elsewhere: get all of it from this source
        except (HTTPError, requests.RequestException, ValueError) as e:
            n_failed = 1 if size_of(part) > had else n_failed + 1
            is_final = isinstance(e, ValueError) or any(
                isinstance(arg, MaxRetryError) for arg in e.args)
            if is_final or n_failed >= n_tries:
                return f"{type(e).__name__}: {str(e).rsplit(': ', 1)[-1]}"
            time.sleep(2.0 ** (n_failed - 1))


def fetch(url, part):
    """Ask once for what `part` lacks. HTTPError: it may pass; ValueError: this source won't do."""
    have = size_of(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUTS_S) as response:
        status, served = response.status_code, response.headers.get("Content-Range", "")
        if status in RETRY_STATUS:
            raise HTTPError(f"HTTP {status} {response.reason}")
        if have and status == 416 and served == f"bytes */{have}":
            return  # all of it was there
        if have and status in (206, 416) and not served.startswith(f"bytes {have}-"):
            os.remove(part)  # other bytes than asked for
            return fetch(url, part)
        if status not in (200, 206):
            raise ValueError(f"HTTP {status} {response.reason}")
        n = have if status == 206 else 0  # 200: the server ignored the Range
        total = n + int(response.headers.get("Content-Length", -n)) or None
        bar = tqdm(desc=os.path.basename(part), total=total, initial=n, unit="B", unit_scale=True)
        with bar, open(part, "ab" if n else "wb") as f:
            while block := response.raw.read1(1 << 18):
                f.write(block)
                bar.update(len(block))


def size_of(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def mismatch(path, checksum):
    """Return how a file differs from its checksum, or ''."""
    name, _, expected = checksum.partition(":")
    with open(path, "rb") as f:
        found = hashlib.file_digest(f, name).hexdigest() if name else expected
    return "" if found == expected else f"{name} is {found[:16]} instead of {expected[:16]}"
