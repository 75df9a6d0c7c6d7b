"""What level meters tell of a recording: numbers made by numpy alone, without any network.

The bench's baseline: a model that hears how a recording sounds beats a regression on these.
"""
import numpy as np

from recordings import SAMPLE_RATE

FRAME, HOP = 1024, 320                    # samples: 64 and 20 ms
BANDS_HZ = np.geomspace(60, 8000, 13)     # edges of 12 bands
LAGS = np.arange(SAMPLE_RATE // 450, SAMPLE_RATE // 60)  # samples: a pitch of 450 to 60 Hz
VOICED = 0.45                             # least autocorrelation of a frame with a pitch


def spectrum(wav):
    """Return the power (T, bins) and the level (T,), dB, of the frames of wav (n,), one or more."""
    wav = np.pad(wav, (0, max(0, FRAME - len(wav))))
    frames = np.lib.stride_tricks.sliding_window_view(wav, FRAME)[::HOP] * np.hanning(FRAME)
    power = np.abs(np.fft.rfft(frames, 2 * FRAME, axis=1)) ** 2
    return power, 10 * np.log10(power.mean(1) + 1e-9)


def median_pitch(wav):
    """Return the median pitch of wav (n,), Hz; 32 where there is none."""
    return 2 ** float(np.median(pitches(*spectrum(wav))[0]))


def pitches(power, level):
    """Return log2 Hz of the frames with a pitch, and their share; power: (T, bins), level: dB."""
    likeness = np.fft.irfft(power, axis=1)
    likeness = likeness[:, LAGS] / (likeness[:, :1] + 1e-12)
    is_voiced = (likeness.max(1) > VOICED) & (level > level.max() - 30)
    hz = SAMPLE_RATE / LAGS[likeness.argmax(1)]
    return np.log2(hz[is_voiced]) if is_voiced.any() else np.array([5.0]), is_voiced.mean()


def rise(x):
    """Return the mean of the second half of x, (T,) or (T, n), over the first half's."""
    half = len(x) // 2
    return x[half:].mean(0) - x[:half + 1].mean(0)


def measure(wav):
    """Return 62 numbers, float32, of wav (n,) at 16 kHz: level, spectrum, pitch, movement."""
    wav = np.asarray(wav, np.float64)
    power, level = spectrum(wav)
    hz = np.fft.rfftfreq(2 * FRAME, 1 / SAMPLE_RATE)
    bands = np.stack([power[:, (low <= hz) & (hz < high)].mean(1)
                      for low, high in zip(BANDS_HZ, BANDS_HZ[1:])], 1)
    bands = 10 * np.log10(bands + 1e-9)
    tone, voiced = pitches(power, level)
    swing = np.abs(np.fft.rfft(level - level.mean(), 512))[:60].reshape(6, 10).mean(1)
    rms = 20 * np.log10(np.sqrt(np.mean(wav ** 2)) + 1e-9)
    flatness = np.exp(np.log(power + 1e-12).mean()) / (power.mean() + 1e-12)
    return np.array([
        rms, 20 * np.log10(np.abs(wav).max() + 1e-9) - rms, len(wav) / SAMPLE_RATE, flatness,
        *np.percentile(level, (5, 25, 50, 75, 95)) - rms, level.std(), np.abs(np.diff(level)).mean()
        if len(level) > 1 else 0, *bands.mean(0) - rms, *bands.std(0),
        *np.percentile(tone, (10, 50, 90)), tone.std(), voiced, np.ptp(tone), rise(tone),
        *np.log1p(swing), *rise(bands), rise(level), (level < level.max() - 25).mean()],
        np.float32)
