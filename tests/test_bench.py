"""bench.py's real command line: its figures are there; no test asserts a time."""
import json
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(*args):
    """Run bench.py on the CPU."""
    command = [sys.executable, "bench.py", "--quick=True", "--device=cpu", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_figures_are_there():
    """Broken: a part dies, or the JSON line lacks a figure."""
    done = run()
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    names = ["train.tok_s", "train.mfu", "decode.batch_1", "decode.batch_8", "decode.batch_32"]
    assert all(result[name] > 0 for name in names), result


def test_wrong_settings():
    """Broken: a mistake costs minutes before it is seen, or ends in a traceback."""
    done = run("--device=tpu")
    assert done.returncode == 2 and "device=tpu" in done.stderr and done.stderr.count("\n") == 1
