"""The folder that a prepare script makes: kept while it is up to date, else made anew."""
import json
import shutil
import sys
from pathlib import Path

from configurator import user_input
from files import own_file, sha256_file, write_json
from record import is_made, note_made


def sums(*paths):
    """Return {path: sha256} of files; a text of the repository is found from any folder."""
    return {str(path): sha256_file(own_file(path)) for path in paths}


def is_own(folder, script):
    """Return True if a script made a folder, or nobody put anything in it."""
    try:
        return json.loads((folder / "meta.json").read_bytes())["script"] == script
    except (OSError, ValueError, KeyError, TypeError):
        return not any(folder.glob("*"))


def make_folder(out_dir, settings, find_inputs, make, *names):
    """Make a folder, unless an earlier run made it with these settings, inputs and this code.

    find_inputs(): {input: checksum or version}. make(): writes into out_dir -> (the names of its
    files, {count's name: value}). names: of an earlier run's folders, removed first. ValueError,
    OSError and RuntimeError (soundfile's) end in one line.
    """
    folder, script = Path(out_dir), Path(sys.argv[0]).name
    with user_input(RuntimeError):
        inputs = find_inputs()
        if is_made(out_dir, settings, inputs):
            return print(f"{out_dir} is up to date")
        if not is_own(folder, script):
            raise ValueError(f"{folder} was not made by this script: set another out_dir, or "
                             "remove it")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "meta.json", {"script": script})
        for name in names:
            shutil.rmtree(folder / name, ignore_errors=True)
        files, counts = make()
        note_made(out_dir, settings, inputs, files, script=script, **counts)
    print(f"{out_dir}: {', '.join(f'{name} {value}' for name, value in counts.items())}")
