"""Listening practice: imitated recordings against a slow reference, and chats about them."""
import numpy as np
import pytest
import torch
from torch.nn.functional import rms_norm

import practice
from files import write_jsonl
from model import GPT, GPTConfig
from rows import Sentences
from tokenizer import render_conversation, train_bpe

WORDS = "the small red dog sees a house and the old man hears two birds".split()


@pytest.fixture(scope="module")
def tok():
    return train_bpe([" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))], 290)


def slow_imitation(ids, spelling, rng, ease):
    """The places of a sentence, one after the other: [(piece, rival, weight), ...]."""
    n = len(ids)
    swap, other = rng.random(n), rng.choice(spelling, n)
    mixed, weight, rival = rng.random(n), rng.random(n), rng.choice(spelling, n)
    has_blanks, n_blanks = rng.random(n), rng.integers(1, 3, n)
    n_blanks[0], n_last = rng.integers(0, 3, 2)
    has_blanks[0] = 0
    repeats = rng.integers(1, practice.STRETCH + 1, n)
    places, blank = [], (-1, -1, 0.0)
    for i in range(n):
        if i == 0 or has_blanks[i] < practice.BLANK_SHARE:
            places += [blank] * n_blanks[i]
        piece = other[i] if swap[i] < ease * practice.SWAP_SHARE else ids[i]
        is_mixed = mixed[i] < ease * practice.RIVAL_SHARE
        places += [(piece, rival[i], practice.RIVAL_WEIGHT * weight[i] * is_mixed)] * repeats[i]
    return places + [blank] * n_last


@pytest.mark.parametrize("ease", [0.0, 1.0])
def test_imitated_recordings(ease):
    """Broken: pieces are lost, out of order or stretched otherwise, or padding counts as sound."""
    sentences = [np.arange(300, 340), np.arange(301, 302), np.arange(302, 315)]
    spelling = np.arange(500, 600)
    rng = np.random.default_rng(1)
    pairs, weights, lens = practice.imitate_audio(sentences, spelling, rng, ease)
    rng = np.random.default_rng(1)
    expected = [slow_imitation(ids, spelling, rng, ease) for ids in sentences]
    assert lens.tolist() == [len(places) for places in expected]
    for found, own, places in zip(pairs, weights, expected):
        piece, rival, weight = zip(*places)
        assert found[:len(places)].T.tolist() == [list(piece), list(rival)]
        assert own[:len(places), 0].numpy() == pytest.approx(weight, abs=1e-6)
    assert (pairs[0, :, 0] >= 500).any() == weights.any() == (ease > 0)


@pytest.mark.parametrize("ease", [0.0, 1.0])
def test_features_are_embeddings(ease):
    """Broken: undisturbed places aren't embeddings, noise makes them louder, blanks don't learn."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(64, 320, 2, 2, 2, 32))
    blank = torch.nn.Parameter(torch.randn(32))
    rng = np.random.default_rng(2)
    ids = [np.arange(260, 300)]
    pairs, weights, _ = practice.imitate_audio(ids, np.arange(260, 310), rng, ease)
    x = practice.practice_features(model, blank, pairs, weights, rng, ease)[0]
    piece = pairs[0, :, 0]
    table = rms_norm(model.transformer.wte.weight, (32,))
    expected = torch.where(piece[:, None] < 0, rms_norm(blank, (32,)), table[piece.clamp(min=0)])
    assert torch.allclose(x, expected, atol=1e-4) == (ease == 0)
    assert x.square().mean(1).sqrt().tolist() == pytest.approx([1.0] * len(x), rel=1e-3)
    x[:, 0].sum().backward()
    assert blank.grad.any()


def test_sentences_as_rows(tok):
    """Broken: a sentence is cut in training, its end isn't learnt, or padding is."""
    lines = [" ".join(WORDS[:n]) for n in (3, 7, 1)]
    sentences = Sentences(lines, tok, 8)
    for row, wanted, line in zip(*sentences.padded(np.array([2, 1])), (lines[2], lines[1])):
        ids = tok.encode(line)
        assert row[:len(ids) + 1].tolist() == [tok.bos_id, *ids]
        assert wanted[:len(ids) + 1].tolist() == [*ids, tok.bos_id]
        assert set(wanted[len(ids) + 1:]) <= {-1}
    stream = sum(([tok.bos_id, *tok.encode(line)] for line in lines), [])
    assert sentences.rows.tolist() == [stream[i:i + 9] for i in range(0, len(stream) - 8, 8)]


def test_chats(tok, tmp_path):
    """Broken: too long chats stay or vanish uncounted, or special tokens get other ids spelled."""
    path, turn = tmp_path / "chats.jsonl", ["word", "which word is it\nred\nblue", "red"]
    rows = [{"split": split, "text": "the red dog" * n, "labels": {"sex": "a man"},
             "turns": [turn, ["empty", "?!", "!"]]}
            for split, n in (("train", 1), ("val", 0), ("train", 40))]
    write_jsonl(path, rows)
    speller = practice.Speller(tok, 270)
    chats, left_out = practice.read_chats(path, speller, 200)
    assert [len(chats[split]) for split in ("train", "val")] == [1, 1]
    assert left_out["over 200 positions"] == 1 and sum(left_out.values()) == 4
    assert not len(chats["val"][0][0][0])  # nobody speaks
    (heard, facts), chat = chats["train"][0]
    assert facts == {"sex": "a man"}
    assert heard.tolist() == speller.encode("the red dog") and max(heard) < 270
    for tokenizer in (tok, speller):
        idx, targets = practice.render_chats(chats["train"], tokenizer)
        ids, mask = render_conversation(tokenizer, chat)
        wanted = [i if is_on else -1 for i, is_on in zip(ids, mask)]
        assert idx[0].tolist() == ids[:-1] and targets[0].tolist() == wanted[1:]
        assert idx[0, 0] == tok.bos_id and targets[0, -1] == tok.special("<|assistant_end|>")
    write_jsonl(path, rows[1:2])
    with pytest.raises(ValueError, match="no chat for train or val"):
        practice.read_chats(path, speller, 200)


def test_right_answers_are_counted():
    """Broken: an answer with one wrong token counts as right, or two answers of a row as one."""
    targets = np.array([[-1, 5, 6, -1, 7, -1], [8, 9, -1, -1, -1, 3]])
    best = np.array([[0, 5, 6, 0, 1, 0], [8, 0, 0, 0, 0, 3]])
    assert practice.count_right(best, targets) == (2, 4)
