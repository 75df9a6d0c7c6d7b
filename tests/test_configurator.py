"""Settings: config files and --name=value over a script's globals, and every way of getting them wrong."""
import math
import os
import re
import subprocess
import sys

import pytest

import configurator

SCRIPT = '''"""A script to be configured."""
import math
from configurator import configure, fail
LIMIT = 3
_hidden = 1
# config: every value here can be set
# size: clips
batch_size = 8         # clips per microbatch
learning_rate = 1e-3   # peak
use_lora = False       # adapters
out_dir = "out/a"      # folder
config = configure(globals())
after = 5
print(sorted(config.items()), LIMIT)
'''


def settings():
    """The globals of a script just before configure()."""
    return {"__name__": "__main__", "__file__": "x.py", "_hidden": 1, "LIMIT": 3, "math": math, "fail": len,
            "batch_size": 8, "learning_rate": 1e-3, "use_lora": False, "out_dir": "out/a"}


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
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_later_arguments_win_and_changes_are_printed(tmp_path, capsys):
    """Broken: a config file overrides a later --name=value, or a run doesn't say what differs from the defaults."""
    path = write(tmp_path, '"""What."""\nbatch_size = 4 * 8  # a comment\nlearning_rate = batch_size\nout_dir = "b"\n')
    globals_dict = settings()
    config = configurator.configure(globals_dict, ["--batch_size=2", path, "--out_dir=c", "--use_lora=True"])
    assert config == {"batch_size": 32, "learning_rate": 32.0, "use_lora": True, "out_dir": "c"}
    assert type(config["learning_rate"]) is float  # an int fills a float, and becomes one
    assert {name: globals_dict[name] for name in config} == config
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and f"batch_size = 32 (default 8; {path}:2)" in lines[0] and "command line" in lines[2]


def test_nothing_given_changes_nothing(capsys):
    """Broken: constants, underscored names, modules or functions count as settings, or unchanged values are printed."""
    config = configurator.configure(settings(), ["--batch_size=8"])
    assert config == {"batch_size": 8, "learning_rate": 1e-3, "use_lora": False, "out_dir": "out/a"}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ["", "a=b=c", "[1, 2]", "True", "3", "__import__('os').getcwd()", " x "])
def test_str_is_taken_as_it_is(text):
    """Broken: a str setting is evaluated, or is cut at its second '='."""
    assert configurator.configure(settings(), [f"--out_dir={text}"])["out_dir"] == text


@pytest.mark.parametrize("arg, said", [
    ("--batchsize=4", "did you mean batch_size?"), ("--LIMIT=4", "unknown setting 'LIMIT'"), ("--_hidden=4", "unknown"),
    ("--math=4", "unknown setting 'math'"), ("--fail=4", "unknown setting 'fail'"), ("--=4", "unknown setting ''"),
    ("--batch_size=1.5", "not a whole number"), ("--batch_size=", "not a whole number"), ("--batch_size=True", "whole"),
    ("--learning_rate=fast", "not a finite number"), ("--learning_rate=nan", "not a finite number"),
    ("--learning_rate=-inf", "not a finite number"), ("--learning_rate=1e999", "not a finite number"),
    ("--use_lora=true", "not True or False"), ("--use_lora=1", "not True or False"), ("--use_lora=", "True or False"),
    ("--use_lora", "--name=value"), ("-b=3", "--name=value"), ("", "--name=value"), ("clip.wav", "ends in .py"),
])
def test_wrong_command_line(capsys, arg, said):
    """Broken: a mistyped argument is ignored or misread, and the run trains something else than was asked for."""
    assert said in refuse(capsys, ["--out_dir=b", arg])


