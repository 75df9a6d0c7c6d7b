"""The makers of questions, on speech made here: true labels, a fair bench, one-line errors."""
from collections import Counter

import numpy as np
import pytest
import soundfile

import sounds
from commands import read_rows, run
from language import ENGLISH
from questions import NOBODY, NUMBERS, VOICE_TASKS, read_small_talk, read_tasks

CORPORA = {"voices": ["--corpus=many", "--n_train=240", "--n_val=40", "--n_test=280"],
           "spoken": ["--corpus=spoken", "--n_train=60", "--n_val=20", "--n_test=150"],
           "speech": ["--n_train=60", "--n_val=20", "--n_test=100", "--test_engine=espeak"]}
LEVELS_DB = {"very quiet": (-53, -47), "quiet": (-42, -36), "loud": (-31, -25),
             "very loud": (-21, -15)}


def make(folder, script, out, *args, **kwargs):
    """Run prepare_<script>.py on the clips and text of a folder."""
    names = {"practice": ["text"], "bench": CORPORA, "instruct": CORPORA}[script]
    named = [f"--{name}{'_dir' * (name == 'text')}={folder}/{name}" for name in names]
    return run(f"prepare_{script}.py", *named, f"--out_dir={folder}/{out}", *args, **kwargs)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with text, three folders of speech, and a mix and a bench of them."""
    folder = tmp_path_factory.mktemp("instruct")
    run("prepare_text.py", f"--out_dir={folder}/text", "--n_train=700", "--n_val=700",
        "--n_test=700")
    for name, sizes in CORPORA.items():
        run("prepare_synthetic.py", f"--text_dir={folder}/text", f"--out_dir={folder}/{name}",
            *sizes)
    make(folder, "instruct", "mix", "--n=300")
    make(folder, "bench", "bench", "--bench_items=12")
    return folder


def spectrum(wav):
    return np.abs(np.fft.rfft(wav)) ** 2, np.fft.rfftfreq(len(wav), 1 / 16000)


@pytest.mark.slow
def test_bench_is_fair(world):
    """Broken: text alone answers, or a sentence or question of the bench is known from training."""
    bench = read_rows(world / "bench/questions.jsonl")
    assert set(Counter(row["cell"] for row in bench).values()) == {12}
    assert Counter(row["key"] for row in bench) == dict.fromkeys(range(4), 24)
    assert all(len(set(row["options"])) == 4 for row in bench)
    for task in {row["task"] for row in bench}:
        asked = [row for row in bench if row["task"] == task]
        keys = Counter(row["options"][row["key"]] for row in asked)
        wrong = Counter(option for row in asked for option in row["options"]) - keys
        assert max(keys.values()) - min(keys.values()) <= 1, (task, keys)
        if task in ("sentence", "word") or len(wrong) == 4:
            assert all(abs(wrong[option] - 3 * keys[option]) <= 3 for option in wrong), task
    mix = read_rows(world / "mix/items.jsonl")
    turns = [turn for row in mix + read_rows(world / "mix/turns.jsonl") for turn in row["turns"]]
    assert not {row["question"] for row in bench} & {turn[1].split("\n")[0] for turn in turns}
    keys = {row["options"][row["key"]] for row in bench if row["task"] == "sentence"}
    assert not keys & {row["text"] for row in mix}


@pytest.mark.slow
def test_same_settings_same_files(world, monkeypatch):
    """Broken: a second run asks other questions, or workers that are spawned (macOS) do."""
    monkeypatch.setenv("NANOCHAT_OMNI_START", "spawn")
    make(world, "bench", "bench2", "--bench_items=12")
    make(world, "instruct", "mix2", "--n=300")
    for name in ("bench/questions.jsonl", "bench/wavs/007.wav", "mix/items.jsonl",
                 "mix/turns.jsonl", "mix/text.jsonl", "mix/clips/train-000003.flac"):
        again = world / name.replace("/", "2/", 1)
        assert (world / name).read_bytes() == again.read_bytes(), name
    make(world, "instruct", "mix2", "--n=100")  # other settings: clips is made anew


@pytest.mark.slow
def test_labels_and_turns_are_true_of_the_sound(world):
    """Broken: a recording does not bear out its label, or an answer is not the recording's."""
    seen = set()
    for row in read_rows(world / "mix/items.jsonl"):
        wav, rate = soundfile.read(world / "mix" / row["audio"])
        labels, level = row["labels"], 10 * np.log10(np.mean(wav ** 2) + 1e-12)
        assert rate == 16000 and 1 <= len(row["turns"]) <= 4
        low, high = LEVELS_DB.get(labels.get("loudness"), (-99, 0))
        assert low <= level <= high, (row["key"], level)
        edge = {"a telephone": 3800, "a wall": 900}.get(labels.get("channel"), 8000)
        power, hz = spectrum(wav)
        assert power[hz > edge].sum() <= 0.02 * power.sum(), row["key"]
        assert level < -60 or labels.get("kind") != "silence"
        assert row["text"] == labels.get("sentence", "").replace("nobody is speaking", "")
        if "beeps" in labels:
            envelope = np.convolve(np.abs(wav), np.ones(400), "same")
            loud = (envelope > 120 * np.abs(wav).max()).astype(int)
            assert NUMBERS[(np.diff(loud) == 1).sum() + loud[0]] == labels["beeps"]
        for task, question, answer in row["turns"]:
            lines = question.split("\n")
            assert len(lines) == 1 or len(lines) == 6 and answer in lines[1:5]
            nobody = task in VOICE_TASKS and labels.get("sentence") == NOBODY
            assert answer == labels.get(task) or nobody and answer == NOBODY, row
            seen |= {task, *labels}
    assert {"loudness", "channel", "room", "noise", "pair", "event", "scene"} <= seen
    said = [row["answer"] for row in read_rows(world / "mix/text.jsonl")]
    assert len(said) == 30 and "send me a recording first" in said
    new, known = ({line for block in read_small_talk() for line in block[kind]} for kind in "?|")
    assert len(new) >= 50 and not new & known


