"""prepare_spliced.py: cuts where words end, and new sentences whose sound is their text."""
import itertools
import json

import numpy as np
import pytest
import soundfile

import prepare_spliced as spliced


def test_rising_path_is_the_best():
    """A cut would stand where another order of the counts is likelier."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.normal(size=(6, 4))
        rising = [path for path in itertools.product(range(4), repeat=6)
                  if list(path) == sorted(path) and path[0] < 2 and path[-1] == 3]
        best = max(rising, key=lambda path: sum(scores[t, n] for t, n in enumerate(path)))
        assert spliced.rising_path(scores).tolist() == list(best)


class Hears:
    """Stands for an aligned run: audio tokens of 80 ms."""
    ears = {"stack": 4, "prompt": "transcript", "audio_at": 0}


def test_cuts_are_in_pauses(monkeypatch):
    """A word would be cut in two, or a cut stand where two words run together."""
    wav = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
    wav[:6000] = wav[14400:16000] = wav[28000:] = 0  # pauses before, between the first two words, and at the end
    logp = np.full((25, 4), -9.0)  # the second and third word run together: no pause at 1.35 s
    logp[np.arange(25), [0] * 8 + [1] * 6 + [2] * 5 + [3] * 6] = -0.01
    logp[2, 1] = 0  # a word in the silence before the speech
    monkeypatch.setattr(spliced, "count_words", lambda talker, wav, words: logp.copy())
    cuts = spliced.find_cuts(Hears(), wav, ["a", "b", "c"])
    assert [n for n, _ in cuts] == [1] and 14400 <= cuts[0][1] <= 16000
    logp[8:14, 1] = -1
    assert not spliced.find_cuts(Hears(), wav, ["a", "b", "c"])  # it isn't sure of the first word


def test_sound_is_the_text(tmp_path, monkeypatch):
    """A clip's audio would say other words than its text, or those of two speakers."""
    words, rate = "one two three four five six seven eight".split(), 16000
    tones = {speaker: {word: 300 + 100 * n + 50 * k for n, word in enumerate(words)} for k, speaker in enumerate("pq")}
    tone = lambda f: np.sin(2 * np.pi * f * np.arange(rate // 5) / rate)  # 0.2 s a word
    rows = []
    for n in range(12):
        speaker, text = "pq"[n % 2], [words[(n + k * (n // 2 + 1)) % 8] for k in range(4)]
        soundfile.write(tmp_path / f"{n}.wav", 0.5 * np.concatenate([tone(tones[speaker][w]) for w in text]), rate)
        rows.append({"audio": f"{n}.wav", "text": " ".join(text), "speaker": speaker})
    source = tmp_path / "train.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    settings = dict(source=str(source), out_dir=str(tmp_path / "out"), n_clips=60, speed=0.0,
                    Talker=lambda *a, **k: Hears())
    for name, value in settings.items():
        monkeypatch.setattr(spliced, name, value)
    monkeypatch.setattr(spliced, "find_cuts", lambda talker, wav, text: [(n, n * rate // 5) for n in (1, 3)])
    spliced.main()
    clips = [json.loads(line) for line in open(tmp_path / "out" / "clips.jsonl")]
    assert len(clips) == 60 == len({clip["text"] for clip in clips}) and {clip["speaker"] for clip in clips} == {*"pq"}
    for clip in clips:
        wav, _ = soundfile.read(tmp_path / "out" / clip["audio"])
        said = clip["text"].split()
        assert 3 <= len(said) <= 12 and len(wav) == len(said) * rate // 5
        for word, part in zip(said, wav.reshape(len(said), -1)):
            peak = np.argmax(np.abs(np.fft.rfft(part))) * 5  # Hz
            assert abs(peak - tones[clip["speaker"]][word]) < 10
    source.write_text(json.dumps({**rows[0], "split": "val"}))
    with pytest.raises(ValueError, match="train.jsonl:1 is of the split val"):
        spliced.main()
    source.write_text('{"audio": "0.wav"}')
    with pytest.raises(ValueError, match="train.jsonl:1: no row of audio, text and speaker"):
        spliced.main()
