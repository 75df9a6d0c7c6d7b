"""pauses.py: where a long recording is cut, and that digital silence is not heard."""
import numpy as np
import pytest

from pauses import split_at_pauses
from test_audio import RATE


def noise(seconds, level=0.1):
    return level * np.random.default_rng(0).standard_normal(seconds * RATE).astype(np.float32)


def test_cuts_lie_in_pauses():
    """Broken: a cut in a word, at a breath and no sentence's end, or not in a room's pause."""
    rng, words, pauses, n = np.random.default_rng(0), [], [], 0
    while n < 70 * RATE:
        t, gap = np.arange(int(rng.uniform(2, 6) * RATE)), int(rng.uniform(0.22, 0.6) * RATE)
        words += [0.2 * np.sin(t * 0.1), rng.standard_normal(gap) * 1e-3]
        pauses.append((n + len(t), n + len(t) + gap))
        n = pauses[-1][1]
    pieces = split_at_pauses(np.concatenate(words).astype(np.float32))
    for _, end in pieces[:-1]:
        assert any(start + 800 <= end <= stop - 800 for start, stop in pauses)
    first = next(pause for pause in pauses
                 if pause[0] > 3 * RATE and pause[1] - pause[0] > 0.32 * RATE)
    assert abs(pieces[0][1] - sum(first) / 2) < 0.1 * RATE
    steady = noise(16)
    steady[5 * RATE:int(5.6 * RATE)] *= 0.53  # softer, but no pause
    steady[8 * RATE:int(8.4 * RATE)] *= 0.28
    assert 8 * RATE < split_at_pauses(steady)[0][1] < 8.4 * RATE
    steady[6 * RATE:int(6.5 * RATE)] *= 0.01  # a pause in a room, beside a deeper silence
    steady[9 * RATE:int(9.5 * RATE)] = 0
    assert 6 * RATE < split_at_pauses(steady)[0][1] < 6.5 * RATE


@pytest.mark.parametrize("n, max_s", [
    (40 * RATE, 15.0), (15 * RATE + 1, 15.0), (15 * RATE, 15.0), (2, 15.0), (40 * RATE, 1.0)])
def test_pieces_cover_the_recording(n, max_s):
    """Broken: samples are lost or doubled, or a piece is over the limit."""
    wav = noise(40)
    wav[9 * RATE:int(9.4 * RATE)] *= 0.3
    pieces = split_at_pauses(wav[:n], max_s)
    edges = [0, *(end for _, end in pieces)]
    assert [start for start, _ in pieces] == edges[:-1] and edges[-1] == n
    assert all(0 < end - start <= max_s * RATE for start, end in pieces)
    assert len(pieces) == 1 or n > max_s * RATE


@pytest.mark.case("B10")
def test_digital_silence_has_no_words():
    """Broken: a recording of nothing, or the nothing after a sentence, is heard as a sentence."""
    nothing = np.zeros(20 * RATE, np.float32)
    dither = np.random.default_rng(0).integers(-1, 2, 20 * RATE).astype(np.float32) / 32768
    for silence in (nothing, dither, nothing[:1], nothing + np.float32(0.5)):
        assert split_at_pauses(silence) == []
    voice = 3e-4 * np.sin(np.arange(2 * RATE) * 0.06).astype(np.float32)  # 60 dB too quiet
    for wav in (voice, voice + 0.5):
        assert split_at_pauses(wav) == [(0, 2 * RATE)]
    first, second = split_at_pauses(np.concatenate([noise(3), nothing, noise(3)]), 10.0)
    assert first == pytest.approx((0, 3.2 * RATE), abs=10)
    assert second == pytest.approx((22.8 * RATE, 26 * RATE), abs=10)
