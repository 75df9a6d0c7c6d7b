"""Sounds made by formulas: events and melodies; rooms, noise and channels for speech.

A function of EVENTS takes (n, rng), samples at 16 kHz and numpy's Generator, and returns float32
(n,) of RMS 1.
"""
import numpy as np

from files import read_toml
from recordings import SAMPLE_RATE

LABELS = read_toml("assets/labels.toml")
ROOMS, SNR_DB, CHANNELS, MELODIES = [*LABELS.values()][-4:]


def level(wav, db=0.0):
    """Return wav (n,) at an RMS of db (of full scale), float32; silence stays silence."""
    wav = np.asarray(wav, np.float64)
    gain = 10 ** (db / 20)
    return (wav * gain / np.sqrt(np.mean(wav ** 2) + 1e-20)).astype(np.float32)


def colored(n, rng, slope=0.0, low=0.0, high=8000.0):
    """Return noise from low to high Hz whose amplitude falls with frequency ** slope."""
    size = 1 << (n - 1).bit_length()
    spectrum = np.fft.rfft(rng.standard_normal(size))
    hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    gain = np.maximum(hz, 30.0) ** -slope * ((hz >= low) & (hz <= high))
    return level(np.fft.irfft(spectrum * gain)[:n])


def band(wav, low, high):
    """Keep low to high Hz of wav (n,), with soft edges -> float64 (n,)."""
    size = 1 << len(wav).bit_length()
    hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    gain = 1 / (1 + (low / np.maximum(hz, 1)) ** 12) / (1 + (hz / high) ** 12)
    return np.fft.irfft(np.fft.rfft(wav, size) * gain)[:len(wav)]


def seconds(n):
    return np.arange(n) / SAMPLE_RATE


def samples(length_s):
    return int(length_s * SAMPLE_RATE)


def wave(hz, n, phase=0.0):
    """Return n samples of a sine of hz, a number."""
    return np.sin(2 * np.pi * hz * seconds(n) + phase)


def tone(hz):
    """Return a sine whose frequency is hz (n,) at each sample."""
    return np.sin(2 * np.pi * np.cumsum(hz) / SAMPLE_RATE)


def repeat(n, rng, period_s, make, jitter=0.0):
    """Return n samples in which make() starts every period_s, a share `jitter` off at most."""
    out = np.zeros(n + SAMPLE_RATE)
    at = 0.3 * rng.random() * period_s
    while at < n / SAMPLE_RATE:
        sound = make()
        i = samples(at)
        out[i:i + len(sound)] += sound[:len(out) - i]
        at += period_s * (1 + jitter * (2 * rng.random() - 1))
    return level(out[:n] + 1e-6)  # never all zeros


def burst(rng, length_s, decay_s, slope, low=0.0):
    """Return noise that dies away with decay_s."""
    n = samples(length_s)
    return colored(n, rng, slope, low) * np.exp(-seconds(n) / decay_s)


def ring(partials, length_s, decay_s):
    """Return sines of the frequencies `partials`, Hz, that die away, the high ones sooner."""
    n = samples(length_s)
    return sum(wave(hz, n) * np.exp(-seconds(n) * (1 + k) / decay_s) / (1 + k)
               for k, hz in enumerate(partials))


# ---- events

def siren(n, rng):
    low, high, period = rng.uniform(450, 650), rng.uniform(1000, 1500), rng.uniform(0.8, 2.0)
    hz = low + (high - low) * (0.5 - 0.5 * np.cos(2 * np.pi * seconds(n) / period))
    return level(tone(hz) + 0.3 * tone(2 * hz) + 0.2 * tone(3 * hz))


def bell(n, rng):
    partials = rng.uniform(300, 900) * np.array([1, 2.0, 2.4, 3.0, 4.5, 5.3])

    def stroke():
        return ring(partials, 1.0, rng.uniform(0.5, 0.9))
    return repeat(n, rng, rng.uniform(0.9, 1.6), stroke)


def rain(n, rng):
    def drop():
        return rng.uniform(0.2, 1) * burst(rng, 0.012, 0.002, 0, 2000)
    drops = repeat(n, rng, 0.012, drop, 0.9)
    return level(0.6 * colored(n, rng, 0.3, 400) + drops)


def wind(n, rng):
    swell = 1 + 0.8 * np.sin(2 * np.pi * (rng.uniform(0.2, 0.5) * seconds(n) + rng.uniform()))
    whistle = band(rng.standard_normal(n), *(rng.uniform(350, 600) * np.array([0.9, 1.1])))
    return level((level(colored(n, rng, 1.2, 40, 900)) + 0.5 * level(whistle)) * swell)


