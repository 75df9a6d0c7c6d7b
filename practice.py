"""Listening practice: a GPT learns to listen from text alone, before it gets any audio.

A projector turns speech into a row of vectors. To the GPT they look like the token embeddings of a
poor speller: pieces of words, each repeated for as long as it sounds, with gaps, with neighbours
that run into each other, some misheard, all noisy. Practice makes such rows from sentences, and
trains the GPT to write down what it "heard":

    sentence         red dog
    its pieces        r ed  d og                      tokens of a small vocabulary
    imitated audio   _  r  r ed ed ed _  d og og _    pieces repeated; _ is a blank, a learnt vector
    the GPT reads    11 noisy vectors, then <|bos|> red dog
    it learns        red dog <|bos|>                  nothing is predicted at the 11 vectors

In chats (chats.jsonl of prepare_practice.py) it answers questions about such a sentence instead.
After practice a projector only has to make vectors of a kind that the GPT reads already.
"""
from collections import Counter
from functools import partial

import numpy as np
import torch

from files import read_jsonl
from kernels import norm
from language import ENGLISH, spoken_turns
from rows import pad, pad_rows
from texture import TEXTURE
from tokenizer import BPETokenizer, render_conversation

STRETCH = 3         # each piece is repeated 1..STRETCH times
BLANK_SHARE = 0.25  # share of pieces with 1 or 2 blanks before them; 0 to 2 stand at both ends
SWAP_SHARE = 0.04   # share of pieces that are replaced by a random one
RIVAL_SHARE = 0.5   # share of pieces that are mixed with a random one, the rival, as if misheard
RIVAL_WEIGHT = 0.7  # the rival's weight is 0..RIVAL_WEIGHT, the same in all repeats of a piece
BLEND_SHARE = 0.3   # share of places that are blended with the place before, up to half
NOISE = 0.6         # Gaussian noise of 0..NOISE, drawn per row; the vectors have an RMS of 1
SLIP_SHARE = 0.1    # share of the text's tokens that are read wrong: the GPT must trust its ears
EASE_STEPS = 200    # the disturbances grow from nothing to full strength over these steps


class Speller(BPETokenizer):
    """Spells with tok's first n_tokens tokens, or its syllables; special ids are tok's."""

    def __init__(self, tok, n_tokens):
        n_tokens = 256 + tok.n_syllables if tok.n_syllables else n_tokens
        super().__init__(tok.tokens[256:n_tokens])
        self.special_ids, self.bos_id = tok.special_ids, tok.bos_id
        self.tok = tok
        self.spelled = [self.spell(token) for token in tok.tokens] if tok.readings else []

    def encode(self, text):
        if not self.spelled:
            return super().encode(text)
        return [piece for i in self.tok.encode(text) for piece in self.spelled[i]]

    def spell(self, data):
        """Return the ids of a token (bytes) of tok."""
        said = self.tok.readings.get(data)
        each = said.encode().split() if said else [data]
        return [piece for part in each for piece in super(Speller, self).spell(part)]


# ---- imitated recordings

def imitate(ids, spelling, rng, ease):
    """Imitate one sentence: pieces ids (n,) -> pairs (n_places, 2), weights (n_places, 1)."""
    n = len(ids)
    if not n:  # nobody speaks
        n_blanks = int(rng.integers(1, 12))
        return torch.full((n_blanks, 2), -1), torch.zeros(n_blanks, 1)
    pieces = np.where(rng.random(n) < ease * SWAP_SHARE, rng.choice(spelling, n), ids)
    has_rival = rng.random(n) < ease * RIVAL_SHARE
    rival_weights = has_rival * rng.random(n) * RIVAL_WEIGHT
    rivals = rng.choice(spelling, n)
    n_blanks = (rng.random(n) < BLANK_SHARE) * rng.integers(1, 3, n)
    n_blanks[0], n_last = rng.integers(0, 3, 2)
    repeats = rng.integers(1, STRETCH + 1, n)
    counts = np.append(np.stack([n_blanks, repeats], 1), n_last)  # blank, piece, ..., blank
    pairs = np.full((2 * n + 1, 2), -1)
    pairs[1::2] = np.stack([pieces, rivals], 1)
    weights = np.zeros((2 * n + 1, 1))
    weights[1::2, 0] = rival_weights
    return torch.from_numpy(pairs.repeat(counts, 0)), torch.from_numpy(weights.repeat(counts, 0))