@pytest.mark.slow
def test_practice_asks_what_its_sentences_say(world):
    """Broken: wrong answers are practised, or a right word is told by how frequent it is."""
    make(world, "practice", "practice", "--n=1500")
    chats, keys, others = read_rows(world / "practice/chats.jsonl"), Counter(), Counter()
    assert Counter(chat["split"] for chat in chats) == {"train": 1500, "val": 75}
    val = set((world / "text/val.txt").read_text().splitlines())
    assert all(chat["text"] in val for chat in chats if chat["split"] == "val")
    for chat in chats:
        text, words = chat["text"] or NOBODY, chat["text"].split() or [NOBODY]
        true = {"first": words[0], "last": words[-1], "sentence": text, **chat["labels"]}
        true |= {} if chat["text"] else dict.fromkeys(VOICE_TASKS, NOBODY)
        for task, question, answer in chat["turns"]:
            assert true.get(task, answer) == answer
            options = question.split("\n")[1:5]
            assert not options or options.count(answer) == 1 and len(set(options)) == 4
            if task == "word":
                assert sum(option in words for option in options) == 1 and answer in words
                keys[answer] += 3
                others.update(option for option in options if option != answer)
    common = dict((keys + others).most_common(30))
    right, wrong = (sum(count[word] for word in common) for count in (keys, others))
    assert 0.7 < right / wrong < 1.4


def test_no_two_options_are_read_alike():
    """Broken: two options of a question have the same ids, so that one can't be chosen."""
    for name, task in read_tasks().items():
        read = [ENGLISH.plain(label) for label in task.labels]
        assert len({"", *read}) == len(read) + 1, name


def test_sounds_are_what_they_are_called():
    """Broken: a rising melody falls, or a cathedral rings no longer than a bathroom."""
    rng = np.random.default_rng(0)
    for name, steps in sounds.MELODIES.items():
        heard = []
        for part in np.array_split(sounds.melody(24000, rng, "a flute", steps), 3):
            power, hz = spectrum(part * np.hanning(len(part)))
            heard.append(hz[power.argmax()])
        assert (np.sign(np.diff(heard)) == np.sign(np.diff(steps))).all(), name
    click = np.eye(1, 16000, 100)[0]
    rooms = [sounds.room(click, rng, *how) for how in sounds.ROOMS.values() if how]
    tails = [np.sum(wav[4000:] ** 2) for wav in rooms]
    assert tails == sorted(tails)
    for name, event in {**sounds.EVENTS, **sounds.SCENES}.items():
        wav = event(40000, rng)
        assert wav.shape == (40000,) and 0.5 < np.sqrt(np.mean(wav ** 2)) < 1.5, name


def test_bad_input_is_one_line(tmp_path):
    """Broken: a traceback, or a folder that training takes for whole, for a missing folder."""
    for script, n, message in (("instruct", 9, "labels.jsonl"), ("practice", 9, "train.txt"),
                               ("practice", 0, "at least 1")):
        assert message in make(tmp_path, script, "x", f"--n={n}", ok=False)
    assert "labels.jsonl" in make(tmp_path, "bench", "x", ok=False)
    assert not (tmp_path / "x").exists()
