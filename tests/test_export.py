"""export.py, checkpoints.pack(): a small copy hears what the run hears."""
import os

import pytest
import torch

import audio
from checkpoints import load_checkpoint, pack, read_meta, unpack
from test_eval import make_run, run


def test_pack_keeps_half_a_percent_of_a_row():
    """Broken: a packed matrix is off by more than half a step of 1/127 of its row's largest value,
    or a small tensor loses more than float16 does."""
    torch.manual_seed(0)
    state = {"w": torch.randn(300, 200) * torch.logspace(-4, 3, 300)[:, None],
             "zero": torch.zeros(200, 100), "gain": torch.randn(64)}
    packed = pack(state)
    assert packed["w"].dtype == torch.int8 and packed["gain"].dtype == torch.float16
    back = unpack(packed)
    assert list(back) == list(state) and not back["zero"].any()
    largest = state["w"].abs().amax(1, keepdim=True)
    assert ((back["w"] - state["w"]).abs() <= largest * 0.501 / 127).all()
    assert torch.allclose(back["gain"], state["gain"], rtol=1e-3)
    assert unpack(state) is state


def test_export(tmp_path, monkeypatch, capsys):
    """Broken: the copy is not small, its encoder is not fetched by name, another encoder is taken,
    or a folder that is there is replaced."""
    ckpt, out = make_run(tmp_path / "run"), str(tmp_path / "small")
    run(monkeypatch, capsys, "export.py", f"--ckpt={ckpt}", f"--out_dir={out}")
    assert sorted(os.listdir(out)) == ["meta_000003.json", "model_000003.pt",
                                       "projector_000003.pt", "tokenizer.json"]
    name = f"{out}/model_000003.pt"
    assert os.path.getsize(name) < 0.4 * os.path.getsize(f"{ckpt}/model_000003.pt")
    model, meta = load_checkpoint(out)
    straight, _ = load_checkpoint(ckpt)
    for a, b in zip(model.parameters(), straight.parameters()):
        assert (a - b).abs().max() <= 0.01 * b.abs().max() + 1e-4
    names, load = [], audio.load_encoder

    def fetch(name, device):
        names.append(name)
        return load(f"{ckpt}/encoder.pt", device)

    monkeypatch.setattr(audio, "load_encoder", fetch)
    encoder, _ = audio.load_ears(out, meta)
    assert names == ["tiny"] and encoder.sha256 == read_meta(ckpt)["audio"]["encoder_sha256"]
    meta["audio"]["encoder_sha256"] = "0" * 64
    with pytest.raises(ValueError, match="tiny is not the one in meta"):
        audio.load_ears(out, meta)
    code, _, err = run(monkeypatch, capsys, "export.py", f"--ckpt={ckpt}", f"--out_dir={out}")
    assert code == 2 and "File exists" in err
