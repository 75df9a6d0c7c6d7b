"""The one resumable, verified download: several sources, in order."""
import hashlib
import os
import time

CONNECT_S, READ_S = 5.0, 30.0  # a host is unreachable, a connection dead, after this long without a sign
RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)


class TryAgain(Exception):
    """A passing failure of a download. args: reason; seconds to wait, or None when the server did not say."""


def mismatch(path, sha256="", md5="", size=0):
    """What is wrong with a file against its published size (bytes) and checksums (hex), or ''."""
    if size and os.path.getsize(path) != size:
        return f"{os.path.getsize(path):,} bytes instead of {size:,}"
    for name, expected in (("sha256", sha256), ("md5", md5)):
        with open(path, "rb") as f:
            if expected and (found := hashlib.file_digest(f, name).hexdigest()) != expected.lower():
                return f"{name} is {found[:16]} instead of {expected[:16]}"
    return ""


def fetch(session, url, part, min_bytes_s):
    """One request for what `part` lacks. TryAgain: a passing failure; ValueError: this source won't do."""
    import requests
    from tqdm import tqdm
    from urllib3.exceptions import HTTPError
    have = os.path.getsize(part) if os.path.exists(part) else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = session.get(url, headers=headers, stream=True, timeout=(CONNECT_S, READ_S))
    except requests.RequestException as e:
        cause = getattr(e.args[0], "reason", None) if e.args else None  # set when no connection came about: fail fast
        is_passing = cause is None and isinstance(e, (requests.ConnectionError, requests.ReadTimeout))
        reason = f"{type(e).__name__}: {str(cause or e).rsplit(': ', 1)[-1]}"
        raise TryAgain(reason, None) if is_passing else ValueError(reason)
    with response:
        status, content_range = response.status_code, response.headers.get("Content-Range", "")
        if status in RETRY_STATUS:
            wait = response.headers.get("Retry-After", "")  # in seconds; a date counts as not said
            raise TryAgain(f"HTTP {status} {response.reason}", float(wait) if wait.isdigit() else None)
        if have and status == 416 and content_range == f"bytes */{have}":
            return  # all of it was there already
        if have and (status == 416 or (status == 206 and not content_range.startswith(f"bytes {have}-"))):
            os.remove(part)
            raise TryAgain(f"HTTP {status} with '{content_range}' to a Range from {have}", 0.0)
        if status not in (200, 206):
            raise ValueError(f"HTTP {status} {response.reason}")
        n = have if status == 206 else 0  # 200: the server ignores Range, so from the start
        total = n + int(response.headers.get("Content-Length", -n)) or None
        window_n, window_end = n, time.monotonic() + READ_S
        bar = tqdm(desc=os.path.basename(part)[:-5], total=total, initial=n, unit="B", unit_scale=True)
        try:
            with bar, open(part, "ab" if n else "wb") as f:
                while block := response.raw.read1(1 << 18):  # read1 returns what has come, so a trickle is seen as one
                    n += f.write(block)
                    bar.update(len(block))
                    if time.monotonic() > window_end:
                        if n - window_n < min_bytes_s * READ_S:
                            raise TryAgain(f"slower than {min_bytes_s:,} bytes a second", None)
                        window_n, window_end = n, time.monotonic() + READ_S
        except HTTPError as e:
            raise TryAgain(f"cut after {n:,} of {total or 0:,} bytes ({type(e).__name__})", None) from e


def download_from(session, url, part, checks, min_bytes_s, n_tries, max_wait_s):
    """Fill `part` from one source and verify it -> '' or the reason why this source failed."""
    n_failed, is_mixed = 0, os.path.exists(part)
    while True:
        had = os.path.getsize(part) if os.path.exists(part) else 0
        try:
            fetch(session, url, part, min_bytes_s)
            wrong = mismatch(part, **checks)
            if not wrong:
                return ""
            os.remove(part)
            if not is_mixed:
                return wrong
            is_mixed = False  # its beginning came from elsewhere: once more, all from this source
        except ValueError as e:
            return str(e)
        except TryAgain as e:
            reason, asked_s = e.args
            if os.path.exists(part) and os.path.getsize(part) > had:
                n_failed = 0  # a line that drops often but moves on is not given up
            n_failed += 1
            wait_s = 2.0 ** (n_failed - 1) if asked_s is None else asked_s
            if n_failed >= n_tries or wait_s > max_wait_s:
                return f"{reason} ({n_failed} times; wait {wait_s:.0f} s)"
            time.sleep(wait_s)


def download(urls, path, sha256="", md5="", size=0, min_bytes_s=1000, session=None, n_tries=4, max_wait_s=60.0):
    """Download a file from the first source that works: resumed in path + '.part', verified, then renamed.

    urls: str or list of str, tried in order; sha256, md5: hex; size: bytes; min_bytes_s: slower counts as cut; n_tries:
    failures in a row without progress before the next source; max_wait_s: the longest Retry-After waited for; session:
    a requests.Session. -> the url that served, or path when it was there. OSError with each source's reason.
    """
    import requests
    checks = {"sha256": sha256, "md5": md5, "size": size}
    if os.path.exists(path) and not mismatch(path, **checks):
        return path
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    part, reasons, session = path + ".part", "", session or requests.Session()
    for url in [urls] if isinstance(urls, str) else urls:
        if os.path.exists(part) and not (sha256 or md5):
            os.remove(part)  # without a checksum, bytes of another source or version can't be told apart
        reason = download_from(session, url, part, checks, min_bytes_s, n_tries, max_wait_s)
        if not reason:
            os.replace(part, path)
            return url
        reasons += f"; {url}: {reason}"
    raise OSError(f"{path}: no source could be downloaded{reasons}")
