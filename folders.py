"""The folder that a prepare script makes: kept while it is up to date, else made anew."""
import shutil
from pathlib import Path

from tqdm import tqdm

from configurator import user_input
from files import own_file, sha256_file, write_json
from record import is_made, note_made


def sums(*paths):
    """Return {path: sha256} of files; a text of the repository is found from any folder."""
    bar = tqdm(paths, desc="checksums", unit=" files", leave=False, disable=None)
    return {str(path): sha256_file(own_file(path)) for path in bar}


def make_folder(out_dir, settings, find_inputs, make, *names):
    """Make a folder, unless an earlier run made the same of the same.

    find_inputs(): {input: checksum or version}. make(): writes into out_dir -> (the names of its
    files, {count's name: value}). names: files and folders of an earlier run, removed first.
    ValueError and OSError of either end in one line. meta.json is {} until all is there.
    """
    folder, meta = Path(out_dir), Path(out_dir, "meta.json")
    with user_input():
        inputs = find_inputs()
        if is_made(out_dir, settings, inputs):
            return print(f"{out_dir} is up to date")
        if any(folder.glob("*")) and not meta.exists():
            raise ValueError(f"{folder} was not made by this script: set another out_dir, or "
                             "remove it")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(meta, {})
        for name in names:
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).unlink(missing_ok=True)
        files, counts = make()
        note_made(out_dir, settings, inputs, files, **counts)
    print(f"{out_dir}: {', '.join(f'{name} {value}' for name, value in counts.items())}")
