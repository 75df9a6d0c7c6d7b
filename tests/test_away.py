"""The training scripts where the machine or the place is another: ranks that do not divide, data that is elsewhere."""
import pytest
import torch

from test_train import refusal


@pytest.mark.case("B39")
@pytest.mark.parametrize("script", ["train_base.py", "train_align.py", "train_sft.py"])
def test_ranks_have_to_divide_the_microbatches(script, monkeypatch, tmp_path):
    """Broken: ranks that do not divide grad_accum end in a traceback, or train fewer microbatches than was said."""
    for name, value in (("WORLD_SIZE", "3"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **settings: None)
    said = refusal(script, ["--grad_accum=2", "--device=cpu", f"--out_dir={tmp_path / 'out'}"])
    assert "grad_accum=2 is no multiple of the 3 ranks" in said.splitlines()[-1] and "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.case("B39")
def test_data_that_is_elsewhere_is_named(tmp_path):
    """Broken: a run that goes on from another folder ends in a traceback, or does not say where it looked for data."""
    said = refusal("train_base.py", ["--data_dir=some/where/text", "--device=cpu", f"--out_dir={tmp_path / 'out'}"])
    assert "some/where/text/train.txt: " in said.splitlines()[-1] and "prepare_text.py" in said
    assert "Traceback" not in said
