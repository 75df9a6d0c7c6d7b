"""Settings: config files and --name=value over a script's globals, and every mistake in them."""
import math
import os
import subprocess
import sys

import pytest

import configurator
from commands import ROOT, run, write_file


def settings():
    """The globals of a script just before configure()."""
    return {"__name__": "__main__", "_hidden": 1, "LIMIT": 3, "math": math, "fail": len,
            "batch_size": 8, "learning_rate": 1e-3, "use_lora": False, "out_dir": "out/a",
            "api_key": ""}


def refuse(capsys, argv):
    """Run configure(), which must exit 2 and change nothing; return its one line on stderr."""
    globals_dict = settings()
    with pytest.raises(SystemExit) as stop:
        configurator.configure(globals_dict, argv)
    assert stop.value.code == 2
    assert globals_dict == settings()
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.endswith("\n")
    return err


def write(tmp_path, text, name="c.py"):
    """Write a config file and return its path as given on a command line."""
    return str(write_file(tmp_path / name, text))


def test_later_arguments_win_and_changes_are_printed(tmp_path, capsys, monkeypatch):
    """Broken: a file beats a later --name=value, a change is told twice or never, a key is told."""
    path = write(tmp_path, '"""What."""\nbatch_size = 4 * 8  # comment\n'
                           'learning_rate = batch_size\nout_dir = "b"\n')
    globals_dict = settings()
    argv = ["--batch_size=2", path, "--out_dir=a=b=c", "--use_lora=True", "--api_key=secret"]
    config = configurator.configure(globals_dict, argv)
    assert config == {"batch_size": 32, "learning_rate": 32.0, "use_lora": True,
                      "out_dir": "a=b=c", "api_key": "secret"}
    assert type(config["learning_rate"]) is float
    assert {name: globals_dict[name] for name in config} == config
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and f"batch_size = 32 (default 8; {path})" in lines[0]
    assert "api_key = '***'" in lines[4]
    configurator.configure(settings(), ["--batch_size=8"])  # the default: no change
    monkeypatch.setenv("RANK", "3")
    configurator.configure(settings(), argv)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("given, said", [
    ("--batchsize=4", "did you mean batch_size?"), ("--LIMIT=4", "unknown setting 'LIMIT'"),
    ("--_hidden=4", "unknown"), ("--math=4", "unknown"),
    ("--batch_size=1.5", "a whole number"), ("--learning_rate=nan", "a finite number"),
    ("--use_lora=true", "not True or False"), ("-b=3", "--name=value"), ("clip.wav", "config file"),
    ("cc.py", "cc.py: no such config file (No such file or directory)"),
    ("batchsize = 4", "c.py: unknown setting 'batchsize', did you mean batch_size?"),
    ("batch_size = 4\nbatch_size = 1.5", "c.py: batch_size=1.5 is not a whole number"),
    ("batch_size = True", "a whole number"), ("use_lora = 1", "not True or False"),
    ("out_dir = 3", "not a string"), ("learning_rate = 10**400", "not a finite number"),
    ("import os", "c.py: no config file of 'name = value' lines"),
    ("batch_size = open('x')", "NameError"),
    ("batch_size = 32".encode("utf-16"), "'utf-8' codec")])
def test_wrong_arguments_and_config_files(tmp_path, capsys, given, said):
    """Broken: a mistake is ignored or misread, ends in a traceback, or a config file runs code."""
    arg = write(tmp_path, given) if " " in str(given) else given  # a file's text has spaces
    assert said in refuse(capsys, ["--out_dir=b", arg])


def test_real_script():
    """Broken: --help omits docstring or config block, or a wrong use isn't one line and exit 2."""
    helped = run("prepare_text.py", "--help")
    for said in ("Make data/text/", "\n\n# config: set by", "# sentences, at most"):
        assert said in helped
    assert "MIN_WORDS" not in helped
    assert run("prepare_text.py", "--X=2", ok=False) == (
        "prepare_text.py: command line: unknown setting 'X' (--help lists them)")


@pytest.mark.case("B34")
@pytest.mark.parametrize("given, taken", [
    ("~/x", "{home}/x"), ("~", "{home}"), ("a/~/b~", "a/~/b~"),
    ("~nobody_of_this_name/x", "~nobody_of_this_name/x")])
def test_home_folder(monkeypatch, tmp_path, given, taken):
    """Broken: --out_dir=~/x, which no shell expands behind an =, makes a folder called ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    taken = taken.format(home=tmp_path)
    for arg in (f"--out_dir={given}", write(tmp_path, f"out_dir = {given!r}")):
        assert configurator.configure(settings(), [arg])["out_dir"] == taken


@pytest.mark.case("B36")
@pytest.mark.parametrize("data", [
    b"\xef\xbb\xbf# gr\xc3\xb6\xc3\x9fe\r\nbatch_size = 32\r\nout_dir = 'b'\r\n",
    b"batch_size = 32\rout_dir = 'b'\r"])
def test_config_files_as_editors_leave_them(tmp_path, data):
    """Broken: a byte order mark or line ends stop a config file."""
    config = configurator.configure(settings(), [write(tmp_path, data, "naïve c.py")])
    assert (config["batch_size"], config["out_dir"]) == (32, "b")


@pytest.mark.case("B35", "B36")
def test_scripts_run_from_anywhere(tmp_path):
    """Broken: a script finds its texts in the repository's folder alone, or needs a home."""
    write(tmp_path, "\ufeffn_train = 4\nout_dir = 'text'\n")
    command = [sys.executable, f"{ROOT}/prepare_text.py", "c.py", "--n_val=2", "--n_test=2"]
    env = {name: value for name, value in os.environ.items() if name != "HOME"}

    def train_text():
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return (tmp_path / "text/train.txt").read_text().splitlines()

    assert len(train_text()) == 4
    assert sorted(os.listdir(tmp_path)) == ["c.py", "text"]
    write_file(tmp_path / "assets/grammar.txt", f"- my own ({' | '.join('abcdefgh')})\n")
    assert all(line.startswith("my own ") for line in train_text())
