"""Live transcripts: words while someone speaks, and a detector of speech.

A pass a second encodes what is new with a little before it, and goes on from the settled words:
those that two passes agree on (LocalAgreement-2, Liu et al., Interspeech 2020). The words behind
them are open. What is longer than the clips of training is cut at a quiet place.
"""
from collections import deque
from typing import NamedTuple

import numpy as np
import torch

from audio import HOP
from pauses import find_cut, measure_loudness, trim_silence
from recordings import SAMPLE_RATE

FRAME = 2 * HOP            # samples of a frame of the encoder
LEFT = 3 * SAMPLE_RATE     # samples in front of the new ones that are encoded with them
RIGHT = SAMPLE_RATE // 2   # the last samples lack what follows them: they are encoded again
STEP = SAMPLE_RATE         # new samples for a pass
LONGEST_PASS = 10 * STEP   # others wait
WINDOW = 512               # samples that the detector of speech hears at once
TAIL = SAMPLE_RATE // 5    # samples of the silence after speech, that belong to it


class Heard(NamedTuple):
    """What a pass found: words that it settled; those still open; all words, once it is over."""
    settled: list
    open: list
    all: list = None


class Live:
    """An utterance. It keeps the sound and features of its last piece, and the words before it.

    add() and take() may run beside listen(), in another thread.
    """

    def __init__(self, name=""):
        self.id = name
        self.waiting = []  # parts that the model has not heard
        self.n_waiting = self.n_all = 0  # samples
        self.has_pause = self.is_over = self.is_gone = False
        self.said = []     # words of the pieces before
        self.wav = np.zeros(0, np.float32)  # of this piece
        self.feats = ()    # (T, n_taps, D) of its start
        self.settled, self.open, self.n_read = [], [], 0  # words; samples that gave them

    def add(self, wav):
        """Keep what follows, float32 (n,) at 16 kHz, for take()."""
        if not self.is_gone:
            self.waiting.append(wav)
            self.n_waiting += len(wav)
            self.n_all += len(wav)
            self.has_pause = False

    def is_due(self):
        return self.is_over or self.n_waiting >= (1 if self.has_pause else STEP)

    def take(self):
        """Return what listen() takes next."""
        wav = np.concatenate([np.zeros(0, np.float32), *self.waiting])
        wav, rest = np.split(wav, [LONGEST_PASS])
        self.waiting, self.n_waiting = [rest], len(rest)
        return wav, self.is_over and not len(rest)

    def listen(self, talker, new, is_end):
        """Hear what follows, float32 (n,) at 16 kHz -> Heard."""
        n_old, longest, told = len(self.wav), int(talker.piece_s * SAMPLE_RATE), []
        self.wav = np.concatenate([self.wav, new])
        while len(self.wav) > longest:  # the settled words end in the first n_old samples
            steps = np.arange(max(n_old, longest // 5) // HOP, longest // HOP + 1)
            cut = find_cut(measure_loudness(self.wav), steps) * HOP
            told += self.end_piece(talker, cut // FRAME * FRAME)
            n_old = 0
        if is_end:
            told += self.end_piece(talker, len(self.wav))
            return Heard(told, [], self.said)
        words = self.read(talker, len(self.wav))
        is_same = [a == b for a, b in zip(words, self.open)]
        n = [*is_same, False].index(False)
        self.settled, self.open = self.settled + words[:n], words[n:]
        return Heard(told + words[:n], self.open)

    def end_piece(self, talker, end):
        """Settle the words of the first `end` samples, drop these -> the words."""
        words = self.open if end == self.n_read else self.read(talker, end)
        self.said += self.settled + words
        self.wav, self.feats = self.wav[end:], self.feats[end // FRAME:]
        self.settled, self.open, self.n_read = [], [], 0
        return words

    def read(self, talker, end):
        """Return the words that follow the settled ones in the first `end` samples.

        [] if under 0.1 s are sound, or if the model writes in a loop.
        """
        self.n_read, looped = end, []
        span = trim_silence(self.wav, 0, end) if end else ()
        if not span or span[1] - span[0] < SAMPLE_RATE // 10:
            return []
        feats = self.encode(talker)[span[0] // FRAME:-(-span[1] // FRAME)]
        text, = talker.write_features([feats], looped, self.settled)
        return [] if looped else talker.language.words(text)[len(self.settled):]

    def encode(self, talker):
        """Return the features (T, n_taps, D) of the sound, keep those with enough behind them."""
        n = len(self.feats)
        start = max(n * FRAME - LEFT, 0)
        new, = talker.features([self.wav[start:]])
        new = new[n - start // FRAME:]
        feats = np.concatenate([self.feats, new]) if n else new
        self.feats = feats[:max((len(self.wav) - RIGHT) // FRAME, n)]
        return feats


class Voice:
    """Cuts speech out of a sound at 16 kHz. ImportError: silero-vad is missing.

    detection: threshold, prefix_padding_ms, silence_duration_ms. n_before: samples before it.
    """

    def __init__(self, detection, n_before):
        from silero_vad import VADIterator, load_silero_vad
        self.detector = VADIterator(load_silero_vad(), detection.threshold, SAMPLE_RATE,
                                    detection.silence_duration_ms, 0)
        self.prefix = deque(maxlen=detection.prefix_padding_ms * SAMPLE_RATE // 1000 // WINDOW)
        self.n_before, self.rest, self.silence = n_before, np.zeros(0, np.float32), []

    def hear(self, wav):
        """Hear what follows -> [("sound", wav) or ("pause", None) or (an event, its time)].

        Silence after TAIL is sound only if speech follows.
        """
        wav, found = np.concatenate([self.rest, wav]), []
        n = len(wav) // WINDOW * WINDOW
        self.rest = wav[n:]
        for window in wav[:n].reshape(-1, WINDOW):
            edge = self.detector(torch.from_numpy(window)) or {}
            if "start" in edge:
                at = self.n_before + edge["start"] - WINDOW * len(self.prefix)
                found.append(("speech_started", {"audio_start_ms": at * 1000 // SAMPLE_RATE}))
                self.silence = [*self.prefix]
                self.prefix.clear()
            if "end" in edge:
                self.prefix.extend(self.silence)
                at = self.n_before + edge["end"]
                found.append(("speech_stopped", {"audio_end_ms": at * 1000 // SAMPLE_RATE}))
                self.silence = []
            n_silent = self.detector.current_sample - self.detector.temp_end
            if not self.detector.triggered:
                self.prefix.append(window)
            elif self.detector.temp_end and n_silent > TAIL:
                found += [] if self.silence else [("pause", None)]
                self.silence.append(window)
            else:
                found += [("sound", part) for part in [*self.silence, window]]
                self.silence = []
        return found