def imitate_audio(sentences, spelling, rng, ease=1.0):
    """Imitate recordings of sentences (B arrays of pieces), padded to T_a places.

    spelling: (n,), the pieces that random ones are drawn from. Returns pairs, int64 (B, T_a, 2): a
    piece and its rival, -1 at a blank; float32 (B, T_a, 1), the rival's weight; lengths (B,).
    """
    pairs, weights = zip(*(imitate(ids, spelling, rng, ease) for ids in sentences))
    pairs, lens = pad(pairs)
    return pairs, pad(weights)[0].float(), lens


def practice_features(model, blank, pairs, weights, rng, ease=1.0):
    """Embed imitated recordings -> (B, T_a, C), like a projector's output; each vector has RMS 1.

    blank: parameter (C,), the vector of a blank. Noise is drawn on its device.
    """
    generator = torch.Generator(blank.device).manual_seed(int(rng.integers(2**63)))
    draw = partial(torch.rand, generator=generator, device=blank.device)
    pairs, weights = pairs.to(blank.device), weights.to(blank.device)
    x = norm(model.transformer.wte(pairs.clamp(min=0)))  # (B, T_a, 2, C)
    x = torch.lerp(x[:, :, 0], x[:, :, 1], weights)  # (B, T_a, C)
    x = torch.where(pairs[..., :1] < 0, norm(blank), x)
    before = torch.cat([x[:, :1], x[:, :-1]], dim=1)
    is_blended = draw(*x.shape[:2], 1) < ease * BLEND_SHARE
    x = norm(torch.lerp(x, before, is_blended * 0.5 * draw(*x.shape[:2], 1)))
    gaussian = torch.randn(x.shape, generator=generator, device=blank.device)
    return norm(x + ease * NOISE * draw(len(x), 1, 1) * gaussian)


def slip(idx, ids, bos_id, rng, ease):
    """Replace a share of the read tokens idx (B, T) by random ones of ids (N,), never <|bos|>."""
    slips = (rng.random(idx.shape) < ease * SLIP_SHARE) & (idx != bos_id)
    return np.where(slips, rng.choice(ids, idx.shape), idx)


# ---- chats about imitated recordings

def as_messages(turns, language=ENGLISH):
    """Return {"messages": [...]} of turns [(task, question, answer), ...]."""
    messages = []
    for _, question, answer in turns:
        messages += [{"role": "user", "content": language.plain(question)},
                     {"role": "assistant", "content": language.plain(answer)}]
    return {"messages": messages}


def read_chats(path, speller, limit):
    """Read chats.jsonl -> {"train": [(heard, chat), ...], "val": ...}, Counter of left-outs.

    heard: (int (n,), the sentence in pieces; {task: answer}, how it sounds); chat: as_messages().
    A chat that could take over `limit` positions is left out. ValueError: no chat.
    """
    chats, left_out = {"train": [], "val": []}, Counter()
    for _, row in read_jsonl(path, split=str, text=str, labels=dict, turns=list):
        turns = spoken_turns(row["turns"], left_out)
        if not turns:
            continue
        chat, pieces = as_messages(turns), np.array(speller.encode(row["text"]), dtype=int)
        n_text = len(render_conversation(speller, chat)[0])
        if TEXTURE + (STRETCH + 2) * len(pieces) + 11 + n_text > limit:
            left_out[f"over {limit} positions"] += 1
        else:
            chats[row["split"]].append(((pieces, row["labels"]), chat))
    if not all(chats.values()):
        raise ValueError(f"{path} has no chat for train or val: run prepare_practice.py again")
    return chats, left_out


def render_chats(chats, tokenizer):
    """Render B chats -> idx, targets, int64 (B, T); targets are -1 outside answers."""
    rows, targets = [], []
    for _, chat in chats:
        ids, mask = map(np.array, render_conversation(tokenizer, chat))
        rows.append(ids)
        targets.append(np.where(mask, ids, -1))
    return pad_rows(rows, targets, tokenizer.bos_id)


def count_right(best, targets):
    """Count answers (runs of targets): ids best, targets (B, T) -> (right in all tokens, all)."""
    n_right = n_all = 0
    for ids, wanted in zip(best, targets):
        answers = np.ma.clump_masked(np.ma.masked_where(wanted >= 0, wanted))  # slices
        n_all += len(answers)
        n_right += sum((ids[answer] == wanted[answer]).all() for answer in answers)
    return n_right, n_all
