"""A run that talks: its model, tokenizer and ears, and the rows that it decodes together.

A prompt is a list of token ids; a Recording may stand in front of them.
"""
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from audio import HOP, encode, load_ears, n_audio_tokens
from checkpoints import checkpoint_steps, load_checkpoint
from decode import prefill, sample, spell, transcribe, word_times
from device import pick_device, prefer_int8
from kv_cache import KVCache
from language import Language
from model import for_inference, with_int8
from pauses import measure_loudness, split_at_pauses
from recordings import SAMPLE_RATE
from tokenizer import load_tokenizer, render_conversation

BEAMS = 5      # hypotheses kept for each recording, as Whisper keeps
LONGEST = 512  # ids read at once: the memory of attention grows with their square


@dataclass(eq=False)
class Recording:
    """float32 wav (n,) at 16 kHz, read as n_tokens audio tokens."""
    n_tokens: int
    wav: np.ndarray


class Word(NamedTuple):
    text: str
    start_s: float
    end_s: float


class Piece(NamedTuple):
    """What is said in a piece of a recording, and from when to when."""
    text: str
    is_cut: bool  # the model wrote in a loop, and its text was cut off
    start_s: float
    end_s: float
    words: list[Word] = []  # none where the model can't tell their times


@dataclass(eq=False)
class Row:
    """A prompt and how to continue it; `ids` grows by one token a step."""
    prompt: list
    max_tokens: int = 64
    temperature: float = 0.0  # 0: the likeliest token
    top_p: float = 1.0        # drawn from the likeliest tokens that sum up to it
    seed: int = 0
    stop_ids: tuple = ()
    ids: list = field(default_factory=list)
    ended: str = ""           # "stop" (at one of stop_ids, which `ids` lacks) or "length"
    generator: torch.Generator = None


class Text:
    """Turns ids into text as they come; half a UTF-8 character is held back.

    Special tokens are no text.
    strip: leave out the first space. stop: strings; the text ends before the first of them.
    """

    def __init__(self, tok, strip=False, stop=()):
        self.tok = tok
        self.special = set(tok.special_ids.values())
        self.strip = strip
        self.stop = [s for s in stop if s]
        self.n_held = max(map(len, self.stop), default=1) - 1  # they may begin one
        self.ids = []
        self.shown = ""
        self.stopped = False

    def add(self, token=None):
        """Take the next id, or None at the end -> the new text."""
        if self.stopped:
            return ""
        if token is not None:
            self.ids.append(token)
        ids = [i for i in self.ids if i not in self.special]
        text = self.tok.decode(ids).removeprefix(" " * self.strip)
        ends = [text.find(s) for s in self.stop if s in text]
        self.stopped = bool(ends)
        if ends:
            text = text[:min(ends)]
        elif token is not None:
            text = text.rstrip("\ufffd")
            text = text[:max(len(text) - self.n_held, 0)]
        new = text[len(self.shown):]
        self.shown += new
        return new


def default_run():
    """Return out/cpu_w3 where it is a run, else the folder of the model that comes with us."""
    own = str(Path(__file__).with_name("pretrained"))
    return "out/cpu_w3" if checkpoint_steps("out/cpu_w3") else own


