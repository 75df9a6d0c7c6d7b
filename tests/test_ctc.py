"""train_align.py's CTC loss, the control without the LM, words held out of all audio."""
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F

import decode
from checkpoints import load_saved, read_meta
from clips import COMMON, without_words
from decode import NEVER, CTCScores, spell, word_times
from test_train import align, log_of, same_state, world  # world: a fixture
from tokenizer import BPETokenizer


def hear(heard):
    """Audio tokens (T_a, 257) by which a CTC head hears these bytes; -: a blank."""
    ids = torch.tensor([256 if byte == ord("-") else byte for byte in heard])
    return 9 * F.one_hot(ids, 257).float()


def stand_in(texture=0):
    """A projector whose features are its audio tokens already, and what its CTC head hears."""
    def projector(features, lens):
        return features, lens

    projector.mean, projector.texture, projector.stack = torch.zeros(1), texture, 4
    projector.ctc_head = torch.nn.Identity(257)
    projector.ctc_head.out_features = 257
    return projector


def test_path_is_the_likeliest():
    """Broken: the alignment of a text is not the best of all that write it."""
    heard, pieces, scores, found = torch.randn(6, 4).log_softmax(1), [0, 0, 1], {}, [3] * 6
    for path in product(range(4), repeat=6):
        ids = torch.unique_consecutive(torch.tensor(path))
        if ids[ids < 3].tolist() == pieces:
            scores[path] = heard[range(6), path].sum()
    for piece, first, end in zip(pieces, *decode.align(heard, pieces)):
        found[first:end] = [piece] * (end - first)
    assert tuple(found) == max(scores, key=scores.get)


def test_words_and_their_times():
    """Broken: repeats count twice, two parted by a blank once, or what is behind a clip's end; a
    word's time isn't its pieces'."""
    clips = [hear(b"hh-iiit-t-"), hear(b"-----")]
    assert spell(stand_in(), BPETokenizer(), clips) == ["hitt", ""]
    for heard, wanted in ((b"----hh-it-- -aa-", [[0.24, 0.64], [0.80, 1.12]]),
                          (b"-hta", [[0, 0.12], [0.12, 0.24]])):
        times = word_times(stand_in(texture=1), BPETokenizer(), hear(heard), ["hit", "a"])
        assert np.allclose(times, wanted)


def written(heard, pieces):
    """Reference: log-probabilities of a text, and of all that begin so, by each alignment."""
    whole, begun = [], []
    for path in product(range(heard.size(1)), repeat=len(heard)):
        ids = torch.unique_consecutive(torch.tensor(path)).tolist()
        ids = [i for i in ids if i < heard.size(1) - 1]
        p = sum(row[i] for row, i in zip(heard, path))
        whole += [p] * (ids == pieces)
        begun += [p] * (ids[:len(pieces)] == pieces)
    return [torch.stack(found).logsumexp(0) if found else NEVER for found in (whole, begun)]


def test_ctc_scores_are_those_of_all_alignments(monkeypatch):
    """Broken: a text's CTC score in the beam is another than the sum over its alignments."""
    tok = BPETokenizer([b"hi", b"his", b"hit"])
    ids = [ids.tolist() for ids in decode.spelling(tok, 257)]
    assert ids[256:] == [[256, -1], [256, ord("s")], [256, ord("t")]] + [[-1, -1]] * 9
    spelled = torch.tensor([[0, -1], [1, 0], [1, 1], [-1, -1]])  # tokens by pieces; the last ends
    monkeypatch.setattr(decode, "spelling", lambda *args: spelled)
    clips = [torch.randn(5, 3), torch.randn(2, 3)]
    scores = CTCScores(stand_in(), tok, clips)
    texts = [[], []]
    for tokens in ([[0, 1], [2, 3]], [[1, 3], [0, 2]], [[3, 0], [3, 2]]):
        found = scores.extend(torch.tensor(tokens))
        for clip in range(2):
            heard = clips[clip].log_softmax(1)
            for token, score in zip(tokens[clip], found[clip]):
                own = texts[clip] + [p for p in spelled[token].tolist() if p >= 0]
                wanted = max(written(heard, own)[token != 3], NEVER)
                assert score < -5e3 > wanted or abs(score - wanted) < 1e-4, (own, token)
        keep = [0, 0] if tokens[0][0] != 3 else [1, 1]
        texts = [text + [p for p in spelled[row[i]].tolist() if p >= 0]
                 for text, row, i in zip(texts, tokens, keep)]
        scores.keep([i + 2 * clip for clip, i in enumerate(keep)])


def test_held_out_words():
    """Broken: a clip with a held-out word is kept, a frequent word is held out, or none is."""
    words = [f"w{i}" for i in range(4 * COMMON)]
    texts = [f"the {word}" for word in words] + [f"the {word} a" for word in words[:COMMON - 1]]
    kept = without_words(texts, 0.1)
    assert kept[:COMMON - 1].all() and kept[len(words):].all()  # the frequent ones
    assert 0.05 < 1 - kept[COMMON - 1:len(words)].mean() < 0.15
    assert without_words(texts, 0.0).all()


def test_ctc_beside_the_lm_and_alone(world, tmp_path):
    """Broken: the CTC loss misses the projector, or the control needs the LM or can't go on."""
    more = "--hold_out=0.3", "--stack=1"  # a token for each piece, or CTC has no way to go
    for ctc in ("0", "0.5", "1"):
        align(world, tmp_path / ctc, "--max_steps=2", f"--ctc={ctc}", *more)
    metas = [read_meta(tmp_path / ctc) for ctc in ("0", "0.5", "1")]
    assert [meta["audio"]["prompt"] for meta in metas] == ["transcript", "transcript", "ctc"]
    without, beside = (load_saved(tmp_path / ctc, meta, "projector")
                       for ctc, meta in zip(("0", "0.5"), metas))
    assert not any(name.startswith("ctc") for name in without)
    assert not torch.equal(without["fc1.weight"], beside["fc1.weight"])
    align(world, tmp_path / "on", "--max_steps=1", "--ctc=0.5", "--stack=1", "--learning_rate=0",
          f"--lm={tmp_path}/0.5", "--muon_lr=1e-30")  # projector and head go on; 0 is AdamW's
    assert same_state(tmp_path / "0.5/projector_000002.pt", tmp_path / "on/projector_000001.pt")
    assert same_state(world / "base" / "model_000002.pt", tmp_path / "1" / "model_000002.pt")
    assert {"val_loss", "val_wer"} <= set(log_of(tmp_path / "1")[-1])
    straight = [row["loss"] for row in log_of(tmp_path / "1") if "loss" in row]
    assert np.isfinite(straight).all() and straight[0] > 3
    align(world, tmp_path / "1", "--max_steps=3", "--ctc=1", *more, "--init_from=resume")
    assert read_meta(tmp_path / "1")["step"] == 3