@pytest.mark.parametrize("text, said", [
    ("batchsize = 4", "c.py:1: unknown setting 'batchsize', did you mean batch_size?"),
    ("batch_size = 4\nbatch_size = 1.5", "c.py:2: batch_size=1.5 is not a whole number"),
    ("batch_size = True", "a whole number"), ("use_lora = 1", "not True or False"), ("out_dir = 3", "not a string"),
    ("learning_rate = 1e999", "not a finite number"), ("learning_rate = 10**400", "not a finite number"),
    ("learning_rate = '1'", "not a finite number"), ("batch_size = None", "whole number"), ("LIMIT = 4", "unknown"),
    ("import os", "c.py:1: a config file holds plain"), ("print(1)", "plain"), ("batch_size, x = 1, 'b'", "plain"),
    ("def f(): pass", "plain"), ("batch_size += 1", "plain"), ("if True:\n    batch_size = 1", "plain"),
    ("batch_size = ", "SyntaxError"), ("batch_size = batch_size", "NameError"), ("batch_size = 1 // 0", "ZeroDivision"),
    ("batch_size = open('x')", "NameError"), (b"RIFF\xff\xfe\x00", "no config file"), ("batch_size = 4\0", "no config"),
])
def test_wrong_config_file(tmp_path, capsys, text, said):
    """Broken: a mistake in a config file is ignored, ends in a traceback, or runs code."""
    assert said in refuse(capsys, [write(tmp_path, text)])


def test_missing_config_file_names_the_nearest(tmp_path, capsys):
    """Broken: a mistyped config file isn't named, or a folder given as one ends in a traceback."""
    path = write(tmp_path, "batch_size = 4", "w2_frozen.py")
    assert f"did you mean {path}?" in refuse(capsys, [path.replace("frozen", "frozn")])
    (tmp_path / "folder.py").mkdir()
    assert "no such config file" in refuse(capsys, [str(tmp_path / "folder.py")])
    assert "ends in .py" in refuse(capsys, [str(tmp_path)])


def test_only_the_first_rank_prints(monkeypatch, capsys):
    """Broken: torchrun with 8 ranks prints every change eight times."""
    monkeypatch.setenv("RANK", "3")
    assert configurator.configure(settings(), ["--batch_size=2"])["batch_size"] == 2
    assert capsys.readouterr().out == ""


def test_fail_is_one_line(monkeypatch, capsys):
    """Broken: an error whose text has line breaks fills the terminal."""
    monkeypatch.setattr("sys.argv", ["some/train.py"])  # `pytest` and `python -m pytest` have names of their own
    with pytest.raises(SystemExit) as stop:
        configurator.fail(ValueError("a\nb"))
    assert stop.value.code == 2 and capsys.readouterr().err == "train.py: a b\n"


def test_real_script(tmp_path):
    """Broken: on a real command line --help omits the docstring or the config block, or a wrong use doesn't exit 2."""
    path = write(tmp_path, SCRIPT, "train_x.py")

    env = {**os.environ, "PYTHONPATH": os.path.dirname(configurator.__file__)}

    def run(*args):
        return subprocess.run([sys.executable, path, *args], capture_output=True, text=True, env=env)

    shown = run("--help")
    assert shown.returncode == 0 and shown.stderr == ""
    assert shown.stdout.startswith("A script to be configured.\n\n# config: every") and "# peak" in shown.stdout
    with subprocess.Popen([sys.executable, path, "--help"], stdout=-1, stderr=-1, env=env) as piped:
        piped.stdout.close()  # as `--help | head` does
        assert piped.stderr.read() == b""
    assert "import math" not in shown.stdout and "after" not in shown.stdout
    done = run("--batch_size=2")
    assert done.returncode == 0 and "('batch_size', 2)" in done.stdout and "after" not in done.stdout
    wrong = run("--after=2")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "train_x.py: command line: unknown setting 'after' (--help lists them)\n"


@pytest.mark.case("B34")
@pytest.mark.parametrize("given, taken", [
    ("~/x", "{home}/x"), ("~", "{home}"), ("a,~/b*3, ~/c", "a,{home}/b*3, {home}/c"),
    ("x=~/a,y=~/b", "x={home}/a,y={home}/b"), ("a/~/b", "a/~/b"), ("draft~", "draft~"),
    ("~nobody_of_this_name/x", "~nobody_of_this_name/x"), ("a ~ b", "a ~ b")])
