"""Decoding: sampling, answers, transcripts by beam search, scores of given answers."""
from functools import cache
from itertools import accumulate, chain, islice, pairwise

import torch
import torch.nn.functional as F

from kv_cache import KVCache
from practice import Speller
from rows import pad

CTC_WEIGHT = 0.3  # of the CTC head's log-probability beside the LM's; chosen on held-out clips
NEVER = -1e30     # the log-probability of what can't be


def sample(logits, temperature, top_p, generator):
    """Draw a token a row of logits (B, V), of the likeliest that sum up to top_p -> ids (B,)."""
    if temperature == 0:
        return logits.argmax(dim=1)
    logits, order = (logits / temperature).sort(dim=1, descending=True)
    probs = logits.softmax(dim=1)
    if top_p < 1:
        before = probs.cumsum(dim=1) - probs  # of the likelier tokens; the first always stays
        probs = probs.masked_fill(before >= top_p, 0.0)
    return order.gather(1, torch.multinomial(probs, 1, generator=generator)).squeeze(1)


def prefill(model, prompts, audio):
    """Read B prompts (lists of ids) into a cache.

    audio: None, or B tensors (T_a, C). Returns (KVCache, logits (B, V) after each prompt).
    """
    device = model.cos.device
    idx, text_lens = pad(prompts, device)
    features = audio_lens = None
    if audio is not None:
        features, audio_lens = pad(audio, device)
    cache = KVCache(model.config, len(prompts), device)
    logits = model(idx, kv_cache=cache, audio_features=features, audio_lens=audio_lens,
                   text_lens=text_lens, logits_at=text_lens - 1)
    return cache, logits[:, 0]


@torch.inference_mode()
def generate(model, prompts, audio=None, max_tokens=64, stop_ids=()):
    """Continue B prompts (lists of ids) together, greedily; audio: None, or B tensors (T_a, C).

    Returns B lists of ids; each ends before one of stop_ids.
    """
    cache, logits = prefill(model, prompts, audio)
    said, live = [[] for _ in prompts], set(range(len(prompts)))
    for step in range(max_tokens):
        if step:
            logits = model(ids[:, None], kv_cache=cache)[:, -1]
        ids = logits.argmax(dim=1)
        for b, token in enumerate(ids.tolist()):
            if token in stop_ids:
                live.discard(b)
            elif b in live:
                said[b].append(token)
        if not live:
            break
    return said


# ---- transcripts

