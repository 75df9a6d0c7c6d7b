"""Real recordings that questions can be made of: public sets, read from folders you have.

assets/sources.toml describes each set; any corpus of people that corpora.py reads will do too.
"""
import re
from functools import cache
from pathlib import Path

from corpora import read_corpus
from files import AUDIO_SUFFIXES, find_files, read_toml
from questions import NOBODY

ADULT = 16  # years; under CHILD a child
CHILD = 13


@cache
def read_sources(setting, is_held_out):
    """Return clips of "name=folder, ...": {"path", "labels": {task: answer}}, a part of each set.

    is_held_out: True for the bench's part, False for training's. Prints each set's licence.
    ValueError: no such set or clip.
    """
    sets = read_toml("assets/sources.toml")
    clips = []
    for part in filter(None, setting.split(",")):
        name, _, folder = part.strip().partition("=")
        if name == "people":
            found, licence = list_people(folder, is_held_out), "see there"
        elif name in sets:
            found, licence = list_clips(folder, is_held_out, **sets[name]), sets[name]["licence"]
        else:
            raise ValueError(f"sources: '{name}' is none of people, {', '.join(sets)}")
        print(f"{name}: {len(found)} recordings, {licence}")
        clips += found
    return clips


def list_clips(folder, is_held_out, labels, held_out, words, address, example, **_):
    """Return a part of a set's clips; arguments: see sources.toml."""
    clips = []
    for path in find_files(folder, AUDIO_SUFFIXES):
        name = f"/{Path(path).as_posix()}"
        match = re.search(labels, name)
        if match and bool(re.search(held_out, name)) == is_held_out:
            found = {}
            for task, value in match.groupdict().items():
                if value:
                    found[task] = words.get(task, {}).get(value, value)
            if "thing" in found:
                found |= {"sentence": NOBODY, "person": NOBODY}
            elif said := found.get("digit", found.get("command")):
                found["sentence"] = said
            clips.append({"path": path, "labels": found})
    if is_held_out and not clips:
        raise ValueError(f"sources: {folder}: no recording such as {example}, from {address}")
    return clips


def list_people(folder, is_held_out):
    """Return the clips of speakers of known sex, of the split test or of the others."""
    clips = []
    for clip in read_corpus(folder)[0]:
        info = clip["info"]
        sex, age = info.get("sex"), info.get("age", ADULT)
        if sex and info["text"] and info["split"].startswith("test") == is_held_out:
            labels = {"kind": "speech", "sentence": info["text"]}
            if age >= ADULT or age < CHILD:
                names = ("a man", "a woman") if age >= ADULT else ("a boy", "a girl")
                labels["person"] = names[sex == "female"]
            clips.append(info | {"path": clip["path"], "labels": labels, "quality": "plain",
                                 "voice": info["speaker"]})
    return clips
