"""Sounds made by formulas, with exact labels: events, instruments, melodies, and rooms, noise and channels for speech.

A maker of EVENTS takes (n, rng): samples at 16 kHz and numpy's Generator, and returns float32 (n,) of RMS 1.
"""
import numpy as np

SAMPLE_RATE = 16000


def level(wav, db=0.0):
    """Bring wav (n,) to an RMS of db, decibels of full scale -> float32; silence stays silence."""
    wav = np.asarray(wav, np.float64)
    return (wav * 10 ** (db / 20) / np.sqrt(np.mean(wav ** 2) + 1e-20)).astype(np.float32)


def colored(n, rng, slope=0.0, low=0.0, high=8000.0):
    """Noise whose amplitude falls with frequency ** slope, between low and high Hz."""
    size = 1 << (n - 1).bit_length()
    spectrum, hz = np.fft.rfft(rng.standard_normal(size)), np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    return level(np.fft.irfft(spectrum * np.maximum(hz, 30.0) ** -slope * ((hz >= low) & (hz <= high)))[:n])


def band(wav, low, high):
    """Keep low to high Hz of wav (n,), with soft edges -> float64 (n,)."""
    size = 1 << len(wav).bit_length()
    hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    gain = 1 / (1 + (low / np.maximum(hz, 1)) ** 12) / (1 + (hz / high) ** 12)
    return np.fft.irfft(np.fft.rfft(wav, size) * gain)[:len(wav)]


def seconds(n):
    return np.arange(n) / SAMPLE_RATE


def tone(hz):
    """A sine of frequency hz (n,), Hz."""
    return np.sin(2 * np.pi * np.cumsum(hz) / SAMPLE_RATE)


def repeat(n, rng, period_s, make, jitter=0.0):
    """Start make(rng), a short sound, every period_s (give or take a share of it) in a track of n samples."""
    out, at = np.zeros(n + SAMPLE_RATE), rng.uniform(0, 0.3) * period_s
    while at < n / SAMPLE_RATE:
        sound, i = make(rng), int(at * SAMPLE_RATE)
        out[i:i + len(sound)] += sound[:len(out) - i]
        at += period_s * (1 + jitter * rng.uniform(-1, 1))
    return level(out[:n] + 1e-6)


def burst(rng, length_s, decay_s, slope=0.0, low=0.0, high=8000.0):
    """A noise that dies away with decay_s."""
    n = int(length_s * SAMPLE_RATE)
    return colored(n, rng, slope, low, high) * np.exp(-seconds(n) / decay_s)


def ring(rng, partials, length_s, decay_s):
    """Sines of the frequencies partials, Hz, that die away, the high ones sooner."""
    t = seconds(int(length_s * SAMPLE_RATE))
    return sum(np.sin(2 * np.pi * hz * t) * np.exp(-t * (1 + k) / decay_s) / (1 + k) for k, hz in enumerate(partials))


# ---- events ----
def siren(n, rng):
    low, high, period = rng.uniform(450, 650), rng.uniform(1000, 1500), rng.uniform(0.8, 2.0)
    hz = low + (high - low) * (0.5 - 0.5 * np.cos(2 * np.pi * seconds(n) / period))
    return level(tone(hz) + 0.3 * tone(2 * hz) + 0.2 * tone(3 * hz))


def bell(n, rng):
    hz = rng.uniform(300, 900)
    partials = hz * np.array([1, 2.0, 2.4, 3.0, 4.5, 5.3])
    return repeat(n, rng, rng.uniform(0.9, 1.6), lambda r: ring(r, partials, 1.0, rng.uniform(0.5, 0.9)))


def rain(n, rng):
    drops = repeat(n, rng, 0.012, lambda r: r.uniform(0.2, 1) * burst(r, 0.012, 0.002, 0, 2000, 8000), 0.9)
    return level(0.6 * colored(n, rng, 0.3, 400) + drops)


def wind(n, rng):
    swell = 1 + 0.8 * np.sin(2 * np.pi * (rng.uniform(0.2, 0.5) * seconds(n) + rng.uniform()))
    whistle = band(rng.standard_normal(n), *(rng.uniform(350, 600) * np.array([0.9, 1.1])))
    return level((level(colored(n, rng, 1.2, 40, 900)) + 0.5 * level(whistle)) * swell)


