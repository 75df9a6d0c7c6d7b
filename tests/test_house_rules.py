"""The house rules that a machine can check: sizes, commands that exist, imports, paths."""
import ast
import fnmatch
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = {"*.py": 40_000, "README.md": 24_000, "chat.html": 18_700}  # bytes of one file
TOTALS = {"tests": 432_000, "all else": 610_000}  # bytes of Python
# Sizes of 2026-11-29, which nothing may outgrow. STYLE.md wants 20 kB a file, 12 kB of README, 240 and 340 kB in all:
# the redesign's work (the issue "One sitting").
LAZY = {"pyarrow", "wandb", "webdataset", "fastapi", "uvicorn", "matplotlib", "jiwer", "soundfile", "soxr", "av",
        "num2words", "faster_whisper"}
COMMAND = re.compile(  # a script after python, bash or torchrun; its arguments up to a comment or ` | ; & >
    r"(?:\bpython[\d.]* (?:-[uBO] )*|\bbash |\btorchrun (?:-\S+ )*)([\w./-]+\.(?:py|sh))((?:(?! #)[^`|;&>\n])*)")


def tracked(*patterns):
    """Return the files (Path) of the repository, ignored ones left out, that fit one of the patterns."""
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    names = listing.stdout.splitlines()
    if listing.returncode:  # an unpacked archive has no git
        names = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*")]
        names = [name for name in names if not re.match(r"\.venv/|\.git/|data/|out/|.*__pycache__", name)]
    return [ROOT / name for name in names
            if (ROOT / name).is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def short(path):
    """Return a path as it is written from the repository's folder."""
    return path.relative_to(ROOT).as_posix()


def parse(path):
    """Return the syntax tree of a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"), short(path))


def imports(nodes):
    """Return the top names of the modules that these nodes import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def settings(path):
    """Return the names of a script's settings: assigned between '# config:' and `config = configure(...)`."""
    block = path.read_text(encoding="utf-8").partition("\n# config:")[2].partition("config = configure(")[0]
    names = [node.targets[0].id for node in ast.parse("#" + block).body if isinstance(node, ast.Assign)]
    return {name for name in names if name == name.lower()}


def commands(text):
    """Return [(script, [argument, ...])] of the commands in a text; a line that ends in a backslash goes on."""
    text = re.sub(r"<[^>\n]*>", "X", re.sub(r"\\\n\s*", "", text))  # <run> is for the reader to fill in
    return [(script, [arg.strip("\"'.,:()") for arg in re.findall(r"(?:[^\s\"']|\"[^\"]*\"|'[^']*')+", rest)])
            for script, rest in COMMAND.findall(text)]



def wrong_command(script, args):
    """Return what is wrong with a command ('' if nothing): its script, a config file or a setting doesn't exist."""
    path = ROOT / script
    if not path.is_file():
        return f"{script} does not exist"
    for arg in args:
        name = arg[2:].split("=")[0]
        if path.suffix == ".sh":
            if arg.startswith("--") and script != "test.sh" and arg not in path.read_text(encoding="utf-8"):
                return f"{script} knows no {arg}"  # test.sh hands its arguments to pytest
        elif arg.startswith("--") and name != "help" and name not in settings(path):
            return f"{script} has no setting {name}"
        elif arg.startswith("config/") and not (ROOT / arg).is_file():
            return f"{arg} does not exist"
    return ""


def documents():
    """Return [(name, text)]: README, and the docstring of every script, module and config file."""
    files = tracked("*.py", "config/*.py")
    files = [path for path in files if not short(path).startswith("tests/")]
    rows = [(short(path), ast.get_docstring(parse(path)) or "") for path in files]
    return rows + [(short(path), path.read_text(encoding="utf-8")) for path in tracked("README.md")]


def test_every_file_keeps_its_budget():
    """Broken: a file, the tests or the whole outgrew what a reader can carry."""
    n_bytes = {path: path.stat().st_size for path in tracked("*.py", "README.md", "chat.html")}
    over = [f"{short(path)}: {n:,} bytes, budget {limit:,}" for path, n in n_bytes.items()
            for limit in [next(limit for pattern, limit in BUDGETS.items() if fnmatch.fnmatch(short(path), pattern))]
            if n > limit]
    python = {short(path): n for path, n in n_bytes.items() if path.suffix == ".py"}
    in_tests = sum(n for name, n in python.items() if name.startswith("tests/"))
    assert not over, "; ".join(over)
    assert in_tests <= TOTALS["tests"] and 100_000 < sum(python.values()) - in_tests <= TOTALS["all else"]


def test_lines_and_functions_are_short():
    """Broken: a line over 120 columns or a function over 60 lines."""
    long = [f"{short(path)}:{i}: {len(line)} columns" for path in tracked("*.py", "*.sh")
            for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if len(line) > 120]
    for path in tracked("*.py"):
        for node in ast.walk(parse(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 60:
                long.append(f"{short(path)}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert not long, "\n".join(long)


def test_every_command_exists():
    """Broken: README, a docstring or a config file tells the reader to type what doesn't exist."""
    readme = ROOT / "README.md"
    rows = [(document, command) for document, text in documents() for command in commands(text)]
    wrong = [f"{document}: {wrong_command(*command)}" for document, command in rows if wrong_command(*command)]
    if readme.exists():
        assert sum(document == "README.md" for document, _ in rows) >= 2
    else:  # it is written last: until then a docstring may name what is still to come
        wrong = [line for line in wrong if not line.endswith("does not exist")]
    assert rows
    assert not wrong, "\n".join(wrong)


def test_command_reader():
    """Broken: the reader of commands overlooks them, and the test above passes whatever the README says."""
    text = ("x `.venv/bin/python chat.py --ckpt=out/<run> --b=2`, or: python -u a.py config/b.py \\\n  --c='d e' # f\n"
            "torchrun --standalone --nproc_per_node=8 a.py --g=1 | x\nbash speedrun.sh --quick && python -m pip list")
    assert commands(text) == [("chat.py", ["--ckpt=out/X", "--b=2"]), ("a.py", ["config/b.py", "--c='d e"]),
                              ("a.py", ["--g=1"]), ("speedrun.sh", ["--quick"])]
    assert wrong_command("nowhere.py", []) and not wrong_command("test.sh", ["-m", "not slow"])
    assert "has no setting" in wrong_command("configurator.py", ["--batch_size=3"])
    assert "does not exist" in wrong_command("configurator.py", ["config/nowhere.py"])


def test_config_files_set_real_settings():
    """Broken: a config file doesn't open with its launch command, or sets what its script doesn't have."""
    wrong = []
    for path in tracked("config/*.py"):
        launch = [command for command in commands(ast.get_docstring(parse(path)) or "") if short(path) in command[1]]
        names = {node.targets[0].id for node in parse(path).body if isinstance(node, ast.Assign)}
        if not launch:
            wrong.append(f"{short(path)}: its docstring has no launch command")
        elif (ROOT / launch[0][0]).is_file() and names - settings(ROOT / launch[0][0]):
            wrong.append(f"{short(path)}: {launch[0][0]} has no {', '.join(names - settings(ROOT / launch[0][0]))}")
    assert not wrong, "\n".join(wrong)


def test_imports():
    """Broken: a script is imported, modules import each other in a circle, or a heavy package loads at the top."""
    files = {path.stem: path for path in tracked("*.py") if path.parent == ROOT}
    uses = {name: imports(ast.walk(parse(path))) & set(files) for name, path in files.items()}
    scripts = {name for name, path in files.items() if settings(path)}
    assert "serve" in scripts and "model" not in scripts
    wrong = [f"{name} imports the script {other}" for name in uses for other in uses[name] & scripts]
    rest = dict(uses)
    while leaves := [name for name in rest if not rest[name] & set(rest)]:
        for name in leaves:
            del rest[name]
    wrong += [f"a circle of imports: {', '.join(sorted(rest))}"] if rest else []
    for name, path in files.items():
        at_top = [node for node in parse(path).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        if imports(at_top) & LAZY:
            wrong.append(f"{name}.py imports {', '.join(imports(at_top) & LAZY)} at the top")
    assert not wrong, "\n".join(wrong)


def test_no_absolute_paths_or_registries():
    """Broken: a file names a folder of somebody's machine or a package registry's address, and fails elsewhere."""
    folders = r"(?<![\w.:/~<>)*}-])/(?:work|root|home|Users|tmp|opt|mnt|usr(?!/bin/env)|var|etc)\b"
    hosts = "|".join(name + r"\." + end for name, end in (
        ("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("download.pytorch", "org"), ("deb.debian", "org")))
    wrong = []
    for path in tracked("*"):
        if path.suffix in (".pt", ".pkl", ".png", ".wav", ".flac") or path == Path(__file__).resolve():
            continue
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            wrong += [f"{short(path)}:{i}: {match.group()}" for match in re.finditer(f"{folders}|{hosts}", line)]
    assert not wrong, "\n".join(wrong)
