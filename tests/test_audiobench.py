"""The bench: its file, statistics, controls, the real command on a tiny run."""
import html
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import audiobench
from audio import Projector
from commands import raises, read_rows, write_rows
from test_eval import save_run, score
from tokenizer import train_bpe


def make_bench(folder):
    """A bench of 8 questions in two cells; the recordings are tones."""
    folder.mkdir()
    rows = []
    for i in range(8):
        t = np.arange(4000 + 400 * i) / 16000
        soundfile.write(folder / f"{i}.wav", 0.3 * np.sin(2 * np.pi * (200 + 60 * i) * t), 16000)
        rows.append({"id": str(i), "part": "real", "cell": "ab"[i % 2], "task": "pitch",
                     "audio": f"{i}.wav", "question": "how high is it", "key": i % 4,
                     "options": ["low", "high", "red", "old"]})
    write_rows(folder / "questions.jsonl", rows)
    return str(folder)


def make_run(folder, **more):
    """A tiny random model that answers questions."""
    words = "how high is it low high red old answer with one of the options"
    torch.manual_seed(0)
    projector = Projector(64, 2, 5, 64, texture=4, **more)
    return save_run(folder, train_bpe([words] * 3, 300), projector, taps=[0, -1], prompt="chat",
                    plain=True)


def test_intervals_and_mcnemar():
    """Broken: an interval or p is wrong, on values worked out by hand (binomial tails)."""
    assert audiobench.wilson(40, 100) == pytest.approx([0.3094, 0.4980], abs=1e-4)
    assert audiobench.wilson(0, 25)[0] == 0.0 and audiobench.wilson(25, 25)[1] == 1.0
    yes, no = np.ones(10, bool), np.zeros(10, bool)
    assert audiobench.mcnemar(yes, no) == pytest.approx(2 / 1024)
    assert audiobench.mcnemar(np.array([True, False]), np.array([False, True])) == 1.0


def test_shuffled_control_stays_in_its_cell():
    """Broken: a question gets another cell's audio, easy to tell apart, or its own."""
    rows = [{"cell": "abc"[i % 3]} for i in range(30)]
    partner = audiobench.partners(rows)
    assert sorted(partner) == list(range(30)) and all(i != j for i, j in enumerate(partner))
    assert all(rows[i]["cell"] == rows[j]["cell"] for i, j in enumerate(partner))


def test_bench_file_is_checked(tmp_path):
    """Broken: a question that can't be asked is a traceback, or counts as wrong."""
    folder = make_bench(tmp_path / "bench")
    rows = audiobench.read_bench(folder)
    assert len(rows) == 8 and rows[3]["audio"] == f"{folder}/3.wav"
    rows = read_rows(tmp_path / "bench/questions.jsonl")
    for change in ({"key": 4}, {"options": ["a", "b", "c"]}, {"cell": None}):
        write_rows(tmp_path / "bench/questions.jsonl", [*rows[:2], rows[2] | change, *rows[3:]])
        raises("questions.jsonl:3", audiobench.read_bench, folder)


def test_probe_finds_what_is_there():
    """Broken: the ceiling can't be reached by vectors that hold the answer, or is by noise."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 400)
    x, noise = rng.normal(size=(2, 400, 50)).astype(np.float32)
    x[np.arange(400), y] += 4
    clips = SimpleNamespace(infos=[{"labels": {"pitch": "abcd"[k]}} for k in y[:300]])
    rows = [{"task": "words", "options": list("wxyz"), "key": 0}]  # an open set: not probed
    rows += [{"task": "pitch", "options": list("abcd"), "key": int(k)} for k in y[300:]]
    for vectors, low, high in ((x, 0.9, 1.0), (noise, 0.0, 0.4)):
        right = audiobench.regress(clips, vectors.__getitem__, rows, vectors[299:], 9.0)
        assert np.isnan(right[0]) and low <= right[1:].mean() <= high


def test_scores_average_over_rotations(tmp_path, monkeypatch):
    """Broken: a model that always likes the first place is above chance."""
    rows = audiobench.read_bench(make_bench(tmp_path / "bench"))
    tok = SimpleNamespace(special=lambda name: 0, encode=lambda text: [len(text)])
    monkeypatch.setattr(audiobench, "score_answers", lambda model, prompts, *rest: torch.tensor(
        [[0.0, -5.0, -5.0, -5.0]] * len(prompts)))
    talker = SimpleNamespace(model=None, tok=tok, clean=str, prompt=lambda messages: [0])
    scores = audiobench.score_options(talker, rows, None)
    assert scores.shape == (8, 4) and np.ptp(scores) == 0


@pytest.mark.slow
def test_the_command_line_repeats_itself(tmp_path, monkeypatch):
    """Broken: the bench says something else in other batches, or lacks a control."""
    folder = make_bench(tmp_path / "bench")
    ckpt = make_run(tmp_path / "run")
    results = []
    for batch_size in (3, 32):
        monkeypatch.setattr(audiobench, "BATCH_SIZE", batch_size)
        results.append(score(tmp_path / str(batch_size), f"--ckpt={ckpt}", f"--bench={folder}",
                             name="bench.json"))
        del results[-1]["seconds"], results[-1]["settings"]
    assert results[0] == results[1]
    assert {"score", "shuffled", "no_audio", "noise", "free_generation"} <= set(results[0])
    assert set(results[0]["cells"]) == {"a", "b"}
    choices = read_rows(tmp_path / "3/bench.jsonl")
    assert [choice["id"] for choice in choices] == list("01234567")
    assert all(map(math.isfinite, choices[0]["log_probability"]))
    page = html.unescape((tmp_path / "3/page.html").read_text())
    sounds = re.findall('src="(.+)"', page)
    assert len(sounds) > 2 and all((tmp_path / "3" / path).is_file() for path in sounds)
    wrong = next(choice["chosen"] for choice in choices if not choice["right"])
    assert f"chosen: {wrong}; right: " in page
