"""Words while one still speaks, and where speech is.

A pass a second encodes what is new with a little before it, and writes down all of the piece. Two
passes that agree on a word settle it (LocalAgreement-2, Liu et al., Interspeech 2020); the words
behind are open. What is longer than the clips of training is cut at a pause.
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
LONGEST_PASS = 10 * STEP   # other requests wait for it
WINDOW = 512               # samples that the detector of speech hears at once
TAIL = SAMPLE_RATE // 5    # samples of the silence after speech, that belong to it


class Heard(NamedTuple):
    """What a pass found: words that it settled; those still open; the text, once it is whole."""
    settled: list
    open: list
    text: str = None


class Live:
    """An utterance. It keeps the sound and features of its last piece, and the words before it.

    add() and take() may run beside listen(), in another thread.
    """

    def __init__(self, name=""):
        self.id = name
        self.waiting = []  # parts that the model has not heard
        self.n_waiting = self.n_all = 0  # samples
        self.has_pause = self.is_over = self.is_gone = False
        self.wav = np.zeros(0, np.float32)  # of this piece
        self.feats = ()    # (T, n_taps, D) of its start
        self.words, self.is_whole = [], False  # of the last pass; whether it read all at once
        self.settled = []  # of this piece
        self.open = []
        self.texts = []    # of the pieces before

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
        then = "end" if self.is_over else "pause"
        is_more = self.n_waiting or not (self.is_over or self.has_pause)
        return wav, "more" if is_more else then

    def listen(self, talker, new, then):
        """Hear what follows, float32 (n,) at 16 kHz -> Heard; then: "more", "pause" or "end".

        At a pause and at the end the piece is encoded as a whole, as recordings are.
        """
        self.wav = np.concatenate([self.wav, new])
        longest, settled = int(talker.piece_s * SAMPLE_RATE), []
        while len(self.wav) > longest:
            loudness = measure_loudness(self.wav)
            cut = find_cut(loudness, np.arange(longest // 5 // HOP, longest // HOP + 1))
            settled += self.end_piece(talker, cut * HOP // FRAME * FRAME)
        if len(new) or not self.is_whole:
            self.is_whole = then != "more"
            self.words = self.read(talker, len(self.wav), self.is_whole)
        if then != "end":
            return Heard(settled + self.settle(), self.open)
        settled += self.end_piece(talker, len(self.wav), self.words)
        return Heard(settled, [], talker.language.space.join(filter(None, self.texts)))

    def end_piece(self, talker, end, words=None):
        """Write the first `end` samples down and drop them -> their words that were not told.

        words: what a pass has just heard in them.
        """
        words = self.read(talker, end, True) if words is None else words
        self.texts.append(talker.language.space.join(words))
        rest = words[place_after(self.settled, words):]
        self.wav, self.feats = self.wav[end:], self.feats[end // FRAME:]
        self.settled, self.open, self.is_whole = [], [], False
        return rest

    def settle(self):
        """Settle the open words of the last pass that this pass repeats -> these words."""
        if self.words is None:
            return []
        rest = self.words[place_after(self.settled, self.words):]
        is_same = [a == b for a, b in zip(rest, self.open)]
        n = [*is_same, False].index(False)
        self.settled += rest[:n]
        self.open = rest[n:]
        return rest[:n]

    def read(self, talker, end, is_whole):
        """Return the words of the first `end` samples; None: the model wrote in a loop."""
        span = trim_silence(self.wav, 0, end) if end else ()
        if not span:
            return []
        if is_whole:
            feats, = talker.features([self.wav[slice(*span)]])
        else:
            feats = self.encode(talker)[span[0] // FRAME:-(-span[1] // FRAME)]
        looped = []
        text, = talker.write_features([feats], looped)
        if looped and not is_whole:
            return None
        return text.split() if talker.language.space else list(text)

    def encode(self, talker):
        """Return the features (T, n_taps, D) of the sound, keep those with enough behind them."""
        n = len(self.feats)
        start = max(n * FRAME - LEFT, 0)
        new, = talker.features([self.wav[start:]])
        new = new[n - start // FRAME:]
        feats = np.concatenate([self.feats, new]) if n else new
        self.feats = feats[:max((len(self.wav) - RIGHT) // FRAME, n)]
        return feats


def place_after(told, words):
    """Return how many first words stand for those told: with the fewest edits between them."""
    edits = list(range(len(words) + 1))  # from the words told so far to each words[:n]
    for i, word in enumerate(told, 1):
        above, edits = edits, [i]
        for n, other in enumerate(words):
            edits.append(min(above[n] + (word != other), above[n + 1] + 1, edits[n] + 1))
    return min(range(len(edits)), key=lambda n: (edits[n], abs(n - len(told))))


class Voice:
    """Cuts speech out of a sound at 16 kHz. ImportError: silero-vad is missing.

    detection: threshold, prefix_padding_ms, silence_duration_ms. n_before: samples before it.
    model: of an earlier Voice, to save 0.1 s.
    """

    def __init__(self, detection, n_before, model=None):
        from silero_vad import VADIterator, load_silero_vad
        self.model = model or load_silero_vad()
        self.detector = VADIterator(self.model, detection.threshold, SAMPLE_RATE,
                                    detection.silence_duration_ms, 0)
        self.prefix = deque(maxlen=detection.prefix_padding_ms * SAMPLE_RATE // 1000 // WINDOW)
        self.n_before, self.rest, self.silence = n_before, np.zeros(0, np.float32), []

    def hear(self, wav):
        """Hear what follows -> [("start" or "stop", ms), ("sound", wav) or ("pause", None)].

        Silence after TAIL is sound only if speech follows.
        """
        wav, found = np.concatenate([self.rest, wav]), []
        n = len(wav) // WINDOW * WINDOW
        self.rest = wav[n:]
        for window in wav[:n].reshape(-1, WINDOW):
            edge = self.detector(torch.from_numpy(window)) or {}
            if "start" in edge:
                at = self.n_before + edge["start"] - WINDOW * len(self.prefix)
                found.append(("start", at * 1000 // SAMPLE_RATE))
                self.silence = [*self.prefix]
                self.prefix.clear()
            if "end" in edge:
                self.prefix.extend(self.silence)
                found.append(("stop", (self.n_before + edge["end"]) * 1000 // SAMPLE_RATE))
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
