"""Real recordings that questions can be made of: public sets, read from folders you have.

assets/sources.toml describes each set. A folder may hold a part of a set, nested deeper.
"""
import re
import tomllib
import zlib
from collections import Counter
from functools import cache
from pathlib import Path

from files import AUDIO_SUFFIXES, find_files, own_file, read_pairs
from transcripts import NoSpokenForm, normalize_transcript


@cache
def read_sets():
    """Return {name: fields} of sources.toml."""
    return tomllib.loads(Path(own_file("assets/sources.toml")).read_text(encoding="utf-8"))


def read_sources(setting):
    """Return the held-out clips of the sets in "name=folder, ...", rows of list_clips().

    The word non_commercial admits sets whose licence forbids commercial use. A clip whose text has
    no spoken form is left out and counted. ValueError: an unknown set, its licence, or no clip.
    """
    parts = [part.strip() for part in setting.split(",") if part.strip()]
    clips, dropped = [], Counter()
    for name, _, folder in (part.partition("=") for part in parts if part != "non_commercial"):
        found = list_clips(name, folder)
        licence = read_sets()[name]["licence"]
        if "-NC" in licence and "non_commercial" not in parts:
            raise ValueError(f"{name}: {licence} forbids commercial use: if yours is none, add the "
                             "word non_commercial to sources")
        for clip in found:
            if clip["split"] == "test" and (clip["labels"] or clip["text"]):
                try:
                    clips.append(clip | {"text": normalize_transcript(clip["text"])})
                except NoSpokenForm as e:
                    dropped[e.reason] += 1
    if dropped:
        print(f"sources: left out {dict(dropped)}")
    if not clips:
        raise ValueError(f"sources={setting}: no held-out clip there")
    return clips


def list_clips(name, folder):
    """Return the clips of a set below a folder, sorted by path, each speaker in one split.

    A row: {"path", "speaker", "split": train or test, "text": "" where unknown, "labels": {task:
    answer}}. ValueError: an unknown set, or no clip.
    """
    known = read_sets().get(name)
    if not known:
        raise ValueError(f"{name} is none of the sets {', '.join(read_sets())}")
    texts = read_tables(folder, known.get("texts"))
    listed = {Path(key).stem for key in read_tables(folder, known.get("test_list"))}
    clips, held_out = [], set()
    for path, match in find_recordings(folder, known):
        clip = read_name(known, match)
        text = texts.get(path.stem, clip["text"]).lower()
        clips.append({"path": str(path), **clip, "text": text})
        if is_test(known, path, clip["speaker"], listed):
            held_out.add(clip["speaker"])
    for clip in clips:  # some recordings of ESC-50 are in a fold of train and in test's
        clip["split"] = "test" if clip["speaker"] in held_out else "train"
    return sorted(clips, key=lambda clip: clip["path"])


def find_recordings(folder, known):
    """Return [(Path, match of the pattern)], each name once."""
    found, n_pointers = {}, 0
    paths = [Path(path) for path in find_files(folder, AUDIO_SUFFIXES)]
    for path in sorted(paths, key=lambda path: AUDIO_SUFFIXES.index(path.suffix.lower())):
        name = f"{path.parent.name}/{path.stem}" if "/" in known["pattern"] else path.stem
        match = re.fullmatch(known["pattern"], name)
        if not match or name in found or not path.is_file():
            continue
        if path.stat().st_size < 200 and path.read_bytes().startswith(b"version https://git-lfs"):
            n_pointers += 1
        else:
            found[name] = path, match
    if not found:
        lfs = f"; {n_pointers} files are Git LFS pointers: run git lfs pull" if n_pointers else ""
        raise ValueError(f"{folder}: no such recording: expected {known['example']}, from "
                         f"{known['address']}{lfs}")
    return list(found.values())


def read_name(known, match):
    """Return {"speaker", "text", "labels"} by what the groups of a name mean."""
    values = {}
    for group, value in match.groupdict(default="").items():
        words = known.get("words", {}).get(group, {value: value})
        value = words[int(value)] if isinstance(words, list) else words.get(value)
        if value:
            values[group] = value
    speaker, text = values.pop("speaker", ""), values.pop("text", "")
    return {"speaker": speaker, "text": text, "labels": values}


def is_test(known, path, speaker, listed):
    """Return whether a recording is held out; listed: the names in the set's test_list."""
    if "test" in known:
        return bool(re.search(known["test"], path.resolve().as_posix()))
    if listed:
        return path.stem in listed
    return zlib.crc32(speaker.encode()) % 5 == 0  # a fifth of all names, always the same


def read_tables(folder, ending):
    """Return {first word: the rest} of all files below a folder whose path ends so."""
    table = {}
    for path in find_files(folder, (ending.rpartition("/")[2],)) if ending else ():
        if path.lower().endswith(ending):
            table |= {key: rest for _, key, rest in read_pairs(path)}
    return table
