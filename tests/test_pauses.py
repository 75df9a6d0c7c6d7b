"""pauses.py: where a long recording is cut, and that digital silence is not heard."""
import numpy as np
import pytest

from pauses import split_at_pauses
from test_audio import RATE


def test_split_at_pauses():
    """No sample is lost or doubled, no piece is over the limit, cuts lie in
    pauses or where it is quietest.
    """
    rng, words, pauses, n = np.random.default_rng(0), [], [], 0
    while n < 70 * RATE:
        t, gap = np.arange(int(rng.uniform(2, 6) * RATE)), int(rng.uniform(0.22, 0.6) * RATE)
        words += [0.2 * np.sin(t * 0.1), rng.standard_normal(gap) * 1e-3]
        pauses.append((n + len(t), n + len(t) + gap))
        n = pauses[-1][1]
    wav = np.concatenate(words).astype(np.float32)
    pieces = split_at_pauses(wav)
    assert pieces[0][0] == 0 and pieces[-1][1] == len(wav)
    assert all(a[1] == b[0] for a, b in zip(pieces, pieces[1:])) and all(
        0 < b - a <= 15 * RATE for a, b in pieces)
    assert all(any(start + 800 <= end <= stop - 800 for start, stop in pauses)
               for _, end in pieces[:-1])
    first = next((start + stop) / 2 for start, stop in pauses if start >
                 3 * RATE and stop - start > 0.32 * RATE)
    # where a sentence ends, not the last breath before the limit
    assert abs(pieces[0][1] - first) < 0.1 * RATE
    steady = rng.standard_normal(16 * RATE).astype(np.float32) * 0.1
    steady[5 * RATE:int(5.6 * RATE)] *= 0.53  # softer, but no pause
    steady[8 * RATE:int(8.4 * RATE)] *= 0.28
    assert 8 * RATE < split_at_pauses(steady)[0][1] < 8.4 * RATE
    steady[6 * RATE:int(6.5 * RATE)] *= 0.01  # a pause in a room, beside a deeper silence
    steady[9 * RATE:int(9.5 * RATE)] = 0
    assert 6 * RATE < split_at_pauses(steady)[0][1] < 6.5 * RATE
    noise = rng.standard_normal(40 * RATE).astype(np.float32) * 0.1
    noise[9 * RATE:int(9.4 * RATE)] *= 0.3
    assert 9 * RATE <= split_at_pauses(noise)[0][1] <= 9.4 * RATE
    assert split_at_pauses(np.concatenate([np.zeros(RATE), noise]))[
                           0][1] > 3 * RATE  # no splinter at the start
    for wav in (noise, noise[:15 * RATE + 1], noise[:15 * RATE], noise[:2]):
        for max_s in (15.0, 1.0):
            pieces = split_at_pauses(wav, max_s)
            assert [a for a, _ in pieces] == [0] + \
                [b for _, b in pieces[:-1]] and pieces[-1][1] == len(wav)
            assert all(0 < b - a <= max_s * RATE for a, b in pieces)
    assert split_at_pauses(noise[:15 * RATE]) == [(0, 15 * RATE)]


@pytest.mark.case("B10")
def test_digital_silence_has_no_words():
    """A recording of nothing, or the nothing after a sentence, would be heard as a sentence.

    Hiss and music still are: a model has to learn that (README, limits).
    """
    rng = np.random.default_rng(0)
    speech = 0.1 * rng.standard_normal(3 * RATE).astype(np.float32)
    nothing = np.zeros(20 * RATE, np.float32)
    dither = rng.integers(-1, 2, 20 * RATE).astype(np.float32) / 32768
    for silence in (nothing, dither, nothing[:RATE], nothing[:1], nothing + np.float32(0.5)):
        assert split_at_pauses(silence) == []
    t = np.arange(2 * RATE) / RATE
    voice = (3e-4 * np.sin(2 * np.pi * 150 * t)).astype(np.float32)  # 60 dB too quiet, but a voice
    assert split_at_pauses(voice) == [
    (0,
    2 *
    RATE)] and split_at_pauses(
        voice +
        0.5) == [
            (0,
            2 *
             RATE)]
    (first, second) = split_at_pauses(np.concatenate([speech, nothing, speech]), 10.0)
    assert first == pytest.approx(
    (0,
    3.2 * RATE),
    abs=10) and second == pytest.approx(
        (22.8 * RATE,
        26 * RATE),
         abs=10)
