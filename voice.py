"""Where speech is in a growing sound, by Silero's detector (MIT; its weights are in its wheel)."""
from collections import deque

import numpy as np
import torch

from recordings import SAMPLE_RATE

WINDOW = 512  # samples at 16 kHz that the detector hears at once
TAIL_S = 0.2  # of the silence after speech, that belongs to it
spare = []    # detectors that nobody uses


class Voice:
    """Cuts speech out of a growing sound at 16 kHz; n_before: samples that came before it."""

    def __init__(self, detection, n_before):
        from silero_vad import VADIterator, load_silero_vad
        self.model = spare.pop() if spare else load_silero_vad()
        self.detector = VADIterator(self.model, detection.threshold, SAMPLE_RATE,
                                    detection.silence_duration_ms, 0)
        self.prefix = deque(maxlen=detection.prefix_padding_ms * SAMPLE_RATE // 1000 // WINDOW)
        self.n_before, self.rest, self.silence = n_before, np.zeros(0, np.float32), []

    def hear(self, wav):
        """Hear what follows -> [("start" or "stop", ms), ("sound", wav) or ("pause", None)].

        Silence after TAIL_S is sound only if speech follows.
        """
        wav, found = np.concatenate([self.rest, wav]), []
        n = len(wav) // WINDOW * WINDOW
        self.rest = wav[n:]
        for window in wav[:n].reshape(-1, WINDOW):
            edge = self.detector(torch.from_numpy(window)) or {}
            if "start" in edge:
                at = self.n_before + edge["start"] - WINDOW * len(self.prefix)
                found += [("start", at), *(("sound", part) for part in self.prefix)]
            if "end" in edge:
                self.prefix.extend(self.silence)
                self.silence = []
                found.append(("stop", self.n_before + edge["end"]))
            if not self.detector.triggered:
                self.prefix.append(window)
                continue
            n_silent = self.detector.current_sample - self.detector.temp_end
            if self.detector.temp_end and n_silent > TAIL_S * SAMPLE_RATE:
                found += [] if self.silence else [("pause", None)]
                self.silence.append(window)
            else:
                found += [("sound", part) for part in [*self.silence, window]]
                self.silence = []
        return found
