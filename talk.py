"""Conversations with a model that hears: rows of ids and recordings, decoded together, each going on where it was read.

A prompt is a list of token ids and Recordings, in the order in which the model reads them.
"""
import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from audio import HOP, SAMPLE_RATE, encode, load_ears, n_audio_tokens, split_at_pauses
from decode import pad, sample, transcribe
from checkpoints import load_checkpoint
from device import pick_device
from model import KVCache, for_inference
from tokenizer import load_tokenizer, render_conversation
from transcripts import plain_text


LONGEST = 512  # ids read at once: attention over more takes memory with the square


@dataclass(frozen=True)
class Recording:
    """float32 wav (n,) at 16 kHz, of which the model reads n_tokens audio tokens; the same sound has the same key."""
    key: str
    n_tokens: int
    wav: np.ndarray = field(compare=False, repr=False)


@dataclass(eq=False)
class Row:
    """A prompt and how to continue it; `ids` grows by a token a step."""
    prompt: list
    max_tokens: int = 64
    temperature: float = 0.0  # 0: the likeliest token
    top_k: int = 0            # 0: any
    top_p: float = 1.0
    presence_penalty: float = 0.0   # taken off the logits of what this answer has said (OpenAI's)
    frequency_penalty: float = 0.0  # the same, for each time
    seed: int = 0
    stop_ids: tuple = ()
    ids: list = field(default_factory=list)
    ended: str = ""           # 'stop' (at one of stop_ids, which is not in ids) or 'length'


class Text:
    """The text of ids as they come: half a UTF-8 character waits, and so does what may begin a stop string."""

    def __init__(self, tok, strip=False, stop=()):
        self.tok, self.strip, self.stop = tok, strip, [s for s in stop if s]
        self.ids, self.shown, self.stopped = [], 0, False

    def add(self, token=None):
        """Take one more id (None: there are no more) -> str, what can be shown of the text now."""
        if self.stopped:
            return ""  # what follows a stop string
        if token is not None:
            self.ids.append(token)
        text = self.tok.decode(self.ids).removeprefix(" " * self.strip)
        found = [at for at in (text.find(s) for s in self.stop) if at >= 0]
        end = len(text)
        if found:
            end, self.stopped = min(found), True
        elif token is not None:
            end -= len(text) - len(text.rstrip("\ufffd"))
            end = next((end - n for n in range(max(map(len, self.stop), default=1) - 1, 0, -1)
                        if any(s.startswith(text[max(end - n, 0):end]) and n <= end for s in self.stop)), end)
        new = text[self.shown:end]
        self.shown = max(self.shown, end)
        return new


