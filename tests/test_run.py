"""What runs and prepare scripts share: the clock, the log, when data are up to date."""
import json
import time

import record
import run


def test_clock_leaves_pauses_out(monkeypatch):
    """Broken: ms a step count evaluations, or the minutes to go leave them out."""
    now = [100.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    clock = run.Clock(first_step=5, max_steps=25)
    now[0] += 20
    assert clock.lap(10) == (20.0, 5, 1.0)  # 4 s a step, 15 steps to go
    now[0] += 10
    with clock.pause():
        now[0] += 30
    assert clock.lap(15) == (10.0, 5, 1.0)  # 60 s for 10 steps
    assert clock.closing_line({"val_loss": 1.5}, "out/x") == (
        "20 steps, 1.0 minutes, val_loss 1.5000, out/x at 25")


def test_log_line(tmp_path, capsys):
    """Broken: a line of the log has no fixed fields or loses digits."""
    run.log(str(tmp_path), {"step": 12, "loss": 1 / 3, "lr": 0.00098, "tok/s": 38400.4})
    assert capsys.readouterr().out == "step     12 | loss 0.3333 | lr 9.80e-04 | tok/s 38,400\n"
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss"] == 1 / 3


def test_is_made(tmp_path, monkeypatch):
    """Broken: data made with other settings, inputs or code, or cut short, count as up to date."""
    folder, settings, inputs = str(tmp_path), {"n": 3, "taps": [1, 2]}, {"text": "ab12"}
    assert not record.is_made(folder, settings, inputs)
    (tmp_path / "train.txt").write_text("abc")
    record.note_made(folder, settings, inputs, ["train.txt"], n_words=1)
    assert record.is_made(folder, settings, inputs)
    assert json.loads((tmp_path / "meta.json").read_text())["n_words"] == 1
    assert not record.is_made(folder, settings | {"n": 4}, inputs)
    assert not record.is_made(folder, settings, {"text": "cd34"})
    with monkeypatch.context() as edited:
        edited.setattr(record, "changed_code", lambda sums: ["run.py"])
        assert not record.is_made(folder, settings, inputs)
    (tmp_path / "train.txt").write_text("ab")
    assert not record.is_made(folder, settings, inputs)
    (tmp_path / "meta.json").write_text("[")
    assert not record.is_made(folder, settings, inputs)
