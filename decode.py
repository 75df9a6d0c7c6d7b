"""Decoding: sampling, streamed text, transcripts by beam search, and the log-probability of answers given."""
import math

import torch
import torch.nn as nn

from model import KVCache


def sample(logits, temperature, top_k, top_p, generator):
    """Choose a token a row: logits (B, V) -> ids (B,). temperature 0 is greedy; top_k 0 and top_p 1 are off."""
    if temperature == 0:
        return logits.argmax(dim=1)
    logits, order = (logits / temperature).sort(dim=1, descending=True)
    if top_k > 0:
        logits[:, top_k:] = -math.inf
    probs = logits.softmax(dim=1)
    before = probs.cumsum(dim=1) - probs  # mass of the tokens ahead of each; the first always stays
    probs = probs.masked_fill(before >= top_p, 0.0) if top_p < 1 else probs
    return order.gather(1, torch.multinomial(probs, 1, generator=generator)).squeeze(1)


def pad(rows, device, value=0):
    """Lists of ids or of tensors (n, ...) -> (B, longest, ...), and their lengths (B,)."""
    lens = torch.tensor([len(row) for row in rows], device=device)
    rows = [torch.as_tensor(row).to(device) for row in rows]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value), lens


def prefill(model, prompts, audio, audio_at, room):
    """Read B prompts (lists of ids) with their audio (None, or B tensors (T_a, C)) into a cache with `room` to spare.

    Returns (KVCache, logits (B, V) of what follows each prompt).
    """
    (idx, text_lens), features, audio_lens = pad(prompts, model.cos.device), None, None
    if audio is not None:
        features, audio_lens = pad(audio, model.cos.device)
    n = idx.size(1) + (0 if features is None else features.size(1))
    cache = KVCache(model.config, len(prompts), n + room, model.cos.device)
    logits = model(idx, kv_cache=cache, audio_features=features, audio_lens=audio_lens, text_lens=text_lens,
                   audio_at=audio_at, logits_at=text_lens - 1)
    return cache, logits[:, 0]


@torch.inference_mode()
def generate(model, prompts, audio=None, audio_at=0, max_tokens=64, temperature=0.0, top_k=0, top_p=1.0,
             stop_ids=(), seed=0):
    """Stream the continuation of B prompts, decoded together.

    prompts: B lists of at least one id. audio: None, or B tensors (T_a, C). Yields, a step at a time, a list of B
    entries: the token id, or None once that row has ended at one of stop_ids (which is not given out).
    """
    cache, logits = prefill(model, prompts, audio, audio_at, max_tokens)
    generator = torch.Generator(device=logits.device).manual_seed(seed)
    stopped = [False] * len(prompts)
    for step in range(max_tokens):
        ids = sample(logits, temperature, top_k, top_p, generator)
        out = ids.tolist()
        stopped = [done or token in stop_ids for done, token in zip(stopped, out)]
        if all(stopped):
            return
        yield [None if done else token for done, token in zip(stopped, out)]
        if step + 1 < max_tokens:
            logits = model(ids[:, None], kv_cache=cache)[:, -1]


@torch.inference_mode()
def transcribe(model, projector, tok, features, audio_at=0, beams=1, prompt=None, cut=None):
    """Transcripts of clips by beam search, decoded together; a clip alone gives the same as in a batch.

    A transcript has room for 16 bytes and 25 a second, for a model may write in a loop. cut: a list, to which the index
    of each clip is added whose transcript was cut off there.

    features: B float arrays or tensors (T, n_taps, D), 50 frames a second. beams: hypotheses kept a clip, 1 is greedy;
    of as many that ended, at any special token, the one of the highest log-probability a token wins. prompt: ids that
    stand with the audio, bos unless a question asks for the transcript. Returns a list of B str.
    """
    cut = [] if cut is None else cut
    prompt, ends = prompt or [tok.bos_id], {i for i, n in enumerate(tok.token_bytes()) if not n}
    features = [torch.as_tensor(f, device=model.cos.device) for f in features]
    lens = torch.tensor([len(f) for f in features], device=model.cos.device)
    audio, audio_lens = projector(nn.utils.rnn.pad_sequence(features, batch_first=True), lens)  # (B, T_a, C)
    sizes = tok.token_bytes()
    room = [16 + len(f) // 2 for f in features]  # bytes
    audio = [row[:n] for row, n in zip(audio, audio_lens)]
    cache, logits = prefill(model, [prompt] * len(audio), audio, audio_at, max(room))
    ended, live = [[] for _ in room], [(i, 0.0, []) for i in range(len(room))]  # (clip, log-probability, ids)
    for _ in range(max(room) + 1):
        following = extend(live, logits, beams)
        rows, live = [], []
        for i, candidates in following.items():
            kept = []
            for rank, (total, row, ids) in enumerate(candidates):
                if ids[-1] in ends and rank < beams:
                    ended[i].append((total / len(ids), ids[:-1]))
                elif ids[-1] not in ends and len(kept) < beams and sum(sizes[token] for token in ids) <= room[i]:
                    kept.append((row, (i, total, ids)))
            if not kept and not ended[i]:  # a loop: cut off where the room ends
                ended[i].append((0.0, candidates[0][2][:-1]))
                cut.append(i)
            if len(ended[i]) < beams:
                rows += [row for row, _ in kept]
                live += [hypothesis for _, hypothesis in kept]
        if not live:
            break
        cache.select(rows)
        last = torch.tensor([[ids[-1]] for *_, ids in live], device=lens.device)
        logits = model(last, kv_cache=cache)[:, -1]
    for i, _, ids in live:
        if not ended[i]:
            ended[i] = [(0.0, ids)]
            cut.append(i)
    return [" ".join(tok.decode(max(hypotheses)[1]).split()) for hypotheses in ended]


def extend(live, logits, beams):
    """Return {clip: its 2*beams likeliest (log-probability, row, ids)}, best first, of live hypotheses one token on.

    live: [(clip, log-probability, ids)], a row of logits (rows, V) each.
    """
    found, n = {}, min(2 * beams, logits.size(1))
    best, tokens = (x.tolist() for x in logits.log_softmax(1).topk(n))  # (hypotheses, n)
    for row, (i, total, ids) in enumerate(live):
        found.setdefault(i, []).extend((total + p, row, [*ids, token]) for p, token in zip(best[row], tokens[row]))
    return {i: sorted(candidates, key=lambda c: -c[0])[:2 * beams] for i, candidates in found.items()}


@torch.inference_mode()
def score_answers(model, prompts, answers, audio=None, audio_at=0):
    """Summed log-probability of answers after prompts; each prompt is read once, whatever the number of its answers.

    prompts: B lists of ids; answers: B lists of K lists of ids, with the token that ends them; audio: None, or B
    tensors (T_a, C). Returns float32 (B, K).
    """
    K, flat = len(answers[0]), [answer for each in answers for answer in each]
    cache, logits = prefill(model, prompts, audio, audio_at, max(map(len, flat)))
    cache.select([b for b in range(len(prompts)) for _ in range(K)])
    first = logits.repeat_interleave(K, dim=0)[:, None]  # (B*K, 1, V)
    targets, lens = pad(flat, first.device, -1)
    if targets.size(1) > 1:
        rest = model(targets[:, :-1].clamp(min=0), kv_cache=cache, text_lens=lens - 1)
        first = torch.cat([first, rest], 1)
    each = first.log_softmax(2).gather(2, targets.clamp(min=0)[..., None])[..., 0]  # (B*K, T)
    return (each * (targets >= 0)).sum(1).view(-1, K)