class Talker:
    """A run's model, tokenizer and ears."""

    def __init__(self, ckpt, step=-1, device="auto"):
        model, meta = load_checkpoint(ckpt, step, pick_device(device))
        self.model = for_inference(model)
        self.tok = load_tokenizer(ckpt, self.model.config.vocab_size)
        self.step, self.ears, self.device = meta["step"], meta.get("audio"), self.model.cos.device
        self.limit = self.model.cos.size(0)  # tokens of a conversation
        if self.ears:
            self.encoder, projector = load_ears(ckpt, meta, self.device)
            self.projector = for_inference(projector)
        self.plain = bool(self.ears) and self.ears.get("plain", False)
        self.can_chat = (self.ears["prompt"] == "chat" if self.ears else meta.get("conversations", False)
                         or "depth" not in meta.get("user_config", {}))  # which nanochat's bases have, its chats not

    def record(self, wav):
        """float32 (n,) at 16 kHz -> Recording."""
        frames = max(-(-len(wav) // HOP) // 2, 1)  # encoder frames of 20 ms
        n = n_audio_tokens(frames, self.projector.stack) + self.projector.arguments.get("texture", 0)
        return Recording(hashlib.sha256(wav.tobytes()).hexdigest(), n, wav)

    def hear(self, wavs):
        """Recordings' samples -> list of audio tokens (T_a, C)."""
        feats = [torch.from_numpy(f).to(self.device) for f in encode(self.encoder, wavs, tuple(self.ears["taps"]))]
        audio, lens = self.projector(*pad(feats, self.device))
        return [row[:n] for row, n in zip(audio, lens.tolist())]

    def transcripts(self, wav, beams=5, cut=None):
        """Yield the transcript of float32 (n,), a piece at a time, cut at pauses to the length of training's clips.

        cut: a list that gets an item for each piece whose transcript ran into its limit (decode.transcribe).
        """
        for start, end in split_at_pauses(wav, self.ears.get("piece_s", 15.0)):
            feats = encode(self.encoder, [wav[start:end]], tuple(self.ears["taps"]))
            yield transcribe(self.model, self.projector, self.tok, feats, self.ears["audio_at"], beams, cut=cut)[0]

    def prompt(self, messages):
        """Messages -> list of ids and Recordings that the next answer follows; ValueError says what is wrong with them.

        messages: [(role, text, Recording or None)], user and assistant in turn, a system's before them joined to the
        first user's.
        """
        clean = (lambda text: plain_text(text, strict=False)) if self.plain else str
        ids, _ = render_conversation(self.tok, {"messages": [
            {"role": role, "content": clean(text)} for role, text, _ in messages]})
        starts = [i for i, token in enumerate(ids) if token == self.tok.special("<|user_start|>")]
        items, last = [], 0
        for turn, (start, sound) in enumerate(zip(starts, (s for role, _, s in messages if role == "user"))):
            if sound:
                at = start + max(self.ears["audio_at"] - 1, 0) if turn else self.ears["audio_at"]
                items += [*ids[last:at], sound]
                last = at
        return [*items, *ids[last:], self.tok.special("<|assistant_start|>")]

    def stop_ids(self):
        """The tokens that end an answer."""
        return self.tok.special("<|assistant_end|>"), self.tok.bos_id


def joined(wavs):
    """Recordings of one message as one, 0.2 s of silence between them; None where there are none."""
    silence = np.zeros(SAMPLE_RATE // 5, np.float32)
    return np.concatenate([part for wav in wavs for part in (silence, wav)][1:]) if wavs else None


def size(items):
    """Places that a list of ids and Recordings takes."""
    return sum(1 if isinstance(item, int) else item.n_tokens for item in items)


def segments(items):
    """Cut ids and Recordings before each Recording, long texts too -> [(Recording or None, ids), ...]."""
    parts = [(None, [])]
    for item in items:
        if isinstance(item, int):
            if len(parts[-1][1]) == LONGEST:
                parts.append((None, []))
            parts[-1][1].append(item)
        else:
            parts.append((item, []))
    return parts if parts[0][1] else parts[1:]


class Batch:
    """Rows that are decoded together; they join and leave between tokens, and alone each would say the same.

    hear: [wav] -> [audio tokens]. keep_bytes: of keys and values of ended rows, kept for what goes on from them (a
    conversation's next turn, another question about the same recording); the least recently used go first.
    """

    def __init__(self, model, hear=None, keep_bytes=0):
        self.model, self.hear, self.keep_bytes = model, hear, keep_bytes
        self.kept = OrderedDict()  # tuple of items -> a cache of one row that has read them
        self.rows, self.cache, self.logits, self.generators = [], None, None, {}

    @torch.inference_mode()
    def add(self, rows):
        """Read the rows' prompts and let them join."""
        known = [self.recall(row.prompt) for row in rows]  # (cache or None, items of the prompt that it has read)
        clips = list({item: None for row, (_, n) in zip(rows, known) for item in row.prompt[n:]
                      if not isinstance(item, int)})
        heard = dict(zip(clips, self.hear([clip.wav for clip in clips]))) if clips else {}
        parts = [segments(row.prompt[n:]) for row, (_, n) in zip(rows, known)]
        longest = max(size(row.prompt) + row.max_tokens for row in [*rows, *self.rows])
        sources = [(old, 0, size(row.prompt[:n])) for row, (old, n) in zip(rows, known)]
        cache = KVCache.gather(self.model.config, sources, longest, self.model.cos.device)
        for b, (row, (_, n)) in enumerate(zip(rows, known)):  # smear reads the last text before what is new
            text = [item for item in row.prompt[:n] if isinstance(item, int)]
            cache.previous[b] = self.embed(text[-1]) if text else 0
        logits = self.read(cache, parts, heard)
        if self.rows:
            old = [(self.cache, b, n) for b, n in enumerate(self.cache.lens.tolist())]
            new = [(cache, b, n) for b, n in enumerate(cache.lens.tolist())]
            cache = KVCache.gather(self.model.config, old + new, longest, self.model.cos.device)
            logits = torch.cat([self.logits, logits])
        self.rows, self.cache, self.logits = [*self.rows, *rows], cache, logits
        for row in rows:
            self.generators[row] = torch.Generator(self.model.cos.device).manual_seed(row.seed)

    def embed(self, token):
        return self.model.embed(torch.tensor([token], device=self.model.cos.device))

    def read(self, cache, parts, heard):
        """Append each row's segments to the cache -> logits (B, V) of what follows."""
        device, logits = self.model.cos.device, None
        for k in range(max(map(len, parts))):
            now = [each[k] if k < len(each) else (None, []) for each in parts]
            idx, text_lens = pad([torch.tensor(ids, dtype=torch.long) for _, ids in now], device)
            idx = idx if idx.size(1) else idx.new_zeros(len(now), 1)
            audio = audio_lens = None
            if any(sound for sound, _ in now):
                none = next(iter(heard.values()))[:0]
                audio, audio_lens = pad([heard[sound] if sound else none for sound, _ in now], device)
            out = self.model(idx, kv_cache=cache, audio_features=audio, audio_lens=audio_lens, text_lens=text_lens,
                             logits_at=(text_lens - 1).clamp(min=0))[:, 0]
            logits = out if logits is None else torch.where((text_lens > 0)[:, None], out, logits)
        return logits

    @torch.inference_mode()
    def step(self):
        """One more token of every row -> [(row, id)]; id None: the row ended at a stop id. Ended rows leave."""
        said, going = [], []
        for b, (row, token) in enumerate(zip(self.rows, self.choose())):
            row.ended = "stop" if token in row.stop_ids else ""
            if not row.ended:
                row.ids.append(token)
                row.ended = "length" if len(row.ids) >= row.max_tokens else ""
            said.append((row, None if row.ended == "stop" else token))
            going.append(not row.ended)
        tokens = [row.ids[-1] for row, goes in zip(self.rows, going) if goes]
        self.drop([row for row, goes in zip(self.rows, going) if not goes])
        if tokens:
            idx = torch.tensor(tokens, device=self.model.cos.device)[:, None]
            self.logits = self.model(idx, kv_cache=self.cache)[:, -1]
        return said

    def choose(self):
        """The next id of every row."""
        ids = self.logits.argmax(1).tolist()
        for b, row in enumerate(self.rows):
            logits = self.logits[b:b + 1]
            if row.ids and (row.presence_penalty or row.frequency_penalty):
                counts = torch.bincount(torch.tensor(row.ids, device=logits.device), minlength=logits.size(1))
                logits = logits - row.frequency_penalty * counts - row.presence_penalty * (counts > 0)
                ids[b] = int(logits.argmax())
            if row.temperature:
                ids[b] = sample(logits, row.temperature, row.top_k, row.top_p, self.generators[row]).item()
        return ids

    @torch.inference_mode()
    def drop(self, rows):
        """Let rows leave; what they have read is kept for what goes on from it."""
        gone = [b for b, row in enumerate(self.rows) if row in rows]
        lens = self.cache.lens.tolist() if gone else []
        for b in gone if self.keep_bytes else ():
            row = self.rows[b]
            items = [*row.prompt, *row.ids][:len(row.prompt) + lens[b] - size(row.prompt)]  # the last id was not read
            self.keep(items, KVCache.gather(self.model.config, [(self.cache, b, lens[b])], lens[b], self.logits.device))
        for b in gone:
            del self.generators[self.rows[b]]
        if gone:
            left = [b for b in range(len(self.rows)) if b not in gone]
            self.rows = [self.rows[b] for b in left]
            if left:
                self.logits = self.logits[left]
                self.cache.select(left)

    def keep(self, items, cache):
        """Keep a row's cache under the items that it has read, and forget the least recently used."""
        items = tuple(item if isinstance(item, int) else replace(item, wav=None) for item in items)
        for shorter in [known for known in self.kept if known == items[:len(known)]]:
            del self.kept[shorter]
        self.kept[items] = cache
        while sum(2 * cache.k.nbytes for cache in self.kept.values()) > self.keep_bytes:
            self.kept.popitem(last=False)

    def recall(self, prompt):
        """-> (the kept cache that has read most of the prompt's beginning, or None; how many items); never the last."""
        best, most = None, 0
        for items in self.kept:
            n = 0
            for a, b in zip(items, prompt[:-1]):
                if a != b:
                    break
                n += 1
            if n > most:
                best, most = items, n
        if best is None:
            return None, 0
        self.kept.move_to_end(best)
        return self.kept[best], most
