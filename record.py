"""What made a result: code, commit, machine, versions; is it, or a folder, up to date?"""
import ast
import hashlib
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from configurator import fail, user_input
from files import FOLDER, TABLES, own_file, sha256_file, write_json

PYTHON = f"{sys.version_info.minor}-"  # two minor versions may parse a file differently


def code_sum(path):
    """Return a checksum of a table, or a Python file without comments and docstrings."""
    if path.suffix != ".py":
        return PYTHON + sha256_file(path)
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        can_have_one = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if can_have_one and ast.get_docstring(node, clean=False):
            node.body[0].value.value = ""
    text = ast.dump(tree, annotate_fields=False)
    return PYTHON + hashlib.sha256(text.encode()).hexdigest()[:12]


def code_sums():
    """Return {name: code_sum} of the files and tables of this repository that are loaded."""
    files = {getattr(module, "__file__", 0) or "" for module in list(sys.modules.values())}
    paths = [Path(file).resolve() for file in files if file.endswith(".py")]
    names = [path.name for path in paths if path.parent == Path(FOLDER) and path.is_file()]
    return {name: code_sum(Path(FOLDER, name)) for name in sorted([*names, *TABLES])}


def changed_code(sums):
    """Return the names of the files that differ from `sums`, code_sums() of an earlier run."""
    paths = {name: Path(FOLDER, name) for name in sums}
    return [name for name, then in sums.items() if not paths[name].is_file()
            or then.startswith(PYTHON) and code_sum(paths[name]) != then]


def git_commit():
    """Return this folder's commit, '' without git; code_sums() tell what is changed since."""
    if not shutil.which("git"):
        return ""
    command = ["git", "rev-parse", "--verify", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, cwd=FOLDER).stdout.strip()


def provenance(device, infers=False):
    """Return what a figure depends on (dict): commit, code, dtype, device, versions.

    infers: it is one of inference, perhaps in int8.
    """
    import torch
    from device import compute_dtype, uses_int8
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{torch.get_num_threads()} threads of {platform.machine()}"
    dtype = "int8" if infers and uses_int8() else str(compute_dtype(device)).removeprefix("torch.")
    return {"git_commit": git_commit(), "code": code_sums(), "dtype": dtype, "device": name,
            "python": platform.python_version(), "torch": torch.__version__}


def need(package):
    """Stop at once where a package is missing that is imported late."""
    if importlib.util.find_spec(package) is None:
        fail(f"this run needs {package}: pip install {package}")


# ---- the resume rule of prepare scripts and evaluations: the record is written last

def is_made(folder, settings, inputs, record="meta.json"):
    """Return the record (dict) if these settings, inputs and this code made it, else None.

    settings: dict; inputs: {name: sha256 or another JSON value that changes with the input}. The
    files that it names must be there in their sizes.
    """
    try:
        meta = json.loads(Path(folder, record).read_bytes())
        now = settings, inputs, sizes_of(folder, meta["files"])
        is_same = (meta["settings"], meta["inputs"], meta["files"]) == now
        return meta if is_same and not changed_code(meta["code"]) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # missing, cut short, or of another kind


def note_made(folder, settings, inputs, files, record="meta.json", **more):
    """Write folder/<record>: is_made()'s settings and inputs, the sizes of files, and `more`."""
    meta = {"settings": settings, "inputs": inputs, "code": code_sums(),
            "files": sizes_of(folder, files), **more}
    write_json(Path(folder, record), meta, indent=2)


def sizes_of(folder, names):
    return {name: Path(folder, name).stat().st_size for name in names}


# ---- the folder that a prepare script makes

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
