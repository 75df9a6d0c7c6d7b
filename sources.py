"""Real recordings that questions can be made of: public sets, read from folders you have.

assets/sources.toml describes each set.
"""
import re
import tomllib
from functools import cache
from pathlib import Path

from files import AUDIO_SUFFIXES, find_files, own_file


@cache
def read_sources(setting):
    """Return the held-out clips of "name=folder, ...": {"path", "labels": {task: answer}}.

    A folder may hold a part of a set. Prints each set's licence. ValueError: no such set or clip.
    """
    sets = tomllib.loads(Path(own_file("assets/sources.toml")).read_text(encoding="utf-8"))
    clips = []
    for part in setting.split(","):
        name, _, folder = part.strip().partition("=")
        if name not in sets:
            raise ValueError(f"sources: '{name}' is none of {', '.join(sets)}")
        found = list_clips(folder, **sets[name])
        print(f"{name}: {len(found)} held-out recordings, {sets[name]['licence']}")
        clips += found
    return clips


def list_clips(folder, held_out, address, example, words=None, **_):
    """Return the held-out clips of a set below a folder; arguments: see sources.toml."""
    clips = []
    for path in find_files(folder, AUDIO_SUFFIXES):
        if match := re.search(held_out, f"/{Path(path).as_posix()}"):
            labels = {}
            for task, value in match.groupdict().items():
                if value:
                    table = (words or {}).get(task, {value: value})
                    labels[task] = table[int(value) if isinstance(table, list) else value]
            clips.append({"path": path, "labels": labels})
    if not clips:
        raise ValueError(f"sources: {folder}: no recording such as {example}, from {address}")
    return clips