def engine(n, rng):
    hz = rng.uniform(35, 70) * (1 + 0.05 * wave(rng.uniform(0.2, 0.6), n))
    hum = sum(tone(k * hz) / k ** 0.7 for k in range(1, 16))
    return level(hum + 0.4 * colored(n, rng, 0.8, 50, 2500))


def clock(n, rng):
    pitches = rng.uniform(2500, 4000, 2).tolist()

    def tick():
        pitches.reverse()
        return ring([pitches[0], 1.7 * pitches[0]], 0.05, 0.008)
    return repeat(n, rng, rng.uniform(0.4, 0.55), tick)


def alarm(n, rng):
    hz, length = rng.uniform(1800, 3000), samples(0.09)
    beep = np.sign(wave(hz, length))
    three = np.tile(np.pad(beep, (0, length // 2)), 3)
    return repeat(n, rng, rng.uniform(0.7, 1.0), lambda: three)


def knocking(n, rng):
    hz = rng.uniform(140, 260)

    def knock():
        return ring([hz, 2.3 * hz], 0.12, 0.03) + 0.5 * burst(rng, 0.12, 0.006, 0.5)
    return repeat(n, rng, rng.uniform(0.2, 0.3), knock, 0.1)


def helicopter(n, rng):
    rate = rng.uniform(11, 16)
    blades = colored(n, rng, 0.9, 40, 3000) * (0.15 + np.clip(wave(rate, n), 0, 1) ** 3)
    return level(blades + 0.3 * tone(np.full(n, rate * 6)))


def waves(n, rng):
    phase = rng.uniform(3.0, 4.5) ** -1 * seconds(n) + rng.uniform()
    swell = 0.05 + (0.5 - 0.5 * np.cos(2 * np.pi * phase)) ** 3
    return level(colored(n, rng, 0.5, 150, 6000) * swell)


def crickets(n, rng):
    hz, pulses = rng.uniform(4000, 5200), rng.uniform(28, 40)
    is_on = wave(rng.uniform(1.5, 2.5), n) > -0.2
    chirp = wave(hz, n) * (is_on * np.clip(wave(pulses, n), 0, 1))
    return level(chirp + 0.01 * rng.standard_normal(n))


def bird(n, rng):
    def chirp():
        m = samples(rng.uniform(0.06, 0.14))
        start, end = rng.uniform(2500, 5500, 2)
        return tone(np.linspace(start, end, m)) * np.hanning(m)
    return repeat(n, rng, rng.uniform(0.15, 0.3), chirp, 0.6)


def bee(n, rng):
    hz = rng.uniform(180, 260) * (1 + 0.08 * wave(rng.uniform(0.5, 1.5), n, rng.uniform(0, 6)))
    buzz = sum(tone(k * hz) / k for k in range(1, 20))
    return level(buzz * (1 + 0.3 * wave(0.7, n)))


def horn(n, rng):
    hz = rng.uniform(280, 420)
    chord = sum(tone(np.full(n, hz * r * k)) / k for r in (1, 1.26, 1.5) for k in range(1, 7))
    return level(chord * (wave(rng.uniform(0.5, 0.8), n) > -0.4) + 1e-4)


def thunder(n, rng):
    t = seconds(n)
    rumble = colored(n, rng, 1.5, 30, 400)
    roll = np.exp(-t / rng.uniform(0.6, 1.2)) * (1 + 0.8 * wave(rng.uniform(2, 5), n))
    crack = 0.3 * colored(n, rng, 0.8, 60, 2500) * np.exp(-t / 0.15)
    return level(rumble * roll + crack)


def drops(n, rng):
    def drop():
        m, hz = samples(0.09), rng.uniform(700, 1500)
        return tone(np.linspace(hz, 2.2 * hz, m)) * np.exp(-seconds(m) / 0.025)
    return repeat(n, rng, rng.uniform(0.35, 0.6), drop, 0.3)


EVENTS = {"a siren": siren, "a bell": bell, "rain": rain, "wind": wind, "an engine": engine,
          "a clock": clock, "an alarm": alarm, "knocking": knocking, "a helicopter": helicopter,
          "waves": waves, "crickets": crickets, "a bird": bird, "a bee": bee, "a horn": horn,
          "thunder": thunder, "dripping water": drops}
SCENES = {"in the rain": rain, "in the wind": wind, "by the sea": waves, "near an engine": engine}


# ---- music

def guitar(hz, n, rng):
    """A plucked string (Karplus and Strong 1983)."""
    period = int(SAMPLE_RATE / hz)
    out = np.empty(n)
    line = rng.uniform(-1, 1, period)
    for i in range(0, n, period):
        out[i:i + period] = line[:n - i]
        line = 0.498 * (line + np.roll(line, 1))
    return out


def organ(hz, n, rng):
    chord = sum(tone(np.full(n, hz * k)) / k for k in (1, 2, 3, 4, 6, 8))
    return chord * np.minimum(1, seconds(n)[::-1] / 0.05)


def flute(hz, n, rng):
    track = hz * (1 + 0.006 * wave(5, n))
    breath = 0.15 * level(band(rng.standard_normal(n), hz, 3 * hz))
    return (tone(track) + 0.1 * tone(2 * track) + breath) * np.minimum(1, seconds(n) / 0.08)


def violin(hz, n, rng):
    track = hz * (1 + 0.012 * wave(6, n, rng.uniform(0, 6)))
    wav = sum(tone(k * track) / k for k in range(1, int(7000 / hz)))
    return wav * np.minimum(1, seconds(n) / 0.12)


INSTRUMENTS = {"a guitar": guitar, "an organ": organ, "a flute": flute, "a violin": violin}


def melody(n, rng, instrument, steps):
    """Return n samples of notes; steps: semitones over a random pitch."""
    base, m = 220 * 2 ** (rng.uniform(0, 12) / 12), n // len(steps)
    notes = [INSTRUMENTS[instrument](base * 2 ** (step / 12), m, rng) for step in steps]
    return level(np.pad(np.concatenate(notes), (0, n - m * len(steps))))


def beeps(rng, count):
    """Return a second or more: `count` tones of 0.15 s with pauses."""
    m, hz = samples(0.15), rng.uniform(500, 1500)
    starts = np.cumsum(rng.uniform(0.3, 0.5, count)) - 0.2
    out = np.zeros(samples(max(1, starts[-1] + 0.3)))
    for at in starts:
        out[samples(at):][:m] += tone(np.full(m, hz)) * np.hanning(m) ** 0.3
    return level(out + 1e-5 * rng.standard_normal(len(out)))


# ---- speech on its way

def room(wav, rng, seconds_60, wet):
    """Add an echo of `wet` times the direct energy that falls by 60 dB in seconds_60."""
    n = samples(seconds_60)
    tail = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    tail[:samples(0.005)] = 0
    tail *= np.sqrt(wet / np.sum(tail ** 2))
    tail[0] = 1.0
    size = 1 << (len(wav) + n).bit_length()
    out = np.fft.irfft(np.fft.rfft(wav, size) * np.fft.rfft(tail, size))
    return out[:len(wav) + min(n, SAMPLE_RATE // 2)]


def through(wav, rng, channel, shift=1.0):
    """Return speech as it comes through one of CHANNELS, whose edges are `shift` times as high."""
    if not CHANNELS[channel]:
        return wav
    wav = level(band(wav, *(shift * hz for hz in CHANNELS[channel])))
    if channel == "an old radio":
        n = len(wav)
        crackle = (rng.uniform(size=n) < 0.002) * rng.standard_normal(n) * 6
        hiss = 0.08 * rng.standard_normal(n)
        wav = band(np.clip(2 * wav, -1.2, 1.2) + hiss + crackle, 400, 3000)
    return wav


WAYS = ("", "noise", "babble", "room", "telephone")  # to the microphone


def on_its_way(wav, rng, way, snr_db=10.0, others=()):
    """Return speech that came one of WAYS, float32 (n,), peak 1 at most.

    snr_db: speech over noise or babble. others: wavs that speak at once in the babble.
    """
    if way == "room":
        wav = room(wav, rng, rng.uniform(0.2, 0.8), rng.uniform(0.3, 1.5))
    elif way == "telephone":
        wav = through(wav, rng, "a telephone")
    elif way:
        noise = colored(len(wav), rng, rng.uniform(0, 1))
        if way == "babble":
            noise = level(sum(level(np.resize(other, len(wav))) for other in others))
        wav = level(wav) + 10 ** (-snr_db / 20) * noise
    return (wav / max(1.0, np.abs(wav).max())).astype(np.float32)
