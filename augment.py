"""What a recording could have sounded like: other speeds, noise, and holes in its spectrogram."""
import numpy as np


def change_speed(wav, speed):
    """Play float32 (n,) `speed` times as fast, pitch and all (Ko et al. 2015) -> float32 (n / speed,)."""
    import soxr
    return soxr.resample(wav, speed, 1.0)


def add_noise(wav, snr_db, rng):
    """Add noise between white and brown, drawn by rng, to float32 (n,), so that speech stands snr_db over it."""
    spectrum = np.fft.rfft(rng.standard_normal(len(wav)))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** -rng.uniform(0, 1)  # amplitude: 0 is white, 1 is brown
    noise = np.fft.irfft(spectrum, len(wav))
    level = np.sqrt(np.square(wav, dtype=np.float64).mean() / max(np.square(noise).mean(), 1e-20))
    return (wav + level * 10 ** (-snr_db / 20) * noise).astype(np.float32)


def mask(mel, n_bands, n_frames, rng):
    """Zero two bands of up to n_bands and two spans of up to n_frames of a log-mel (n_mels, T_mel) (SpecAugment, Park
    et al. 2019), spans of at most a fifth of the clip each; returns a copy."""
    mel = mel.clone()
    for axis, most in ((0, n_bands), (0, n_bands), (1, n_frames), (1, n_frames)):
        width = int(rng.integers(0, min(most, mel.shape[axis] // (5 if axis else 1)) + 1))
        mel.narrow(axis, int(rng.integers(0, mel.shape[axis] - width + 1)), width).zero_()
    return mel