class Talker:
    """A run's model, tokenizer and ears; ValueError or OSError: its files are wrong."""

    def __init__(self, ckpt, device="auto"):
        where = pick_device(device)
        prefer_int8(where)
        model, self.meta = load_checkpoint(ckpt, device=where)
        self.model = for_inference(model)
        self.tok = load_tokenizer(ckpt, self.model.config.vocab_size)
        self.step = self.meta["step"]
        self.device = self.model.cos.device
        self.limit = self.model.cos.size(0)  # tokens of a conversation
        self.ears = self.meta.get("audio") or {}
        self.plain = self.ears.get("plain", False)
        self.piece_s = self.ears.get("piece_s", 15.0)  # of the longest clips of training
        self.language = Language(self.ears.get("language", "en"))
        # nanochat's base models have a depth, its chat models have none
        self.can_chat = "depth" not in self.meta.get("user_config", {})
        if self.ears:
            encoder, projector = load_ears(ckpt, self.meta, self.device)
            self.encoder = with_int8(encoder)
            self.projector = for_inference(projector)
            self.can_chat = self.ears["prompt"] == "chat"
        self.has_word_times = bool(self.ears and self.projector.ctc_head and self.language.space)

    def record(self, *wavs):
        """Join float32 wavs (n,) at 16 kHz, 0.2 s of silence between them -> Recording."""
        silence = np.zeros(SAMPLE_RATE // 5, np.float32)
        wav = np.concatenate([np.append(silence, wav) for wav in wavs])[len(silence):]
        n_frames = max(-(-len(wav) // HOP) // 2, 1)  # of the encoder, 20 ms each
        n_tokens = n_audio_tokens(n_frames, self.projector.stack)
        n_tokens += self.projector.arguments.get("texture", 0)
        return Recording(n_tokens, wav)

    def features(self, wavs):
        """Return the encoder's features (T, n_taps, D) of each wav (n,)."""
        return encode(self.encoder, wavs, tuple(self.ears["taps"]))

    @torch.inference_mode()
    def project(self, feats):
        """Turn features (T, n_taps, D) into audio tokens (T_a, C)."""
        feats = torch.from_numpy(feats).to(self.device)
        return self.projector(feats[None], [len(feats)])[0][0]

    def hear(self, wavs):
        """Return the audio tokens (T_a, C) of each wav (n,)."""
        return list(map(self.project, self.features(wavs)))

    def pieces(self, wav):
        """Cut float32 (n,) at pauses -> [wav (n,)], as long as in training at most."""
        return [wav[start:end] for start, end in split_at_pauses(wav, self.piece_s)]

    def write(self, wavs, cut):
        """Return the transcript (str) of each piece (n,)."""
        return self.write_features(self.features(wavs), cut)

    def write_features(self, feats, cut, said=()):
        """Return the transcript (str) of each piece's features (T, n_taps, D).

        cut: as in transcribe(). said: words already settled.
        """
        if self.ears["prompt"] == "ctc":  # the control without an LM
            return spell(self.projector, self.tok, feats)
        ids = self.tok.encode(self.language.space.join(said))
        return transcribe(self.model, self.projector, self.tok, feats, BEAMS, cut, ids)

    def transcripts(self, wav, most_s=np.inf):
        """Cut float32 (n,) at pauses; yield the Piece of each most_s seconds at most."""
        for start, end in split_at_pauses(wav, min(most_s, self.piece_s)):
            cut, feats = [], self.features([wav[start:end]])
            text, = self.write_features(feats, cut)
            start_s, words = start / SAMPLE_RATE, []
            first_s, last_s = (start_s + i / SAMPLE_RATE for i in loud_part(wav[start:end]))
            if text and self.has_word_times:
                times = word_times(self.projector, self.tok, feats[0], text.split())
                words = [Word(word, start_s + a, min(start_s + b, end / SAMPLE_RATE))
                         for word, (a, b) in zip(text.split(), times)]
                first_s, last_s = words[0].start_s, max(words[-1].end_s, last_s)
            yield Piece(text, bool(cut), first_s, last_s, words)

    def clean(self, text):
        """Return a text as the model reads it."""
        return self.language.plain(text, strict=False) if self.plain else text

    def prompt(self, messages):
        """Return the prompt of the next answer; ValueError: messages are wrong.

        messages: [(role, text, Recording or None)], user and assistant by turns. The newest
        recording stands in front, as in training; of earlier ones what was said stays.
        """
        turns = [{"role": role, "content": self.clean(text)} for role, text, _ in messages]
        ids, _ = render_conversation(self.tok, {"messages": turns})
        newest = [sound for *_, sound in messages if sound][-1:]
        return [*newest, *ids, self.tok.special("<|assistant_start|>")]

    def stop_ids(self):
        return self.tok.special("<|assistant_end|>"), self.tok.bos_id


def loud_part(wav):
    """Return (start, end) in samples of wav (n,) without the pauses at its ends."""
    loudness = measure_loudness(wav)
    speech = np.percentile(loudness, 90)
    quiet = min(max(loudness.min() + 6, speech - 30), speech - 10)  # as pauses.find_cut
    loud = np.flatnonzero(loudness > quiet)
    return loud[0] * HOP, min((loud[-1] + 1) * HOP, len(wav))


def size(items):
    """Count the tokens of a prompt."""
    return sum(getattr(item, "n_tokens", 1) for item in items)


class Batch:
    """Rows that are decoded together; each says what it would say alone.

    hear: [wav] -> [audio tokens (T_a, C)].
    """

    def __init__(self, model, hear):
        self.model = model
        self.device = model.cos.device
        self.hear = hear
        self.rows = []
        self.cache = None  # KVCache of all rows
        self.logits = torch.empty(0, model.config.vocab_size, device=self.device)  # (B, V)

    @torch.inference_mode()
    def add(self, row):
        """Read a row's prompt and let it join. After an error the batch is as before."""
        wavs = [item.wav for item in row.prompt if not isinstance(item, int)]
        ids, audio = row.prompt[len(wavs):], self.hear(wavs) if wavs else None
        cache, logits = prefill(self.model, [ids[:LONGEST]], audio)
        for start in range(LONGEST, len(ids), LONGEST):
            more = torch.tensor([ids[start:start + LONGEST]], device=self.device)
            logits = self.model(more, kv_cache=cache)[:, -1]
        sources = [(self.cache, b) for b in range(len(self.rows))]
        rows = [*self.rows, row]
        room = max(each.max_tokens for each in rows)  # else a step may find no memory
        cache = KVCache.gather(self.model.config, [*sources, (cache, 0)], room)
        row.generator = torch.Generator(self.device).manual_seed(row.seed)
        logits = torch.cat([self.logits, logits])
        self.rows, self.cache, self.logits = rows, cache, logits

    @torch.inference_mode()
    def step(self):
        """Choose the next token of every row; rows that end leave.

        Returns [(row, id)]; then (row, None) for those that end.
        """
        said = []
        for b, row in enumerate(self.rows):
            logits = self.logits[b:b + 1]
            token = sample(logits, row.temperature, row.top_p, row.generator).item()
            if token in row.stop_ids:
                row.ended = "stop"
                continue
            row.ids.append(token)
            said.append((row, token))
            if len(row.ids) >= row.max_tokens:
                row.ended = "length"
        ended = [row for row in self.rows if row.ended]
        self.drop(ended)
        if self.rows:
            last = torch.tensor([row.ids[-1:] for row in self.rows], device=self.device)  # (B, 1)
            self.logits = self.model(last, kv_cache=self.cache)[:, -1]
        return said + [(row, None) for row in ended]

    @torch.inference_mode()
    def drop(self, rows):
        left = [b for b, row in enumerate(self.rows) if row not in rows]
        if len(left) < len(self.rows):
            self.rows = [self.rows[b] for b in left]
            self.logits = self.logits[left]
            if left:
                self.cache.select(left)
