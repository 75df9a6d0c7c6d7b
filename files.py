"""Files as people have them: rows of text, folders, atomic writes, and the one resumable download."""
import codecs
import hashlib
import json
import os
import re
import unicodedata
from pathlib import Path

# of a recording that lies there twice the first kind is taken
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".webm", ".m4a", ".mp4", ".aac", ".amr", ".wma")


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