@torch.inference_mode()
def transcribe(model, projector, tok, features, beams=1, cut=None, said=()):
    """Return the transcripts (list of B str) of clips by beam search.

    features: B float arrays or tensors (T, n_taps, D), 50 frames a second. beams: hypotheses kept a
    clip; 1 is greedy. Any special token ends one; the highest mean log-probability a token wins.
    A CTC head's log-probability counts CTC_WEIGHT times beside the LM's. cut: a list that gets the
    index of each clip whose transcript was cut off at 16 characters and 25 a second (the model
    writes in a loop). said: ids that each transcript begins with.
    """
    device = model.cos.device
    features, lens = pad(features, device)
    audio, audio_lens = projector(features, lens)  # (B, T_a, C)
    audio = [row[:n] for row, n in zip(audio, audio_lens)]
    room = [16 + n // 2 for n in lens.tolist()]  # characters
    cache, logits = prefill(model, [[tok.bos_id, *said]] * len(audio), audio)
    ctc = CTCScores(projector, tok, audio) if projector.ctc_head else None
    search = Search(tok.token_chars(), room, beams, ctc, said)
    while rows := search.step(logits):
        cache.select(rows)
        last = torch.tensor([[ids[-1]] for _, _, ids in search.live], device=device)
        logits = model(last, kv_cache=cache)[:, -1]
    if cut is not None:
        cut += search.cut
    best = [max(ended)[1] for ended in search.ended]
    return [" ".join(tok.decode(ids).split()) for ids in best]


@torch.inference_mode()
def spell(projector, tok, features):
    """Return what the projector's CTC head alone hears, greedily: a list of B str.

    features: as in transcribe(); tok: its first tokens are the head's pieces.
    """
    audio, audio_lens = projector(*pad(features, projector.mean.device))
    texts = []
    for row, n in zip(projector.ctc_head(audio.float()).argmax(2), audio_lens):
        ids = torch.unique_consecutive(row[:n])
        ids = ids[ids < projector.ctc_head.out_features - 1].tolist()
        texts.append(" ".join(tok.decode(ids).split()))
    return texts


@torch.inference_mode()
def word_times(projector, tok, features, words):
    """Return when each word of a clip's transcript is said: [(start, end)] in seconds.

    features: float array (T, n_taps, D); words: list of str. A word lasts from the first audio
    token of its first piece to the last of its last piece, as the projector's CTC head hears them.
    """
    audio, _ = projector(*pad([features], projector.mean.device))
    audio = audio[0, projector.texture:]  # (T_a, C)
    log_probs = projector.ctc_head(audio.float()).log_softmax(1).cpu()
    speller = Speller(tok, log_probs.size(1) - 1)
    spelled = [speller.encode(" " * (i > 0) + word) for i, word in enumerate(words)]
    pieces = [*chain.from_iterable(spelled)]
    n_least = len(pieces) + sum(a == b for a, b in pairwise(pieces))
    repeats = max(-(-n_least // len(log_probs)), 1)  # over 1: more pieces than audio tokens
    first, end = align(log_probs.repeat_interleave(repeats, 0), pieces)
    place_s = projector.stack / 50 / repeats
    ends = accumulate(map(len, spelled))  # the number of pieces up to a word's last
    return [(first[n - len(own)] * place_s, end[n - 1] * place_s) for own, n in zip(spelled, ends)]


def align(log_probs, pieces):
    """Find the likeliest CTC path (Viterbi) through a text's pieces, a list of n ids.

    log_probs: (T, pieces and blank); T is at least n, and one more where a piece comes twice in a
    row. Returns two lists of n: each piece's first place, and the place after its last.
    """
    blank = log_probs.size(1) - 1
    states = torch.tensor([blank, *chain.from_iterable((piece, blank) for piece in pieces)])
    own = log_probs[:, states]  # (T, 2n + 1)
    barred = F.pad(states[2:] == states[:-2], (2, 0), value=True)  # a blank can't be left out
    best = torch.full_like(own[0], NEVER)
    best[:2] = own[0, :2]
    steps = []  # states moved on, at each place after the first
    for row in own[1:]:
        before = F.pad(best, (2, 0), value=NEVER)
        ways = torch.stack([best, before[1:-1], before[:-2].masked_fill(barred, NEVER)])
        best, step = ways.max(0)
        best = best + row
        steps.append(step)
    path = [len(states) - 1 - int(best[-2:].argmax() == 0)]
    for step in reversed(steps):
        path.append(path[-1] - int(step[path[-1]]))
    path, at = torch.tensor(path[::-1]), torch.arange(1, len(states), 2)
    return torch.searchsorted(path, at).tolist(), torch.searchsorted(path, at, right=True).tolist()


class CTCScores:
    """Log-probabilities of growing texts by a CTC head (Hori et al., arXiv:1706.02737).

    state: of each live hypothesis that just its pieces are written by each place of the audio: n, b
    (rows, 1 + T_a), where a piece or a blank was the last; its last piece; its clip.
    """

    def __init__(self, projector, tok, audio):
        """audio: B tensors (T_a, C), texture tokens first."""
        log_probs = [projector.ctc_head(row[projector.texture:].float()).log_softmax(1)
                     for row in audio]
        self.log_probs, lens = pad(log_probs, audio[0].device, -1e4)  # (B, T_a, pieces and blank)
        self.blank = self.log_probs[..., -1]
        self.blank[torch.arange(self.blank.size(1), device=lens.device) >= lens[:, None]] = 0
        self.pieces = spelling(tok, log_probs[0].size(1) - 1).to(lens.device)
        b = F.pad(self.blank.cumsum(1), (1, 0))
        rows = torch.arange(len(audio), device=lens.device)
        self.state = torch.full_like(b, NEVER), b, torch.full_like(rows, -1), rows

    def extend(self, tokens):
        """Return the log-probabilities (rows, K) of the texts that begin with a row and one of its
        next tokens, ids (rows, K); after a special token the text is whole. keep() must follow.
        """
        rows = torch.arange(len(tokens), device=tokens.device).repeat_interleave(tokens.size(1))
        n, b, last, clips = (x[rows] for x in self.state)
        score = torch.logaddexp(n[:, -1], b[:, -1])
        for pieces in self.pieces[tokens.flatten()].T:
            at = (pieces >= 0).nonzero()[:, 0]  # texts with one more piece
            if not len(at):
                break
            piece, clip = pieces[at], clips[at]
            own = self.log_probs[clip, :, piece]
            is_same = (piece == last[at])[:, None]
            before = torch.where(is_same, b[at], torch.logaddexp(n[at], b[at]))[:, :-1]
            n[at], last[at] = advance(before, own), piece
            b[at] = advance(n[at, :-1], self.blank[clip])
            score[at] = torch.logsumexp(before + own, 1)
        self.state = n, b, last, clips
        return score.view(tokens.shape)

    def keep(self, places):
        """Keep the hypotheses at places (list of ints) of the last tokens, flattened."""
        self.state = tuple(x[places] for x in self.state)


def advance(before, own):
    """Return log-probabilities x (N, 1 + T): x[t + 1] = own[t] + logaddexp(x[t], before[t]).

    before, own: (N, T); x[0] is NEVER.
    """
    total = own.cumsum(1)
    return F.pad(total + torch.logcumsumexp(before - (total - own), 1), (1, 0), value=NEVER)


@cache
def spelling(tok, n_pieces):
    """Return the pieces that spell each token, int64 (V, longest), -1 behind."""
    speller = Speller(tok, n_pieces)
    special = [[]] * len(tok.special_ids)
    return pad([*map(speller.spell, tok.tokens), *special], value=-1)[0].long()


class Search:
    """A beam search of several clips.

    sizes: characters of each id, 0: it ends a transcript; room: of each clip. live:
    [(clip, the LM's log-probability, ids)], a row of logits each. ended: of each clip [(mean
    log-probability, ids)].
    """

    def __init__(self, sizes, room, beams, ctc=None, said=()):
        self.sizes, self.room, self.beams, self.ctc = sizes, room, beams, ctc
        self.n_next = 4 * beams if ctc else 2 * beams  # tokens of a row that are tried
        known = [0.0] * len(room)  # what a score counts of them all the same
        for token in said if ctc else ():
            tokens = torch.full((len(room), 1), token, device=ctc.blank.device)
            known = (CTC_WEIGHT * ctc.extend(tokens)[:, 0]).tolist()
        self.live = [(clip, -known[clip], [*said]) for clip in range(len(room))]
        self.ended = [[] for _ in room]
        self.cut = []

    def step(self, logits):
        """Add a token, given logits (rows, V) -> rows of the cache that the new `live` goes on."""
        candidates = self.extend(logits)
        places, self.live = [], []
        for clip, best in candidates.items():
            kept = []
            for rank, (score, total, place, ids) in enumerate(best):
                n_chars = sum(self.sizes[token] for token in ids)
                if not self.sizes[ids[-1]]:
                    if rank < self.beams:
                        self.ended[clip].append((score / len(ids), ids[:-1]))
                elif len(kept) < self.beams and n_chars <= self.room[clip]:
                    kept.append((place, (clip, total, ids)))
            if not kept and not self.ended[clip]:
                self.ended[clip].append((0.0, best[0][3][:-1]))
                self.cut.append(clip)
            if len(self.ended[clip]) < self.beams:
                places += [place for place, _ in kept]
                self.live += [hypothesis for _, hypothesis in kept]
        if self.ctc:
            self.ctc.keep(places)
        return [place // self.n_next for place in places]

    def extend(self, logits):
        """Return {clip: its 2*beams likeliest (score, log-probability, place, ids)}, best first."""
        best, tokens = logits.log_softmax(1).topk(self.n_next)
        heard = CTC_WEIGHT * self.ctc.extend(tokens) if self.ctc else torch.zeros_like(best)
        nexts = enumerate(zip(*(x.flatten().tolist() for x in (best, tokens, heard))))
        found = {}
        for clip, total, ids in self.live:
            for place, (p, token, more) in islice(nexts, self.n_next):
                row = total + p + more, total + p, place, [*ids, token]
                found.setdefault(clip, []).append(row)
        return {clip: sorted(each, key=lambda candidate: -candidate[0])[:2 * self.beams]
                for clip, each in found.items()}


@torch.inference_mode()
def score_answers(model, prompts, answers, audio=None):
    """Return float32 (B, K), the summed log-probability of K answers after each of B prompts.

    prompts: lists of ids; answers: B lists of K of them, one of 2 ids or more; audio: None, or B
    tensors (T_a, C).
    """
    K, flat = len(answers[0]), list(chain.from_iterable(answers))
    cache, logits = prefill(model, prompts, audio)
    cache.select([i // K for i in range(len(flat))])
    logits = logits.repeat_interleave(K, dim=0)[:, None]  # (B*K, 1, V)
    targets, lens = pad(flat, logits.device, -1)
    idx = targets[:, :-1].clamp(min=0)
    logits = torch.cat([logits, model(idx, kv_cache=cache, text_lens=lens - 1)], 1)
    each = logits.log_softmax(2).gather(2, targets.clamp(min=0)[..., None])[..., 0]  # (B*K, T)
    return (each * (targets >= 0)).sum(1).view(-1, K)
