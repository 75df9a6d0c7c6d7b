"""The house rules that a machine can check: sizes, copies that stay alike, commands that exist, imports, paths."""
import ast
import fnmatch
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = {"model.py": 678, "audio.py": 470, "tokenizer.py": 330, "data.py": 308, "configurator.py": 92,
           "augment.py": 60, "optim.py": 76, "decode.py": 150, "sounds.py": 260, "audiobench.py": 340,
           "train_sft.py": 580, "prepare_instruct.py": 640, "sources.py": 180,
           "train_align.py": 528, "train_base.py": 644, "train_*.py": 420,
           "eval_bench.py": 440, "prepare_librispeech.py": 625, "prepare_text.py": 496, "documents.py": 280,
           "conversations.py": 138, "prepare_chat.py": 231,
           "prepare_synthetic.py": 400, "prepare_*.py": 320, "serve.py": 523, "chat.py": 152, "talk.py": 283,
           "engine.py": 155,
           "bench.py": 435, "config/*.py": 40, "README.md": 300}
# lines; no other Python file outside tests may appear. Over STYLE's: data.py (folders mixed, batches by tokens),
# train_align.py (W1's tones and verdict beside W2; online; Muon for two modules), prepare_librispeech.py (downloads,
# three layouts, speeds, features by processes, ranks or a GPU), prepare_text.py (the grammar beside text files,
# folders and JSON; documents, which train_base.py has to read and a kill may interrupt), documents.py (reading,
# shards, packing), prepare_synthetic.py (three engines), audio.py (masks, pauses), serve.py (limits of everything
# that a request may hold), train_base.py (chats; documents, what follows from depth; conversations),
# prepare_instruct.py (two benches, practice), chat.py (several turns), bench.py (serving; training and decoding
# beside nanochat and transformers), model.py (the loss in chunks; runs killed at any moment), tokenizer.py
# (nanochat's files, read and written). Not of STYLE's: prepare_spliced.py (a kind of training data of its own)
TOTALS = {"tests": 6100, "all else": 10220}
MODULES = {"configurator": set(), "tokenizer": set(), "transcripts": set(), "scoring": {"transcripts"},
           "model": {"data"}, "data": set(), "augment": set(),
           "optim": set(), "sources": set(), "audio": {"model", "data"}, "decode": {"model"}, "sounds": set(),
           "talk": {"audio", "augment", "decode", "model", "tokenizer", "transcripts"}, "engine": {"talk"},
           "documents": {"data"}, "conversations": {"documents", "tokenizer"},
           "audiobench": {"audio", "data", "decode", "tokenizer", "transcripts"}}
COPIED = ("set_up", "get_lr", "find_last", "log", "save_checkpoint")  # the same text in every train_*.py
LAZY = {"pyarrow", "wandb", "webdataset", "fastapi", "uvicorn", "matplotlib", "jiwer", "soundfile", "soxr", "num2words",
        "faster_whisper"}
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


def n_lines(path):
    """Return the number of lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


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
    """Broken: a file outgrew what one reader can hold, or one appeared that the design doesn't name (utils.py)."""
    python = [path for path in tracked("*.py") if not short(path).startswith("tests/")]
    assert python
    over = []
    for path in python + tracked("README.md"):
        limits = [limit for pattern, limit in BUDGETS.items() if fnmatch.fnmatch(short(path), pattern)]
        if not limits or n_lines(path) > limits[0]:
            over.append(f"{short(path)}: {n_lines(path)} lines, budget {limits[0] if limits else 'none'}")
    assert not over, "; ".join(over)
    assert sum(map(n_lines, python)) <= TOTALS["all else"]
    assert sum(map(n_lines, tracked("tests/*.py"))) <= TOTALS["tests"]


def test_lines_and_functions_are_short():
    """Broken: a line over 120 columns or a function over 60 lines."""
    long = [f"{short(path)}:{i}: {len(line)} columns" for path in tracked("*.py", "*.sh")
            for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if len(line) > 120]
    for path in tracked("*.py"):
        for node in ast.walk(parse(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 60:
                long.append(f"{short(path)}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert not long, "\n".join(long)


def test_copied_parts_are_identical():
    """Broken: rank set-up, get_lr, log or save_checkpoint drifted apart between the training scripts."""
    copies = {}
    scripts = tracked("train_*.py")
    for path in scripts:
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in parse(path).body:
            if isinstance(node, ast.FunctionDef) and node.name in COPIED:
                copies.setdefault(node.name, {})[short(path)] = "\n".join(lines[node.lineno - 1:node.end_lineno])
    if len(scripts) < 2:
        pytest.skip("fewer than two training scripts")
    for name in COPIED:
        missing = [short(path) for path in scripts if short(path) not in copies.get(name, {})]
        assert not missing, f"{name}() is missing in {', '.join(missing)}"
        assert len(set(copies[name].values())) == 1, f"{name}() differs between {', '.join(copies[name])}"


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
    """Broken: a script imports a script, a module imports what it may not, or a heavy package loads at the top."""
    wrong = []
    own = {path.stem for path in tracked("*.py") if path.parent == ROOT}
    for path in tracked("*.py"):
        if path.parent != ROOT:
            continue
        used = imports(ast.walk(parse(path))) & own
        allowed = MODULES.get(path.stem, set(MODULES))
        if used - allowed:
            wrong.append(f"{short(path)} imports {', '.join(sorted(used - allowed))}")
        at_top = [node for node in parse(path).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        if imports(at_top) & LAZY:
            wrong.append(f"{short(path)} imports {', '.join(imports(at_top) & LAZY)} at the top")
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
