"""The bench: its file, statistics, controls, scoring of others' answers, and the real command line on a tiny run."""
import json
import math
import runpy
import sys

import numpy as np
import pytest
import soundfile
import torch

import audiobench
from audio import Projector, WhisperEncoder, save_encoder
from model import GPT, GPTConfig
from test_eval import ROOT
from tokenizer import train_bpe


def make_bench(folder, n=8):
    """A bench of n questions in two cells; the recordings are tones, the options words."""
    (folder / "wavs").mkdir(parents=True)
    rows = []
    for i in range(n):
        t = np.arange(4000 + 400 * i) / 16000
        soundfile.write(folder / f"wavs/{i}.wav", 0.3 * np.sin(2 * np.pi * (200 + 60 * i) * t), 16000)
        rows.append({"id": str(i), "cell": ("a", "b")[i % 2], "task": "pitch", "audio": f"wavs/{i}.wav",
                     "question": "how high is it", "options": ["low", "high", "red", "old"], "key": i % 4})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def make_run(folder):
    """A tiny random model that answers questions."""
    torch.manual_seed(0)
    folder.mkdir()
    tok = train_bpe(["how high is it low high red old answer with one of the options"] * 3, 300)
    model = GPT(GPTConfig(sequence_len=256, vocab_size=tok.vocab_size, n_layer=2, n_head=2, n_kv_head=2, n_embd=64))
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    encoder = WhisperEncoder({"name": "tiny", "n_mels": 80, "n_layer": 2, "n_embd": 64, "n_head": 2}, torch.float32)
    projector = Projector(64, 2, 5, 64, texture=4)
    torch.save(model.state_dict(), folder / "model_000003.pt")
    torch.save(projector.state_dict(), folder / "projector_000003.pt")
    save_encoder(encoder, str(folder / "encoder.pt"))
    tok.save(folder)
    audio = {"projector": projector.arguments, "encoder": "tiny", "encoder_sha256": encoder.sha256, "taps": [0, -1],
             "stack": 5, "prompt": "chat", "audio_at": 0, "plain": True}
    meta = {"step": 3, "model_config": vars(model.config), "user_config": {"data_dir": "nowhere"}, "audio": audio}
    (folder / "meta_000003.json").write_text(json.dumps(meta))
    return str(folder)