def engine(n, rng):
    hz = rng.uniform(35, 70) * (1 + 0.05 * np.sin(2 * np.pi * rng.uniform(0.2, 0.6) * seconds(n)))
    return level(sum(tone(k * hz) / k ** 0.7 for k in range(1, 16)) + 0.4 * colored(n, rng, 0.8, 50, 2500))


def clock(n, rng):
    pitches = rng.uniform(2500, 4000, 2)
    count = [0]

    def tick(r):
        count[0] += 1
        return ring(r, [pitches[count[0] % 2], 1.7 * pitches[count[0] % 2]], 0.05, 0.008)
    return repeat(n, rng, rng.uniform(0.4, 0.55), tick)


def alarm(n, rng):
    hz, length = rng.uniform(1800, 3000), int(0.09 * SAMPLE_RATE)
    beep = np.sign(np.sin(2 * np.pi * hz * seconds(length)))
    three = np.concatenate([np.pad(beep, (0, length // 2))] * 3)
    return repeat(n, rng, rng.uniform(0.7, 1.0), lambda r: three)


def knocking(n, rng):
    hz = rng.uniform(140, 260)
    return repeat(n, rng, rng.uniform(0.2, 0.3),
                  lambda r: ring(r, [hz, 2.3 * hz], 0.12, 0.03) + 0.5 * burst(r, 0.12, 0.006, 0.5), 0.1)


def helicopter(n, rng):
    rate = rng.uniform(11, 16)
    chop = np.clip(np.sin(2 * np.pi * rate * seconds(n)), 0, 1) ** 3
    return level(colored(n, rng, 0.9, 40, 3000) * (0.15 + chop) + 0.3 * tone(np.full(n, rate * 6)))


def waves(n, rng):
    phase = rng.uniform(3.0, 4.5) ** -1 * seconds(n) + rng.uniform()
    return level(colored(n, rng, 0.5, 150, 6000) * (0.05 + (0.5 - 0.5 * np.cos(2 * np.pi * phase)) ** 3))


def crickets(n, rng):
    hz, pulses = rng.uniform(4000, 5200), rng.uniform(28, 40)
    chirp = (np.sin(2 * np.pi * rng.uniform(1.5, 2.5) * seconds(n)) > -0.2) * np.clip(
        np.sin(2 * np.pi * pulses * seconds(n)), 0, 1)
    return level(np.sin(2 * np.pi * hz * seconds(n)) * chirp + 0.01 * rng.standard_normal(n))


def bird(n, rng):
    def chirp(r):
        m = int(r.uniform(0.06, 0.14) * SAMPLE_RATE)
        start, end = r.uniform(2500, 5500, 2)
        return tone(np.linspace(start, end, m)) * np.hanning(m)
    return repeat(n, rng, rng.uniform(0.15, 0.3), chirp, 0.6)


def bee(n, rng):
    hz = rng.uniform(180, 260) * (1 + 0.08 * np.sin(2 * np.pi * rng.uniform(0.5, 1.5) * seconds(n) + rng.uniform(0, 6)))
    return level(sum(tone(k * hz) / k for k in range(1, 20)) * (1 + 0.3 * np.sin(2 * np.pi * 0.7 * seconds(n))))


def horn(n, rng):
    hz = rng.uniform(280, 420)
    chord = sum(tone(np.full(n, hz * r * k)) / k for r in (1, 1.26, 1.5) for k in range(1, 7))
    return level(chord * (np.sin(2 * np.pi * rng.uniform(0.5, 0.8) * seconds(n)) > -0.4) + 1e-4)


def thunder(n, rng):
    rumble = colored(n, rng, 1.5, 30, 400)
    crack = np.exp(-seconds(n) / rng.uniform(0.6, 1.2)) * (1 + 0.8 * np.sin(2 * np.pi * rng.uniform(2, 5) * seconds(n)))
    return level(rumble * crack + 0.3 * colored(n, rng, 0.8, 60, 2500) * np.exp(-seconds(n) / 0.15))


def drops(n, rng):
    def drop(r):
        m, hz = int(0.09 * SAMPLE_RATE), r.uniform(700, 1500)
        return tone(np.linspace(hz, 2.2 * hz, m)) * np.exp(-seconds(m) / 0.025)
    return repeat(n, rng, rng.uniform(0.35, 0.6), drop, 0.3)


EVENTS = {"a siren": siren, "a bell": bell, "rain": rain, "wind": wind, "an engine": engine, "a clock": clock,
          "an alarm": alarm, "knocking": knocking, "a helicopter": helicopter, "waves": waves, "crickets": crickets,
          "a bird": bird, "a bee": bee, "a horn": horn, "thunder": thunder, "dripping water": drops}
SCENES = {"in the rain": rain, "in the wind": wind, "by the sea": waves, "near an engine": engine}


# ---- music ----
def guitar(hz, n, rng):
    """A plucked string (Karplus and Strong 1983)."""
    period = int(SAMPLE_RATE / hz)
    out, line = np.empty(n), rng.uniform(-1, 1, period)
    for i in range(0, n, period):
        out[i:i + period] = line[:n - i]
        line = 0.498 * (line + np.roll(line, 1))
    return out


def organ(hz, n, rng):
    return sum(tone(np.full(n, hz * k)) / k for k in (1, 2, 3, 4, 6, 8)) * np.minimum(1, seconds(n)[::-1] / 0.05)


def flute(hz, n, rng):
    track = hz * (1 + 0.006 * np.sin(2 * np.pi * 5 * seconds(n)))
    breath = band(rng.standard_normal(n), hz, 3 * hz)
    return (tone(track) + 0.1 * tone(2 * track) + 0.15 * level(breath)) * np.minimum(1, seconds(n) / 0.08)


def violin(hz, n, rng):
    track = hz * (1 + 0.012 * np.sin(2 * np.pi * 6 * seconds(n) + rng.uniform(0, 6)))
    wav = sum(tone(k * track) / k for k in range(1, int(7000 / hz)))
    return wav * np.minimum(1, seconds(n) / 0.12)


INSTRUMENTS = {"a guitar": guitar, "an organ": organ, "a flute": flute, "a violin": violin}
MELODIES = {"up": (0, 4, 7), "down": (7, 4, 0), "up and down": (0, 7, 0), "down and up": (7, 0, 7)}  # semitones


def melody(n, rng, instrument, steps):
    """Notes of an instrument, together n samples: steps are semitones over a random pitch."""
    base, m = 220 * 2 ** (rng.uniform(0, 12) / 12), n // len(steps)
    notes = [INSTRUMENTS[instrument](base * 2 ** (step / 12), m, rng) for step in steps]
    return level(np.pad(np.concatenate(notes), (0, n - m * len(steps))))


def beeps(n, rng, count):
    """`count` tones of 0.15 s with pauses."""
    m, hz = int(0.15 * SAMPLE_RATE), rng.uniform(500, 1500)
    starts = np.cumsum(rng.uniform(0.3, 0.5, count)) - 0.2
    out, one = np.zeros(max(n, int((starts[-1] + 0.3) * SAMPLE_RATE))), tone(np.full(m, hz)) * np.hanning(m) ** 0.3
    for at in starts:
        out[int(at * SAMPLE_RATE):][:m] += one
    return level(out + 1e-5 * rng.standard_normal(len(out)))


# ---- what happens to speech on its way ----
def room(wav, rng, seconds_60, wet):
    """Reverberation: noise that falls by 60 dB in seconds_60, at `wet` times the direct sound's energy."""
    n = int(seconds_60 * SAMPLE_RATE)
    tail = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    tail[:int(0.005 * SAMPLE_RATE)] = 0
    tail *= np.sqrt(wet / np.sum(tail ** 2))
    tail[0] = 1.0
    size = 1 << (len(wav) + n).bit_length()
    return np.fft.irfft(np.fft.rfft(wav, size) * np.fft.rfft(tail, size))[:len(wav) + min(n, SAMPLE_RATE // 2)]


ROOMS = {"a studio": None, "a bathroom": (0.5, 1.0), "a hall": (1.3, 1.5), "a cathedral": (3.5, 3.0)}
SNR_DB = {"no noise": None, "a little noise": (20, 24), "much noise": (8, 11), "more noise than speech": (-4, -1)}
CHANNELS = {"a good microphone": None, "a telephone": (300, 3400), "a wall": (20, 600), "an old radio": (500, 2200)}


def through(wav, rng, channel):
    """Speech as it comes through one of CHANNELS."""
    if CHANNELS[channel] is None:
        return wav
    wav = level(band(wav, *CHANNELS[channel]))
    if channel == "an old radio":
        crackle = (rng.uniform(size=len(wav)) < 0.002) * rng.standard_normal(len(wav)) * 6
        wav = band(np.clip(2 * wav, -1.2, 1.2) + 0.08 * rng.standard_normal(len(wav)) + crackle, 400, 3000)
    return wav
