"""What runs and prepare scripts share: the clock, the log, when data are up to date."""
import json
import sys
import time

import pytest

import device
import record
import run
from commands import raises


@pytest.mark.parametrize("able, dtype", [
    ("", "float32"), ("avx512_vnni", "int8"), ("avx512_vnni amx_bf16", "bfloat16")])
def test_dtype_of_a_cpu(monkeypatch, able, dtype):
    """Broken: a CPU computes in what is slow there."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: dict.fromkeys(able.split(), True))
    monkeypatch.setattr(device, "compute_dtype", device.compute_dtype.__wrapped__)
    monkeypatch.delenv("NANOCHAT_DTYPE")
    device.prefer_int8("cpu")
    assert record.provenance("cpu", True)["dtype"] == dtype
    monkeypatch.setenv("NANOCHAT_DTYPE", "int8")
    if not able:
        raises("cpu takes one of float32, bfloat16$", device.compute_dtype, "cpu")
    raises("device=tpu is not on this machine", device.pick_device, "tpu")


def test_clock_and_log(monkeypatch, tmp_path, capsys):
    """Broken: ms a step count evaluations, the minutes to go don't, a log's line loses digits."""
    now = [100.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    clock = run.Clock(first_step=5, max_steps=25)
    now[0] += 20
    assert clock.lap(10) == (20.0, 5, 1.0)  # 4 s a step, 15 steps to go
    now[0] += 10
    with clock.pause():
        now[0] += 30
    assert clock.lap(15) == (10.0, 5, 1.0)  # 60 s for 10 steps
    assert clock.closing_line("out/x") == "20 steps, 1.0 minutes, out/x at 25"
    run.log(str(tmp_path), {"step": 12, "loss": 1 / 3, "lr": 0.00098, "tok/s": 38400.4})
    assert capsys.readouterr().out == "step     12 | loss 0.3333 | lr 9.80e-04 | tok/s 38,400\n"
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss"] == 1 / 3


def test_a_folder_is_made_once_and_no_other_is_emptied(tmp_path, monkeypatch, capsys):
    """Broken: other or cut data count as up to date, or somebody else's folder is emptied."""
    def prepare(text, source="ab12"):
        def make():
            (tmp_path / "a.txt").write_text(text)
            (tmp_path / "clips").mkdir()  # an earlier run's is gone
            return ["a.txt"], {"n": 1}
        record.make_folder(tmp_path, {"text": text}, lambda: {"source": source}, make, "clips")
        return capsys.readouterr().out

    monkeypatch.setattr(sys, "argv", ["prepare_text.py"])
    assert "n 1" in prepare("one") and "n 1" in prepare("two") and "n 1" in prepare("two", "cd34")
    assert "is up to date" in prepare("two", "cd34")
    (tmp_path / "a.txt").write_text("tw")
    assert "n 1" in prepare("two", "cd34")
    with monkeypatch.context() as edited:
        edited.setattr(record, "changed_code", lambda sums: ["run.py"])
        assert "n 1" in prepare("two", "cd34")
    for meta in (None, {}, [], {"settings": {}, "script": "prepare_chat.py"}, {"mine": 1}):
        path = tmp_path / "meta.json"
        path.unlink() if meta is None else path.write_text(json.dumps(meta))
        with pytest.raises(SystemExit):
            prepare("three")
        assert "was not made by this script" in capsys.readouterr().err
        assert (tmp_path / "a.txt").read_text() == "two"
