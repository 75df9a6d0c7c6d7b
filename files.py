"""Files as people have them: rows of text, folders, atomic writes, and the one resumable download."""
import codecs
import hashlib
import json
import os
import re
import time
import unicodedata
from pathlib import Path

# of a recording that lies there twice the first kind is taken
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".webm", ".m4a", ".mp4", ".aac", ".amr", ".wma")
CONNECT_S, READ_S = 5.0, 30.0  # a host is unreachable, a connection dead, after this long without a sign
RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)


class TryAgain(Exception):
    """A passing failure of a download. args: reason; seconds to wait, or None when the server did not say."""


# ---- rows of text

def read_lines(path, errors="strict"):
    """Yield the lines (str) of a text file in UTF-8, with or without a byte order mark.

    A line ends at \\n or \\r\\n alone: U+2028 or U+0085 may stand in a row of JSON. errors: "replace" puts U+FFFD where
    a byte is no UTF-8. ValueError names file, line and the way out: UTF-16, another encoding, zero bytes.
    """
    with open(path, "rb") as f:
        for n, line in enumerate(f, 1):
            if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and n == 1:
                raise ValueError(f"{path}:1: this is UTF-16: save it as UTF-8, or iconv -f UTF-16 -t UTF-8")
            if b"\0" in line:
                raise ValueError(f"{path}:{n}: no text, it holds zero bytes (UTF-16? save it as UTF-8)")
            line = line.removeprefix(codecs.BOM_UTF8) if n == 1 else line
            try:
                yield line.rstrip(b"\r\n").decode(errors=errors)
            except UnicodeDecodeError as e:
                raise ValueError(f"{path}:{n}: byte {e.object[e.start]:#x} is no UTF-8 (Latin-1?): save the file as "
                                 "UTF-8, or iconv -f ISO-8859-1 -t UTF-8") from None


def read_pairs(path):
    """Yield ('<path>:<line>', first word, the rest) of each line; empty lines are left out."""
    for n, line in enumerate(read_lines(path), 1):
        if line.strip():
            word, *rest = re.split(r"[ \t]+", line.strip(), maxsplit=1)
            yield f"{path}:{n}", word, rest[0] if rest else ""


def read_row(line, **fields):
    """Return the JSON object (dict) of a line; ValueError: none, or check_row's. NaN and Infinity become None."""
    try:
        row = json.loads(line, parse_constant=lambda name: None)  # they are no JSON, and spoil what they are written to
    except (ValueError, RecursionError) as e:
        raise ValueError(f"no JSON object on one line ({getattr(e, 'msg', e)})") from None
    if not isinstance(row, dict):
        raise ValueError(f"no JSON object, but {line.strip()[:40]}")
    check_row(row, **fields)
    return row


def check_row(row, **fields):
    """ValueError where a field of a row is missing or of another type; fields: name=type, or a tuple of types."""
    for name, kind in fields.items():
        if not isinstance(row.get(name), kind):
            found = f"is {json.dumps(row[name])[:40]}" if name in row else f"is missing among {', '.join(row)[:80]}"
            raise ValueError(f'"{name}" {found}' + ", not a string" * (kind is str and name in row))


def read_jsonl(path, needs="", **fields):
    """Yield ('<path>:<line>', row) of a file with a JSON object on each line; empty lines are left out.

    fields: as for read_row. needs: the fields in words, for the ValueError, which names file and line.
    """
    needs = needs or ", ".join(f'"{name}"' for name in fields) or "its fields"
    for n, line in enumerate(read_lines(path), 1):
        if line.strip():
            try:
                row = read_row(line, **fields)
            except ValueError as e:
                raise ValueError(f"{path}:{n}: {e}; each line is a JSON object with {needs}") from None
            yield f"{path}:{n}", row


# ---- folders

def is_hidden(name):
    """True for what a system or an editor leaves in a folder: ._x, .DS_Store, .ipynb_checkpoints, Thumbs.db."""
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini", "__macosx")


def find_files(folder, suffixes):
    """Return the sorted paths (str) of the files at any depth that end in one of suffixes (lower case), in any case.

    Hidden files and folders are left out, links are followed, a folder that is linked twice is read once.
    """
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(root) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(root))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [os.path.join(root, name) for name in names
                  if name.lower().endswith(tuple(suffixes)) and not is_hidden(name)]
    return sorted(found)


def find_audio(folder):
    """Return {file name without its ending, accents composed (NFC): path} of the recordings in a folder."""
    found = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
        if suffix.lower() in AUDIO_SUFFIXES and not is_hidden(name):
            found.setdefault(stem, []).append((AUDIO_SUFFIXES.index(suffix.lower()), os.path.join(folder, name)))
    return {stem: min(paths)[1] for stem, paths in found.items()}


def find_path(folder, name):
    """Return the path of a file that a list names from its folder, whether or not it is there.

    It is found as well where the list has backslashes (Windows) or its accents composed otherwise (macOS).
    """
    path = os.path.join(folder, name)
    if os.path.exists(path):
        return path
    slashed = name.replace("\\", "/")
    others = [slashed, unicodedata.normalize("NFC", slashed), unicodedata.normalize("NFD", slashed)]
    return next(filter(os.path.exists, (os.path.join(folder, other) for other in others)), path)


def own_file(name):
    """Return the path of a text that belongs to the repository: as named from here, else beside this module."""
    beside = Path(__file__).parent / name
    return str(beside) if beside.is_file() and not os.path.exists(name) else name


# ---- writing: a file is whole or not there

def write_text(path, text):
    """Write a text in UTF-8 under a temporary name, then rename it."""
    with open(f"{path}.tmp", "w", encoding="utf-8", errors="replace", newline="\n") as f:  # half a surrogate pair: ?
        f.write(text)
    os.replace(f"{path}.tmp", path)


def write_json(path, value, indent=None):
    """Write a value as JSON."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent))


def write_jsonl(path, rows):
    """Write a row as JSON on each line."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


# ---- checksums and downloads

def sha256_file(path):
    """Return the hex sha256 of a file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


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
