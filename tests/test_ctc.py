"""train_align.py's CTC loss, the control without the LM, words held out of all audio."""
import types

import numpy as np
import torch
import torch.nn.functional as F

from audio import Projector
from checkpoints import load_saved, read_meta
from clips import COMMON, without_words
from decode import CTC_WEIGHT, spell, weigh
from practice import make_speller
from test_train import align, log_of, same_state, world  # noqa: F401 (world is a fixture)
from tokenizer import BPETokenizer, ByteTokenizer


def test_spell_drops_repeats_and_blanks():
    """Broken: repeats of a piece count twice, two that a blank parts count once, or what stands
    behind a clip's end is heard."""
    heard = [b"hh-iiit-t-  ", b"-----xxxxxxx"]
    ids = torch.tensor([[256 if byte == ord("-") else byte for byte in row] for row in heard])
    audio = F.one_hot(ids, 257).float()

    def projector(features, lens):
        return audio, torch.tensor([10, 5])

    projector.mean = torch.zeros(1)
    projector.ctc_head = torch.nn.Linear(257, 257)
    projector.ctc_head.weight.data = torch.eye(257)
    assert spell(projector, ByteTokenizer(), [torch.zeros(12, 1, 4)] * 2) == ["hitt", ""]


def test_ctc_weighs_the_beams_hypotheses():
    """Broken: the text that the CTC head heard loses to one the LM likes a little more, or the
    weight, the length or the pieces are others than said."""
    tok = make_speller(BPETokenizer([b"hi", b"ho"]), 258)
    ids = torch.tensor([tok.encode("hi")[0], 258, ord("t"), 258])
    heard = torch.zeros(4, 259).scatter_(1, ids[:, None], 9.0)
    projector = types.SimpleNamespace(ctc_head=torch.nn.Identity(), texture=0)
    found = [(-0.2, "ho", 2), (-0.5, "hit", 4), (-0.1, "", 1)]
    weighed = weigh(projector, tok, heard, found)
    assert max(weighed)[1] == "hit"
    nats = [F.ctc_loss(heard.log_softmax(1)[:, None], torch.tensor([tok.encode(text)]), [4],
                       [len(tok.encode(text))], 258, "sum").item() for _, text, _ in found]
    for (score, text), (alone, _, size), n in zip(weighed, found, nats):
        assert abs(score - (alone - CTC_WEIGHT * n / size)) < 1e-5, text
    assert weigh(projector, tok, heard, found[:1]) == [(-0.2, "ho")]
    projector.ctc_head = None
    assert weigh(projector, tok, heard, found) == [pair[:2] for pair in found]


def test_held_out_words(monkeypatch):
    """Broken: a clip with a held-out word is kept, a frequent word is held out, or none is."""
    words = [f"w{i}" for i in range(4 * COMMON)]
    texts = [f"the {word}" for word in words] + [f"the {word} a" for word in words[:COMMON - 1]]
    kept = without_words(texts, 0.1)
    assert kept[:COMMON - 1].all() and kept[len(words):].all()  # the frequent ones
    assert 0.05 < 1 - kept[COMMON - 1:len(words)].mean() < 0.15
    assert without_words(texts, 0.0).all()


def test_ctc_beside_the_lm_and_alone(world, tmp_path):  # noqa: F811
    """Broken: the CTC loss does not reach the projector, the control needs the LM, its run can't
    go on, or a clip with a held-out word is learnt."""
    more = "--hold_out=0.3", "--stack=1"  # a token for each piece, or CTC has no way to go
    for ctc in ("0", "0.5", "1"):
        align(world, tmp_path / ctc, "--max_steps=2", f"--ctc={ctc}", *more)
    metas = {ctc: read_meta(tmp_path / ctc) for ctc in ("0", "0.5", "1")}
    prompts = [meta["audio"]["prompt"] for meta in metas.values()]
    assert prompts == ["transcript", "transcript", "ctc"]
    states = {ctc: load_saved(tmp_path / ctc, meta, "projector") for ctc, meta in metas.items()}
    assert not any(name.startswith("ctc") for name in states["0"])
    assert not torch.equal(states["0"]["fc1.weight"], states["0.5"]["fc1.weight"])
    projector = Projector(**metas["0.5"]["audio"]["projector"])
    projector.load_state_dict(states["0.5"])
    align(world, tmp_path / "on", "--max_steps=1", "--ctc=0.5", "--stack=1", "--learning_rate=0",
          f"--lm={tmp_path}/0.5", "--muon_lr=1e-30")  # the head goes on too
    assert same_state(tmp_path / "0.5/projector_000002.pt", tmp_path / "on/projector_000001.pt")
    assert same_state(world / "base" / "model_000002.pt", tmp_path / "1" / "model_000002.pt")
    assert {"val_loss", "val_wer"} <= set(log_of(tmp_path / "1")[-1])
    straight = [row["loss"] for row in log_of(tmp_path / "1") if "loss" in row]
    assert np.isfinite(straight).all() and straight[0] > 3
    align(world, tmp_path / "1", "--max_steps=3", "--ctc=1", *more, "--init_from=resume")
    assert read_meta(tmp_path / "1")["step"] == 3
