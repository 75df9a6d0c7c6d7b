"""Settings of a script: config files and --name=value over the script's own globals.

    python train_align.py config/w2_frozen.py --batch_size=32     # later arguments win; --help lists the settings
"""
import ast
import difflib
import math
import os
import re
import signal
import sys
from pathlib import Path
from contextlib import contextmanager

WORDS = ("api_key", "maker", "name", "prompt", "question")  # a str that is none of these may be a path
KINDS = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a string"}


def fail(message):
    """Print `<script>.py: message` as one line on stderr and exit with code 2: for mistakes of the user."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(str(message).splitlines())}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def user_input(*more):
    """Turn ValueError, OSError and `more` into one line: for a few statements that read what a user named."""
    try:
        yield
    except (ValueError, OSError, *more) as e:
        fail(e)


def configure(globals_dict, argv=None):
    """Apply config files and --name=value to a script's settings, print each change, return dict of all settings.

    globals_dict: the script's globals(), changed in place; a setting is a lower-case int, float, bool or str in it.
    argv: list of str, default sys.argv[1:]. Anything wrong ends in fail() before anything is changed.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "-h" in argv or "--help" in argv:
        print_help(globals_dict)
    defaults = {k: v for k, v in globals_dict.items() if type(v) in KINDS and k == k.lower() and not k.startswith("_")}
    settings, origin = dict(defaults), {}
    for arg in argv:
        if arg.startswith("--") and "=" in arg:
            changes = [(*arg[2:].split("=", 1), "command line")]  # only the first = splits
        elif arg.startswith("-") or not arg.endswith(".py"):
            fail(f"'{arg}': write a setting as --name=value, a config file ends in .py (--help lists the settings)")
        else:
            changes = read_config_file(arg)
        for name, value, where in changes:
            if name not in defaults:
                fail(f"{where}: unknown setting '{name}'{nearest(name, defaults)} (--help lists them)")
            settings[name], origin[name] = convert(name, value, type(defaults[name]), where), where
    for name, where in origin.items():
        is_first = os.environ.get("RANK", "0") == "0" and globals_dict.get("__name__") != "__mp_main__"
        if settings[name] != defaults[name] and is_first:  # ranks and worker processes print nothing
            value = "***" if name == "api_key" else settings[name]
            print(f"setting {name} = {value!r} (default {defaults[name]!r}; {where})")
    globals_dict.update(settings)
    return settings


def convert(name, value, kind, where):
    """Return `value` as `kind`; from the command line it is text still, from a file it has a type already."""
    try:
        parse = {"True": True, "False": False}.__getitem__ if kind is bool else kind
        new = parse(value) if where == "command line" or (kind, type(value)) == (float, int) else value
        new = expand_home(new) if type(new) is str and name not in WORDS else new
        if type(new) is kind and (kind is not float or math.isfinite(new)):
            return new
    except (KeyError, ValueError, OverflowError):
        pass
    fail(f"{where}: {name}={value} is not {KINDS[kind]}")


def expand_home(text):
    """Put the home folder where a path, or one of `a,b` or `name=path`, starts with ~; fail() where nobody knows it."""
    def expand(match):
        home = os.path.expanduser(match[2])
        if home == "~":
            fail(f"{text}: nobody knows the home folder ~ (HOME is not set): write the path in full")
        return match[1] + home
    return re.sub(r"((?:^|[,=])\s*)(~[^/,=*\s]*)", expand, text)


def read_config_file(path):
    """Return [(name, value, 'path:line')] of a file of `name = value` lines; a value may use the names above it."""
    values, changes, where = {"__builtins__": {}}, [], path
    try:
        for node in ast.parse(Path(path).read_text(encoding="utf-8-sig"), path).body:
            where = f"{path}:{node.lineno}"
            if isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets):
                exec(compile(ast.Module([node], []), path, "exec"), values)
                changes += [(target.id, values[target.id], where) for target in node.targets]
            elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):  # a docstring may stand
                fail(f"{where}: a config file holds plain 'name = value' lines only")
        return changes
    except OSError as e:
        fail(f"{path}: no such config file ({e.strerror}){nearest(path, map(str, Path(path).parent.glob('*.py')))}")
    except Exception as e:  # whatever a line of the file raises: the file is the user's, so is the mistake
        fail(f"{where}: no config file of 'name = value' lines ({type(e).__name__}: {e})")


def nearest(name, names):
    """Return ', did you mean <the closest of names>?' or '' when none is close."""
    return "".join(f", did you mean {match}?" for match in difflib.get_close_matches(name, names, n=1))


def print_help(globals_dict):
    """Print the script's docstring and its config block (from '# config:' to 'config = configure('), then exit 0."""
    source = Path(globals_dict.get("__file__") or sys.argv[0]).read_text(encoding="utf-8")
    block = source.partition("\n# config:")[2].partition("config = configure(")[0]
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` is no error
    print(f"{(globals_dict.get('__doc__') or '').strip()}\n\n# config:{block.rstrip()}")
    sys.exit(0)
