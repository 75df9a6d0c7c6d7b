"""prepare_instruct.py on speech made in the test: labels that are true of the sound, a fair bench, bad input."""
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

import sounds
from test_eval import ROOT

SIZES = {"voices": ["--train_engines=espeak_many", "--test_engines=espeak_new", "--n_train=240", "--n_val=40",
                    "--n_test=560", "--rate_min=85", "--rate_max=265", "--pitch_min=5", "--pitch_max=95",
                    "--style_share=0.3", "--noise_share=0"],
         "spoken": ["--spoken_share=1", "--n_train=60", "--n_val=20", "--n_test=300", "--test_engines=espeak_new",
                    f"--spoken_file={ROOT}/assets/spoken.txt"],
         "speech": ["--n_train=60", "--n_val=20", "--n_test=200", "--test_engines=espeak"]}


def python(*args, ok=True):
    done = subprocess.run([sys.executable, *map(str, args)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode == 0) == ok, done.stdout[-500:] + done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three folders of speech, a mix and a bench made of them."""
    folder = tmp_path_factory.mktemp("instruct")
    python("prepare_text.py", f"--out_dir={folder}/text", "--n_train=2000", "--n_val=700", "--n_test=700")
    for name, sizes in SIZES.items():
        python("prepare_synthetic.py", f"--text_dir={folder}/text", f"--out_dir={folder}/{name}", *sizes)
    instruct(folder, "mix", "--n=300")
    instruct(folder, "bench", "--bench=True")
    return folder


def instruct(folder, out, *args, **kwargs):
    return python("prepare_instruct.py", f"--voices={folder}/voices", f"--spoken={folder}/spoken",
                  f"--speech={folder}/speech", f"--text_dir={folder}/text", f"--out_dir={folder}/{out}", *args,
                  **kwargs)


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def spectrum(wav):
    return np.abs(np.fft.rfft(wav)) ** 2, np.fft.rfftfreq(len(wav), 1 / 16000)


@pytest.mark.slow
def test_bench_is_fair(world):
    """Text alone could answer: a key more often than a distractor, in one place, or an option of another kind."""
    bench = rows(world / "bench" / "questions.jsonl")
    assert len(bench) == 200 and set(Counter(row["cell"] for row in bench).values()) == {25}
    assert set(Counter(row["key"] for row in bench).values()) == {50}
    by_task = {}
    for row in bench:
        by_task.setdefault(row["task"], []).append(row)
    for task, asked in by_task.items():
        keys = Counter(row["options"][row["key"]] for row in asked)
        wrong = Counter(option for row in asked for option in row["options"]) - keys
        assert all(len(set(row["options"])) == 4 for row in asked)
        if task in ("sentence", "word") or len(wrong) == 4:
            assert all(abs(wrong[option] - 3 * keys[option]) <= 3 for option in wrong), (task, keys, wrong)
        assert max(keys.values()) - min(keys.values()) <= 1, (task, keys)
        assert all((world / "bench" / row["audio"]).exists() for row in asked)


@pytest.mark.slow
def test_nothing_of_the_bench_is_in_training(world):
    """A voice, a sentence or a question of the bench would be known from training."""
    bench, mix = rows(world / "bench" / "questions.jsonl"), rows(world / "mix" / "items.jsonl")
    asked = {turn[1].split("\n")[0] for row in mix + rows(world / "mix" / "turns.jsonl") for turn in row["turns"]}
    assert not {row["question"] for row in bench} & asked
    said = {row["text"] for row in mix if row["text"]}
    assert not {row["options"][row["key"]] for row in bench if row["task"] == "sentence"} & said
    heard = {clip["voice"] for name in SIZES for clip in rows(world / name / "labels.jsonl") if clip["split"] != "test"}
    held_out = {clip["voice"] for clip in rows(world / "voices" / "labels.jsonl") if clip["split"] == "test"}
    assert held_out and not heard & held_out


@pytest.mark.slow
def test_same_settings_same_files(world, monkeypatch):
    """Two machines would ask other questions, or a run of fewer workers make another mix."""
    instruct(world, "bench2", "--bench=True")
    monkeypatch.setenv("NANOCHAT_OMNI_START", "spawn")  # as on macOS
    instruct(world, "mix2", "--n=300", "--workers=1")
    for a, b in (("bench/questions.jsonl", "bench2/questions.jsonl"), ("mix/items.jsonl", "mix2/items.jsonl"),
                 ("mix/turns.jsonl", "mix2/turns.jsonl"), ("bench/wavs/007.wav", "bench2/wavs/007.wav")):
        assert (world / a).read_bytes() == (world / b).read_bytes(), a


@pytest.mark.slow
def test_labels_are_true_of_the_sound(world):
    """A label that the recording does not bear out: level, noise, band, who speaks, how many tones, silence."""
    seen = Counter()
    for row in rows(world / "mix" / "items.jsonl"):
        wav, rate = soundfile.read(world / "mix" / row["audio"])
        labels, level = row["labels"], 10 * np.log10(np.mean(wav ** 2) + 1e-12)
        assert rate == 16000 and len(wav) > 4000
        power, hz = spectrum(wav)
        if labels.get("loudness"):
            low, high = {"very quiet": (-53, -47), "quiet": (-42, -36), "loud": (-31, -25),
                         "very loud": (-21, -15)}[labels["loudness"]]
            assert low <= level <= high, (row["key"], level)
        if labels.get("channel") in ("a telephone", "a wall"):
            edge = {"a telephone": 3800, "a wall": 900}[labels["channel"]]
            assert power[hz > edge].sum() < 0.02 * power.sum(), row["key"]
        if labels.get("kind") == "silence":
            assert level < -60
        if row["kind"] in ("event", "music", "beeps", "silence"):
            assert labels["sentence"] == "nobody is speaking" and row["text"] == ""
        if labels.get("beeps"):
            loud = np.convolve(np.abs(wav), np.ones(400) / 400, "same") > 0.3 * np.abs(wav).max()
            count = int((np.diff(loud.astype(int)) == 1).sum() + loud[0])
            assert count == ["zero", "one", "two", "three", "four"].index(labels["beeps"])
        seen.update(list(labels))
    assert {"loudness", "channel", "room", "noise", "pair", "event", "scene", "style", "quality", "beeps"} <= set(seen)


@pytest.mark.slow
def test_turns_say_what_labels_say(world):
    """An answer would not be among its options, or not be the clip's."""
    two_part = 0
    for row in rows(world / "mix" / "items.jsonl"):
        assert 1 <= len(row["turns"]) <= 4, row
        for task, question, answer in row["turns"]:
            lines = question.split("\n")
            if len(lines) > 1:
                assert len(lines) == 6 and answer in lines[1:5] and lines[5] == "answer with one of the options"
            if task == "two":
                two_part += 1
                assert all(part in row["labels"].values() for part in answer.split(" and ", 1)) or " and " in question
            else:
                assert row["labels"][task] == answer, row
    assert two_part
    chats = rows(world / "mix" / "text.jsonl")
    assert len(chats) == 30 and all(chat["answer"] for chat in chats)


def test_sounds_are_what_they_are_called():
    """A melody that falls when it is called rising, noise of another color, reverberation that doesn't last."""
    rng = np.random.default_rng(0)

    def pitch(wav):
        power, hz = spectrum(wav * np.hanning(len(wav)))
        return hz[power.argmax()]
    for name, steps in sounds.MELODIES.items():
        wav = sounds.melody(24000, rng, "a flute", steps)
        heard = [pitch(part) for part in np.array_split(wav, 3)]
        assert [b > a for a, b in zip(heard, heard[1:])] == [b > a for a, b in zip(steps, steps[1:])], name
    white, brown = (spectrum(sounds.colored(32768, rng, slope)) for slope in (0, 1))
    assert brown[0][brown[1] < 500].sum() / brown[0].sum() > 0.8 > white[0][white[1] < 500].sum() / white[0].sum()
    click = np.zeros(16000, np.float32)
    click[100] = 1
    tails = {name: np.sum(sounds.room(click, rng, *how)[4000:] ** 2) for name, how in sounds.ROOMS.items() if how}
    assert tails["a bathroom"] < tails["a hall"] < tails["a cathedral"]
    for name, make in {**sounds.EVENTS, **sounds.SCENES}.items():
        wav = make(40000, rng)
        assert wav.shape == (40000,) and np.isfinite(wav).all() and 0.5 < np.sqrt(np.mean(wav ** 2)) < 1.5, name


@pytest.mark.slow
def test_practice_asks_what_its_sentences_say(world):
    """The base model would practise wrong answers, or could tell a right word by how frequent it is."""
    instruct(world, "practice", "--practice=1500")
    chats, keys, others = rows(world / "practice" / "chats.jsonl"), Counter(), Counter()
    assert Counter(chat["split"] for chat in chats) == {"train": 1500, "val": 75}
    train = set((world / "text" / "train.txt").read_text().splitlines())
    assert not any(chat["text"] in train for chat in chats if chat["split"] == "val" and len(chat["text"].split()) > 2
                   and not chat["text"].startswith("what"))
    for text, (task, question, answer) in ((chat["text"], turn) for chat in chats for turn in chat["turns"]):
        words, options = text.split(), question.split("\n")[1:5]
        assert not options or options.count(answer) == 1 and len(set(options)) == 4
        if task == "word":
            assert sum(option in words for option in options) == 1 and answer in words
            keys[answer] += 3
            others.update(option for option in options if option != answer)
        assert {"first": words[0], "last": words[-1], "sentence": text}.get(task, answer) == answer
    common = [word for word, n in (keys + others).most_common(30)]
    assert 0.7 < sum(keys[word] for word in common) / sum(others[word] for word in common) < 1.4


@pytest.mark.slow
def test_bad_input_is_one_line(world, tmp_path):
    """A traceback, or files replaced, for a missing folder, a broken question file or somebody's own folder."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "letter.txt").write_text("dear")
    (tmp_path / "q.txt").write_text("[pitch] x\nwhat\n")
    for args, message in ((["--voices=nowhere"], "nowhere"), (["--n=0"], "n, turns"),
                          ([f"--out_dir={tmp_path}/own"], "not made by this script"),
                          ([f"--questions_file={tmp_path}/q.txt"], "q.txt:2")):
        out = instruct(world, "x", *args, ok=False)
        assert message in out and "Traceback" not in out, out[-300:]
    assert (tmp_path / "own" / "letter.txt").exists()
