"""Where a long recording may be cut: at pauses, because the clips of training end at pauses."""
import numpy as np

from audio import HOP
from recordings import SAMPLE_RATE

SILENCE = 1.5 / 32768  # of full scale: what rounding to 16 bits leaves of nothing
HALF_WINDOW = 10       # steps of HOP: loudness is measured over 0.2 s
SHORTEST_PAUSE = 10    # steps of HOP: with its windows, a pause lasts 0.3 s


def split_at_pauses(wav, max_s=15.0):
    """Cut a long recording, float32 (n,) at 16 kHz, into pieces of at most max_s seconds.

    Returns [(start, end)] in samples. They cover the recording but for digital silence, where a
    model invents words: 0.2 s of it stay at each end of a piece. A cut is the middle of the first
    pause after 20% of max_s, or else the last quiet place.
    """
    longest, loudness = int(max_s * SAMPLE_RATE), measure_loudness(wav)
    pieces, start = [], 0
    while len(wav) - start > longest:
        first = -(-(start + longest // 5) // HOP)
        cut = find_cut(loudness, np.arange(first, (start + longest) // HOP + 1)) * HOP
        pieces.append((start, cut))
        start = cut
    pieces.append((start, len(wav)))
    trimmed = (trim_silence(wav, *piece) for piece in pieces)
    return [piece for piece in trimmed if piece]


def measure_loudness(wav):
    """Return the loudness (dB) of the 0.2 s around each HOP samples of wav (n,)."""
    power = np.square(wav, dtype=np.float64)
    around = HALF_WINDOW * HOP
    total = np.pad(power, (around + 1, around)).cumsum()[::HOP]
    energy = np.maximum(total[2 * HALF_WINDOW:] - total[:-2 * HALF_WINDOW], 0)
    return 10 * np.log10(energy / (2 * around) + 1e-10)


def find_cut(loudness, steps):
    """Return the step (of `steps`, in units of HOP samples) where to cut.

    Quiet steps are 30 dB below the speech, or within 6 dB of the quietest step. A pause is a run
    of quiet steps that are 10 dB below the speech too.
    """
    speech, floor = np.percentile(loudness[steps], 90), loudness[steps].min()
    quiet = steps[loudness[steps] <= max(floor + 6, speech - 30)]
    calm = quiet[loudness[quiet] <= speech - 10]
    runs = np.split(calm, np.flatnonzero(np.diff(calm) > 1) + 1)
    pause = next((run for run in runs if len(run) >= SHORTEST_PAUSE), quiet[-1:])
    return int(pause[len(pause) // 2])


def trim_silence(wav, start, end):
    """Return (start, end) with at most 0.2 s of digital silence at both ends; (): it is all."""
    part, rest = wav[start:end], SAMPLE_RATE // 5
    sound = np.flatnonzero(np.abs(part - np.median(part)) > SILENCE)  # an offset is no sound
    if not len(sound):
        return ()
    return max(start, start + int(sound[0]) - rest), min(end, start + int(sound[-1]) + 1 + rest)
