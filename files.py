"""Files as people have them: rows of text, folders of recordings, atomic writes."""
import hashlib
import json
import os
import tomllib
import unicodedata

FOLDER = os.path.dirname(os.path.realpath(__file__))
TABLES = set()  # that read_toml() has read
# of two recordings with one name the first kind is taken
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".webm", ".m4a", ".mp4", ".aac", ".amr",
                  ".wma")


# ---- rows of text

def read_lines(path):
    """Yield the lines (str) of a text file in UTF-8, with or without a byte order mark.

    A line ends at \\n or \\r\\n alone: U+2028 may stand in a row of JSON. ValueError names it.
    """
    with open(path, "rb") as f:
        for n, line in enumerate(f, 1):
            if b"\0" in line or line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise ValueError(f"{path}:{n}: this is UTF-16 or no text: save it as UTF-8")
            try:
                yield line.rstrip(b"\r\n").decode("utf-8-sig" if n == 1 else "utf-8")
            except UnicodeDecodeError as e:
                raise ValueError(f"{path}:{n}: byte {e.object[e.start]:#x} is no UTF-8 (Latin-1?): "
                                 "iconv -f ISO-8859-1 -t UTF-8 mends that") from None


def read_sentences(text_dir, split):
    """Return the lines (str) of <text_dir>/<split>.txt. ValueError: there is none."""
    path = f"{text_dir}/{split}.txt"
    found = [line.strip() for _, line in read_filled(path)] if os.path.isfile(path) else []
    if not found:
        raise ValueError(f"{path}: no sentence there: run prepare_text.py")
    return found


def read_filled(path):
    """Yield ('<path>:<line>', line) of each line that is not empty."""
    for n, line in enumerate(read_lines(path), 1):
        if line.strip():
            yield f"{path}:{n}", line


def read_pairs(path):
    """Yield ('<path>:<line>', first word, the rest) of each line that is not empty."""
    for where, line in read_filled(path):
        word, *rest = line.strip().split(maxsplit=1)
        yield where, word, rest[0] if rest else ""


def read_row(line, **fields):
    """Return the JSON object (dict) of a line, NaN as None; fields, ValueError: as in check_row."""
    try:
        row = json.loads(line, parse_constant=lambda name: None)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"no JSON object on one line ({getattr(e, 'msg', e)})") from None
    if not isinstance(row, dict):
        raise ValueError(f"no JSON object, but {line.strip()[:40]}")
    check_row(row, **fields)
    return row


def check_row(row, **fields):
    """Raise ValueError where a field is missing or of another type; fields: name=type or types."""
    for name, kind in fields.items():
        if name not in row:
            raise ValueError(f'"{name}" is missing among {", ".join(row)[:80]}')
        if not isinstance(row[name], kind):
            no_string = ", not a string" if kind is str else ""
            raise ValueError(f'"{name}" is {json.dumps(row[name])[:40]}{no_string}')


def read_jsonl(path, needs="", **fields):
    """Yield ('<path>:<line>', row) of each line that is not empty; ValueError names the line.

    fields: as for check_row; needs: the same in words.
    """
    needs = needs or ", ".join(f'"{name}"' for name in fields)
    for where, line in read_filled(path):
        try:
            row = read_row(line, **fields)
        except ValueError as e:
            raise ValueError(f"{where}: {e}; each line is a JSON object with {needs}") from None
        yield where, row


def read_toml(name):
    """Return the tables (dict) of a TOML file of the repository, as assets/voices.toml."""
    TABLES.add(name)
    with open(f"{FOLDER}/{name}", "rb") as f:
        return tomllib.load(f)


# ---- folders

def is_hidden(name):
    """Is it what a system or an editor left, as ._x, .ipynb_checkpoints?"""
    return name.startswith(".") or name == "__MACOSX"


def find_files(folder, suffixes):
    """Return the sorted paths (str) of files at any depth that end in suffixes (lower case).

    Hidden ones are left out, links are followed.
    """
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(root) in seen:  # a link that goes round
            folders.clear()
            continue
        seen.add(os.path.realpath(root))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [os.path.join(root, name) for name in names
                  if name.lower().endswith(tuple(suffixes)) and not is_hidden(name)]
    return sorted(found)


def find_audio(folder):
    """Return {file name without its ending, accents composed (NFC): path} of the recordings."""
    found = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
        if suffix.lower() in AUDIO_SUFFIXES and not is_hidden(name):
            this = AUDIO_SUFFIXES.index(suffix.lower()), os.path.join(folder, name)
            found[stem] = min(this, found.get(stem, this))
    return {stem: path for stem, (_, path) in found.items()}


def find_path(folder, name):
    """Return the path of a file that a list names from its folder, whether or not it is there.

    Backslashes (Windows) and accents composed otherwise (macOS) don't matter.
    """
    slashed = name.replace("\\", "/")
    names = [name, slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))]
    paths = [os.path.join(folder, other) for other in names]
    return next(filter(os.path.exists, paths), paths[0])


def own_file(name):
    """Return the path of a text of ours: as named from here, else beside this module."""
    beside = os.path.join(FOLDER, name)
    return beside if os.path.isfile(beside) and not os.path.exists(name) else name


# ---- writing: a file is whole or not there

def write_bytes(path, data):
    with open(f"{path}.tmp", "wb") as f:
        f.write(data)
    os.replace(f"{path}.tmp", path)


def write_text(path, text):
    write_bytes(path, text.encode(errors="replace"))  # half a surrogate pair becomes ?


def write_json(path, value, indent=None):
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent))


def write_jsonl(path, rows):
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def sha256_file(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
