"""Settings of a script: config files and --name=value change the script's own globals.

    python train_align.py config/w2_frozen.py --batch_size=32   # later ones win; --help lists them
"""
import difflib
import math
import os
import sys
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

KINDS = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a string"}


def fail(message):
    """Print `<script>.py: message` as one line on stderr, exit with 2: for a user's mistake."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(str(message).splitlines())}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def user_input(*more):
    """Turn ValueError, OSError and `more` into fail(), around what reads a user's files."""
    try:
        yield
    except (ValueError, OSError, *more) as e:
        fail(e)


def configure(globals_dict, argv=None):
    """Apply config files and --name=value to a script's settings, print changes -> dict of all.

    globals_dict: the script's globals(), changed in place; a setting is an int, float, bool or str
    of a lower-case name. A mistake ends in fail(), before any change.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv:
        print_help(globals_dict)
    defaults = {name: value for name, value in globals_dict.items()
                if type(value) in KINDS and name == name.lower() and not name.startswith("_")}
    settings, origin = dict(defaults), {}
    for name, value, where in chain.from_iterable(map(read_argument, argv)):
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            fail(f"{where}: unknown setting '{name}'{hint} (--help lists them)")
        settings[name] = convert(name, value, type(defaults[name]), where)
        origin[name] = where
    is_worker = globals_dict.get("__name__") == "__mp_main__"
    if os.environ.get("RANK", "0") == "0" and not is_worker:  # one process alone prints
        for name, where in origin.items():
            if settings[name] != defaults[name]:
                value = "***" if name == "api_key" else settings[name]
                print(f"setting {name} = {value!r} (default {defaults[name]!r}; {where})")
    globals_dict.update(settings)
    return settings


def read_argument(arg):
    if arg.startswith("--") and "=" in arg:
        name, value = arg[2:].split("=", 1)  # a value may hold a = too
        return [(name, value, "command line")]
    if arg.startswith("-") or not arg.endswith(".py"):
        fail(f"'{arg}': write --name=value or a config file's .py (--help lists the settings)")
    return read_config_file(arg)


def read_config_file(path):
    """Return [(name, value, path)] of the lines `name = value`; they may use names above."""
    values = {"__builtins__": {}}
    try:
        code = compile(Path(path).read_text(encoding="utf-8-sig"), path, "exec")
        exec(code, values)
    except OSError as e:
        fail(f"{path}: no such config file ({e.strerror})")
    except Exception as e:  # whatever a line raises: the file is the user's
        fail(f"{path}: no config file of 'name = value' lines ({type(e).__name__}: {e})")
    return [(name, value, path) for name, value in values.items() if not name.startswith("__")]


def convert(name, value, kind, where):
    """Return `value` as `kind`; from the command line it is a str."""
    new = value
    try:
        if kind is bool and where == "command line":
            new = {"True": True, "False": False}[value]
        elif where == "command line" or (kind, type(value)) == (float, int):
            new = kind(value)
    except (KeyError, ValueError, OverflowError):
        new = None
    if type(new) is not kind or kind is float and not math.isfinite(new):
        fail(f"{where}: {name}={value} is not {KINDS[kind]}")
    is_path = kind is str and name not in ("api_key", "prompt")
    return os.path.expanduser(new) if is_path else new  # no shell does, behind an =


def print_help(globals_dict):
    source = Path(globals_dict["__file__"]).read_text(encoding="utf-8")
    block = source.partition("\n# config:")[2].partition("config = configure(")[0]
    print(f"{globals_dict['__doc__'].strip()}\n\n# config:{block.rstrip()}")
    sys.exit(0)
