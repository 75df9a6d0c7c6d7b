"""bench.py's real command line: its figures are there; no test asserts a time."""
import json

import pytest

from commands import run


@pytest.mark.slow
def test_figures_are_there():
    """Broken: a part dies, or the JSON line lacks a figure."""
    result = json.loads(run("bench.py", "--quick=True", "--device=cpu").splitlines()[-1])
    names = ["train.tok_s", "train.mfu", "decode.batch_1", "decode.batch_8", "decode.batch_32"]
    assert all(result[name] > 0 for name in names), result


def test_wrong_settings():
    """Broken: a mistake ends in a traceback, or a misspelt dtype runs in another precision."""
    said = run("bench.py", "--quick=True", "--device=tpu", ok=False)
    assert "device=tpu is not on this machine: use one of auto" in said
    said = run("bench.py", "--quick=True", "--device=cpu", ok=False, NANOCHAT_DTYPE="bf16")
    assert "NANOCHAT_DTYPE=bf16 is unknown: use one of float32" in said
