"""What made a result: the code, its commit, the machine, the versions; and whether made data are up to date."""
import ast
import hashlib
import importlib.util
import inspect
import json
import os
import platform
import shutil
import subprocess
import sys
import textwrap

from configurator import fail
from files import write_json

FOLDER = os.path.dirname(os.path.abspath(__file__))


def code_sums():
    """Return {file name: checksum} of this repository's files that are loaded; comments and docstrings don't count."""
    paths = {os.path.abspath(getattr(module, "__file__", None) or "") for module in list(sys.modules.values())}
    own = [path for path in sorted(paths) if os.path.dirname(path) == FOLDER and os.path.isfile(path)]
    return {os.path.basename(path): code_sum(path) for path in own}


def changed_code(sums):
    """Return the names of the files whose code is no longer that of code_sums(), `sums` of an earlier run."""
    paths = {name: os.path.join(FOLDER, name) for name in sums}
    here = f"{sys.version_info.minor}-"
    return [name for name, path in paths.items() if not os.path.isfile(path)
            or sums[name].startswith(here) and code_sum(path) != sums[name]]  # another Python's can't be compared


def code_sum(path):
    """Return a checksum of what a Python file does: of its source without comments and docstrings."""
    with open(path, encoding="utf-8") as f:
        return source_sum(f.read())


def code_sum_of(*objects):
    """Return a checksum of what functions, classes or modules do, for files that depend on these alone."""
    return "".join(source_sum(textwrap.dedent(inspect.getsource(each))) for each in objects)


def source_sum(source):
    """Return a checksum of Python source without comments and docstrings, behind this Python's minor version."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        can_have_one = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if can_have_one and ast.get_docstring(node, clean=False):
            node.body[0].value.value = ""
    text = ast.dump(tree, annotate_fields=False)  # another minor version may write it otherwise
    return f"{sys.version_info.minor}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def git_commit():
    """Return the commit of this folder, with -dirty when a Python file differs from it; '' without git."""
    if not shutil.which("git"):
        return ""
    git = ["git", "-C", FOLDER]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return ""
    changed = subprocess.run([*git, "status", "--porcelain", "--", "*.py"], capture_output=True, text=True).stdout
    return head.stdout.strip() + ("-dirty" if changed.strip() else "")


def device_name(device):
    """Return the name of a GPU, or of the CPU with its instructions for matrices."""
    import torch
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    name, flags = platform.processor() or platform.machine(), ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as f:
            rows = dict(line.split(":", 1) for line in f.read().split("\n\n")[0].splitlines() if ":" in line)
        rows = {key.strip(): value.strip() for key, value in rows.items()}
        name, flags = rows.get("model name", name), rows.get("flags", "")
    wanted = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags.split()]
    return " ".join([f"{torch.get_num_threads()} threads of {name}", *wanted])


def provenance(device):
    """Return what a figure is of: commit, checksums of the code, dtype, device, versions."""
    import torch
    from device import compute_dtype
    dtype = str(compute_dtype(device)).removeprefix("torch.")
    return {"git_commit": git_commit(), "code": code_sums(), "dtype": dtype, "device": device_name(device),
            "python": platform.python_version(), "torch": torch.__version__}


def need(*packages):
    """Stop at once when a package is missing that only the end of a run imports."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        fail(f"this run needs {', '.join(missing)}: pip install {' '.join(missing)}")


# ---- the one resume rule of the prepare scripts: meta.json is written last

def is_made(folder, settings, inputs):
    """Return whether folder/meta.json says that these settings, inputs and this code made its files.

    settings: dict; inputs: {name: sha256 or other JSON value that changes with the input}. Its files must be there
    with the sizes that meta.json names.
    """
    try:
        with open(os.path.join(folder, "meta.json"), encoding="utf-8") as f:
            meta = json.load(f)
        is_same = (meta["settings"], meta["inputs"]) == (settings, inputs) and not changed_code(meta["code"])
        return is_same and all(os.path.getsize(os.path.join(folder, name)) == n for name, n in meta["files"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def note_made(folder, settings, inputs, files, **more):
    """Write folder/meta.json, which makes the folder whole: is_made()'s values, the sizes of files, and `more`."""
    sizes = {name: os.path.getsize(os.path.join(folder, name)) for name in files}
    meta = {"settings": settings, "inputs": inputs, "code": code_sums(), "files": sizes, **more}
    write_json(os.path.join(folder, "meta.json"), meta, indent=2)