def evaluate(monkeypatch, capsys, *args):
    """Run eval_bench.py as a user does -> (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["eval_bench.py", *args])
    code = 0
    try:
        runpy.run_path(f"{ROOT}/eval_bench.py", run_name="__main__")
    except SystemExit as e:
        code = e.code
    return code, *capsys.readouterr()


def test_intervals_and_mcnemar():
    """A wrong interval or p, on values worked out by hand (Wilson's of 40 in 100; binomial tails)."""
    assert audiobench.wilson(40, 100) == [pytest.approx(0.3094, abs=1e-4), pytest.approx(0.4980, abs=1e-4)]
    assert audiobench.wilson(0, 25)[0] == 0.0 and audiobench.wilson(25, 25)[1] == 1.0
    assert audiobench.mcnemar([1] * 10, [0] * 10) == pytest.approx(2 / 1024)
    assert audiobench.mcnemar([1, 0], [0, 1]) == 1.0 and audiobench.mcnemar([1, 1], [1, 1]) == 1.0


def test_shuffled_control_stays_in_its_cell():
    """Another cell's audio would be easy to tell apart; one's own would be no control."""
    rows = [{"cell": "abc"[i % 3]} for i in range(30)]
    partner = audiobench.partners(rows, 0)
    assert sorted(partner) == list(range(30)) and all(i != j for i, j in enumerate(partner))
    assert all(rows[i]["cell"] == rows[j]["cell"] for i, j in enumerate(partner))


def test_bench_file_is_checked(tmp_path):
    """A question that can't be asked would end in a traceback, or count as wrong."""
    folder = make_bench(tmp_path / "bench")
    assert len(audiobench.read_bench(folder)) == 8
    lines = (tmp_path / "bench/questions.jsonl").read_text().splitlines()
    for change in ({"key": 4}, {"options": ["a", "a", "b", "c"]}, {"audio": "gone.wav"}, {"id": "0"},
                   {"options": ["42", "forty two", "43", "44"]}):
        changed = [*lines[:2], json.dumps(json.loads(lines[2]) | change), *lines[3:]]
        (tmp_path / "bench/questions.jsonl").write_text("\n".join(changed))
        with pytest.raises(ValueError, match="questions.jsonl:3"):
            audiobench.read_bench(folder)


def test_others_answers(tmp_path, monkeypatch, capsys):
    """Another model's texts and letters would be scored wrongly, a malformed one as right."""
    folder, path = make_bench(tmp_path / "bench"), tmp_path / "theirs.jsonl"
    said = ["low", "B", "c.", "OLD!", "high", "no idea", "(C)"]
    path.write_text("".join(json.dumps({"id": str(i), "answer": a}) + "\n" for i, a in enumerate(said)))
    code, out, _ = evaluate(monkeypatch, capsys, f"--bench={folder}", f"--answers={path}", f"--out_dir={tmp_path}/out")
    result = json.loads((tmp_path / "out/bench.json").read_text())
    assert code == 0 and result["score"] == pytest.approx(5 / 8, abs=1e-3), result
    assert result["malformed"] == 2 and result["missing"] == 1
    path.write_text('{"id": "99", "answer": "low"}\n')
    code, _, err = evaluate(monkeypatch, capsys, f"--bench={folder}", f"--answers={path}", f"--out_dir={tmp_path}/out")
    assert code == 2 and "no question 99" in err


def test_numeric_options_are_different_answers(tmp_path):
    """42 and 43 would both be nothing: the same ids, the same score, and any answer right."""
    folder = make_bench(tmp_path / "bench")
    path, theirs = tmp_path / "bench/questions.jsonl", tmp_path / "theirs.jsonl"
    rows = [json.loads(line) | {"options": ["41", "42", "43", "1984"], "key": 1} for line in path.open()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = ["forty two", "42.", "43", "nineteen eighty four", "你好", "", "B", "41"]
    theirs.write_text("".join(json.dumps({"id": str(i), "answer": a}) + "\n" for i, a in enumerate(said)))
    _, choices = audiobench.score_answers_file(folder, str(theirs))
    assert [choice["chosen"] for choice in choices] == ["42", "42", "43", "1984", "", "", "42", "41"]


def test_probe_finds_what_is_there():
    """A ceiling that could not be reached by features that hold the answer, or was by noise."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 400)
    x = rng.normal(size=(400, 50)).astype(np.float32)
    x[np.arange(400), y] += 4
    one_hot = np.eye(4, dtype=np.float32)[y]
    weight = audiobench.ridge(x[:300], one_hot[:300] - 0.25)
    assert ((x[300:] @ weight).argmax(1) == y[300:]).mean() > 0.9
    noise = rng.normal(size=(400, 50)).astype(np.float32)
    weight = audiobench.ridge(noise[:300], one_hot[:300] - 0.25)
    assert ((noise[300:] @ weight).argmax(1) == y[300:]).mean() < 0.4


def test_scores_average_over_rotations(tmp_path, monkeypatch):
    """A model that always likes the first place would be above chance."""
    rows = audiobench.read_bench(make_bench(tmp_path / "bench"))

    class Tok:
        special = staticmethod(lambda name: 0)
        encode = staticmethod(lambda text: [len(text)])
    first = lambda model, prompts, answers, audio, at: torch.tensor([[0.0, -5.0, -5.0, -5.0]] * len(prompts))
    monkeypatch.setattr(audiobench, "score_answers", first)
    monkeypatch.setattr(audiobench, "chat_prompt", lambda *a: [0])
    meta = {"audio": {"plain": True, "audio_at": 0}}
    scores, places = audiobench.score_options((None, meta, Tok, None, None), rows, None, 3)
    assert np.ptp(scores) == 0 and places == [32, 0, 0, 0]


@pytest.mark.slow
def test_the_command_line_repeats_itself(tmp_path, monkeypatch, capsys):
    """The bench would not say the same twice, miss a control, or leave no picture, page or figures."""
    folder, ckpt = make_bench(tmp_path / "bench"), make_run(tmp_path / "run")
    results = []
    for batch_size in (3, 32):
        code, out, err = evaluate(monkeypatch, capsys, f"--ckpt={ckpt}", f"--bench={folder}", "--page=True",
                                  f"--batch_size={batch_size}", "--device=cpu")
        assert code == 0, err
        results.append(json.loads((tmp_path / "run/bench.json").read_text()))
    for result in results:
        for name in ("seconds", "minutes", "inputs"):
            del result[name]
    assert results[0] == results[1]
    assert {"score", "shuffled", "no_audio", "noise", "free_generation", "pmi"} <= set(results[0])
    assert set(results[0]["cells"]) == {"a", "b"} and sum(results[0]["chosen_places"]) == 32
    page = (tmp_path / "run/page.html").read_text()
    assert page.count("<audio") == 8 and page.count("class=key") == 8 and page.count("chosen") == 8
    assert (tmp_path / "run/bench.png").stat().st_size > 5000
    choices = [json.loads(line) for line in (tmp_path / "run/bench.jsonl").read_text().splitlines()]
    assert len(choices) == 8 and all(math.isfinite(x) for choice in choices for x in choice["log_probability"])
