"""prepare_spliced.py: cuts where words end, and new sentences whose sound is their text."""
import itertools
import json

import numpy as np
import pytest
import soundfile
import torch

import prepare_spliced as spliced
from model import GPT, GPTConfig
from tokenizer import ByteTokenizer


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

    def __init__(self):
        torch.manual_seed(0)
        self.tok = ByteTokenizer()
        self.model, self.audio = GPT(GPTConfig.of_depth(1, self.tok.vocab_size)).eval(), torch.randn(7, 128)
        for p in self.model.parameters():
            torch.nn.init.normal_(p, std=0.3)

    def hear(self, wavs):
        return [self.audio[:, :self.model.config.n_embd]]


@torch.no_grad()
def test_counts_are_of_whole_readings(monkeypatch):
    """The score of a beginning and some words would be of other audio, other words, or without the text's end."""
    monkeypatch.setattr(spliced, "ROWS", 3)
    talker, words, expected = Hears(), ["ab", "c", "de"], []
    for n_audio in range(1, 8):
        for n in range(4):
            ids = [talker.tok.bos_id, *talker.tok.encode(" ".join(words[:n])), talker.tok.bos_id]
            nats = talker.model(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]]), loss_reduction="sum",
                                audio_features=talker.hear([])[0][None, :n_audio], audio_lens=torch.tensor([n_audio]),
                                text_lens=torch.tensor([len(ids) - 1]), audio_at=0)
            expected.append(-float(nats))
    expected = torch.tensor(expected).view(7, 4).log_softmax(1).numpy()
    assert np.allclose(spliced.count_words(talker, None, words), expected, atol=2e-2)
    assert np.ptp(expected, axis=0).max() > 0.1  # the audio matters


def test_cuts_are_in_pauses(monkeypatch):
    """A word would be cut in two, or a cut stand where two words run together."""
    wav = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
    wav[:6000] = wav[14400:16000] = wav[28000:] = 0  # before the speech, after the first word, after the last
    logp = np.full((25, 4), -9.0)  # the second and third word run together: no pause at 1.75 s
    logp[np.arange(25), [0] * 8 + [1] * 9 + [2] * 3 + [3] * 5] = -0.01
    logp[2:5, 1] = logp[22:, 2] = 2  # words in the silence before and after the speech
    monkeypatch.setattr(spliced, "count_words", lambda talker, wav, words: logp.copy())
    cuts = spliced.find_cuts(Hears(), wav, ["a", "b", "c"])
    assert [n for n, _ in cuts] == [1] and 14400 <= cuts[0][1] <= 16000
    assert not spliced.find_cuts(Hears(), 0 * wav, ["a", "b", "c"])
    logp[8:17, 1] = -1
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
    rows += [{"audio": "0.wav", "text": "one two three four", "speaker": "r"}] * 2  # two are too few
    source.write_text("\n".join(map(json.dumps, rows)))
    held_out = [f"{a} {b} {c}" for a, b, c in itertools.permutations(words, 3)]
    (tmp_path / "val.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in held_out))
    settings = dict(source=str(source), out_dir=str(tmp_path / "out"), n_clips=60, speed=0.0,
                    Talker=lambda *a, **k: Hears())
    for name, value in settings.items():
        monkeypatch.setattr(spliced, name, value)
    monkeypatch.setattr(spliced, "find_cuts", lambda talker, wav, text: [(n, n * rate // 5) for n in (1, 3)])
    spliced.main()
    clips = [json.loads(line) for line in open(tmp_path / "out" / "clips.jsonl")]
    assert len(clips) == 60 == len({clip["text"] for clip in clips}) and {clip["speaker"] for clip in clips} == {*"pq"}
    assert not {clip["text"] for clip in clips} & {*held_out, *(row["text"] for row in rows)}
    for clip in clips:
        wav, _ = soundfile.read(tmp_path / "out" / clip["audio"])
        said = clip["text"].split()
        assert 3 <= len(said) <= 12 and len(wav) == len(said) * rate // 5
        for word, part in zip(said, wav.reshape(len(said), -1)):
            peak = np.argmax(np.abs(np.fft.rfft(part))) * 5  # Hz
            assert abs(peak - tones[clip["speaker"]][word]) < 10
    before, write_clips = sorted((tmp_path / "out").rglob("*")), spliced.write_clips
    monkeypatch.setattr(spliced, "write_clips", lambda *args: write_clips(*args) and 1 / 0)  # stopped before the end
    with pytest.raises(ZeroDivisionError):
        spliced.main()
    assert clips == [json.loads(line) for line in open(tmp_path / "out" / "clips.jsonl")]
    assert set(before) <= set((tmp_path / "out").rglob("*"))
    monkeypatch.setattr(spliced, "write_clips", write_clips)
    monkeypatch.setattr(spliced, "speed", 0.2)
    spliced.main()  # again, over the first
    assert sorted((tmp_path / "out").rglob("*")) == before
    (tmp_path / "test.jsonl").write_text("[]")
    with pytest.raises(ValueError, match="test.jsonl: a line is no JSON object"):
        spliced.main()
    assert len({soundfile.info(tmp_path / "out" / clip["audio"]).frames % (rate // 5) for clip in clips}) > 9
    for change, message in (({"split": "val"}, "split='val'"), ({"text": " "}, "0 words"),
                            ({"speaker": ""}, "speaker=''"), ({"speaker": None}, "speaker=None"),
                            ({"audio": "nowhere.wav"}, "no file"),
                            ({"text": 3}, "no row of")):
        source.write_text(json.dumps({**rows[0], **change}))
        with pytest.raises(ValueError, match=f"train.jsonl:1: .*{message}"):
            spliced.main()
    source.write_text("")
    with pytest.raises(ValueError, match="no speaker has three clips"):
        spliced.main()


def test_nobodys_recordings_are_removed(tmp_path, monkeypatch):
    """The clips beside a list, or its own source, would be emptied as if they were an earlier run's."""
    (tmp_path / "mine" / "clips").mkdir(parents=True)
    for n in range(3):
        soundfile.write(tmp_path / "mine" / "clips" / f"{n}.wav", np.zeros(1600), 16000)
    row = {"audio": "clips/0.wav", "text": "One, two.", "speaker": 7}
    for path in (tmp_path / "mine" / "mine.jsonl", tmp_path / "list.jsonl"):
        path.write_text(f"{json.dumps(row | {'audio': str(tmp_path / 'mine/clips/0.wav')})}\n" * 3)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(spliced, "out_dir", str(tmp_path / "mine"))
    for source in ("mine/mine.jsonl", "list.jsonl"):
        monkeypatch.setattr(spliced, "source", str(tmp_path / source))
        with pytest.raises(ValueError, match="choose another"):
            spliced.main()
        assert sorted(tmp_path.rglob("*")) == before
    assert spliced.read_source()["7"][0]["words"] == ["one", "two"]
    monkeypatch.setattr(spliced, "out_dir", "")
    with pytest.raises(ValueError, match="out_dir"):
        spliced.main()