def test_home_folder(monkeypatch, tmp_path, given, taken):
    """Broken: --out_dir=~/x, which no shell expands behind an =, makes a folder called ~, which `rm -rf ~` removes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    taken = taken.format(home=tmp_path)
    assert configurator.configure(settings(), [f"--out_dir={given}"])["out_dir"] == taken
    assert configurator.configure(settings(), [write(tmp_path, f"out_dir = {given!r}")])["out_dir"] == taken


@pytest.mark.case("B34", "B35")
def test_words_are_no_paths_and_a_home_must_be_known(monkeypatch, capsys):
    """Broken: a question that begins with ~ is changed, or where nobody has a home a folder called ~ is made."""
    words = {name: "~/x" for name in ("prompt", "question", "api_key", "name", "maker")}
    asked = configurator.configure({name: "" for name in words}, [f"--{name}={text}" for name, text in words.items()])
    assert asked == words
    capsys.readouterr()
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert "command line" not in (said := refuse(capsys, ["--out_dir=~/x"]))
    assert "~/x: nobody knows the home folder ~ (HOME is not set): write the path in full" in said


@pytest.mark.case("B36")
@pytest.mark.parametrize("data, said", [
    (b"\xef\xbb\xbfbatch_size = 32\r\nout_dir = 'b'\r\n", ""), (b"batch_size = 32\rout_dir = 'b'\r", ""),
    (b"# gr\xc3\xb6\xc3\x9fe\nbatch_size = 32\nout_dir = 'b'", ""),
    ("batch_size = 32".encode("utf-16"), "'utf-8' codec"), (b"# gr\xf6\xdfe\nbatch_size = 32", "'utf-8' codec"),
    ("batch_size\u00a0= 32".encode(), "non-printable character U\\+00A0"),
    ("batch_size = 32\nout_dir = \u2019b\u2019".encode(), "invalid character"), (b"\tbatch_size = 32", "indent"),
    (b"batch_size: 32", "c.py:1: a config file holds plain")])
def test_config_files_as_editors_leave_them(tmp_path, capsys, data, said):
    """Broken: a byte order mark or line ends keep a config file from being read, or a refusal does not say why."""
    path = write(tmp_path, data, "naïve c.py")
    if said:
        assert re.search(said, refuse(capsys, [path])), said
    else:
        config = configurator.configure(settings(), [path])
        assert (config["batch_size"], config["out_dir"]) == (32, "b")


@pytest.mark.case("B34", "B35", "B36")
def test_scripts_run_from_anywhere(tmp_path):
    """Broken: a script finds its grammar or its texts in the repository's folder alone, or makes a folder called ~."""
    root = os.path.dirname(configurator.__file__)

    def run(script, *args, home=str(tmp_path / "home")):
        env = {name: value for name, value in os.environ.items() if name != "HOME"} | ({"HOME": home} if home else {})
        return subprocess.run([sys.executable, os.path.join(root, script), *args], cwd=tmp_path / "else where",
                              capture_output=True, text=True, env=env)

    (tmp_path / "else where").mkdir()
    (tmp_path / "else where" / "c.py").write_text('\ufefflimit = 4\nout_dir = "~/text"\n', encoding="utf-8")
    done = run("prepare_text.py", "c.py")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "home" / "text" / "train.txt").read_text().splitlines()) == 4
    assert run("prepare_chat.py", "--mix=identity=20,letters=20", "--out_dir=chat", "--val_share=0.4").returncode == 0
    assert run("prepare_text.py", "--limit=4", "--out_dir=text", home="").returncode == 0
    assert sorted(os.listdir(tmp_path / "else where")) == ["c.py", "chat", "text"]
