"""Words while one still speaks: a growing sound is heard in passes, each second encoded once.

Two passes that agree on a word settle it (LocalAgreement-2, Liu et al., Interspeech 2020); the
words behind are open. What is longer than the clips of training is cut at a pause.
"""
from typing import NamedTuple

import numpy as np

from audio import HOP
from pauses import find_cut, measure_loudness, trim_silence
from recordings import SAMPLE_RATE

FRAME = 2 * HOP            # samples of a frame of the encoder
LEFT = 1 * SAMPLE_RATE     # samples in front of the new ones that are encoded with them
RIGHT = SAMPLE_RATE // 2   # the last samples lack what follows them: they are encoded again


class Heard(NamedTuple):
    """What a pass found: words that it settled; those still open; the text, once it is whole."""
    settled: list
    open: list
    text: str = None


class Live:
    """An utterance. It keeps the sound and features of its last piece, and the words before it."""

    def __init__(self):
        self.wav = np.zeros(0, np.float32)  # of this piece
        self.feats = ()    # (T, n_taps, D) of its start
        self.words, self.is_whole = [], False  # of the last pass; whether it read all at once
        self.settled = []  # of this piece
        self.open = []
        self.texts = []    # of the pieces before

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
