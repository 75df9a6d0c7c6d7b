"""The training scripts' real command lines at toy size: resume, ranks, frozen weights, W1."""
import json
import os
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import record
from audio import build_encoder, save_encoder
from checkpoints import checkpoint_steps, load_saved, read_meta
from commands import ROOT, raises, refused, run_here
from files import sha256_file, write_json, write_jsonl
from run import read_ahead
from test_audio import draw_encoder
from test_data import write_features
from tokenizer import BPETokenizer, load_tokenizer

WORDS = "the a small red old dog cat bird man girl sees hears likes wants two three houses".split()
BASE = ["--depth=2", "--head_dim=32", "--vocab_size=300", "--text_len=16", "--batch_size=8",
        "--practice_vocab=270", "--spell_share=0.125", "--chat_rows=4"]
ALIGN = ["--hidden=32", "--batch_tokens=160"]
BOTH = ["--grad_accum=2", "--warmup_steps=1", "--lr_decay_steps=8", "--use_compile=False",
        "--log_every=1", "--device=cpu"]
SPEED = ("ms", "tok/s", "mfu", "eta_min")


def run(script, *args, n_ranks=1, ok=True, kill_when=None):
    """Run a script as a user does, until kill_when() if given -> stdout and stderr together."""
    if n_ranks == 1 and not kill_when:
        if not ok:
            return refused(script, *args)
        code, out, err = run_here(script, *args)
        assert code == 0, (out + err)[-3000:]
        return out
    command = [sys.executable]
    if n_ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_ranks}"]
    with subprocess.Popen([*command, f"{ROOT}/{script}", *args], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while kill_when and process.poll() is None:
            time.sleep(0.001)
            if kill_when():
                process.kill()
        out = process.communicate()[0]
    is_right = process.returncode == -9 if kill_when else (process.returncode == 0) == ok
    assert is_right, out[-3000:]
    return out


def log_of(folder):
    """The log's whole lines, without what tells of speed."""
    with open(f"{folder}/log.jsonl") as f:
        rows = [json.loads(line) for line in f if line.endswith("\n")]
    return [{name: row[name] for name in row if name not in SPEED} for row in rows]


def losses(folder):
    """The logged training losses by step."""
    return {row["step"]: row["loss"] for row in log_of(folder) if "loss" in row}


def same_state(a, b):
    a, b = (torch.load(path, weights_only=True) for path in (a, b))
    return all(torch.equal(a[k], b[k]) for k in a)


def base(world, out, *args, **kwargs):
    return run("train_base.py", f"--data_dir={world}/text", f"--chats={world}/chats.jsonl",
               f"--out_dir={out}", *BASE, *BOTH, *args, **kwargs)


def align(world, out, *args, **kwargs):
    return run("train_align.py", f"--data_dir={world}/features", f"--lm={world}/base",
               f"--whisper={world}/encoder.pt", f"--out_dir={out}", *ALIGN, *BOTH, *args, **kwargs)


def write_encoder(path, **changes):
    """Write a small random encoder, and return it."""
    config = {"name": "random", "n_mels": 80, "n_layer": 1, "n_embd": 32, "n_head": 2}
    encoder = draw_encoder(**config | changes)
    save_encoder(encoder, str(path))
    return encoder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Sentences, random features of a random encoder, and a base model of two steps."""
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    sentences = sorted({" ".join(rng.choice(WORDS, rng.integers(3, 8))) for _ in range(300)})
    (folder / "text").mkdir()
    for split, some in (("train", sentences[20:]), ("val", sentences[:20])):
        (folder / f"text/{split}.txt").write_text("\n".join(some) + "\n")
    encoder = write_encoder(folder / "encoder.pt")
    clips, chats = [], []
    for i, text in enumerate(sentences[:60]):
        info = {"text": text, "seconds": 0.5, "split": "train" if i < 40 else "val"}
        feats = rng.normal(size=(20 + i % 7, 1, 32)).astype(np.float16)
        clips.append((f"clip{i:03d}", feats, info))
        first, second, *_ = text.split()
        chats.append({"split": "val" if i < 5 else "train", "text": text,
                      "labels": {"sex": "a man"} if i % 2 else {},
                      "turns": [["first", "what is the first word", first],
                                ["word", f"which word\n{second}\ncow", "cow"]]})
    write_features(folder / "features", clips, taps=[-1], sha256=encoder.sha256)
    write_jsonl(folder / "chats.jsonl", chats)
    base(folder, folder / "base", "--max_steps=2")
    return folder


@pytest.mark.slow
def test_documents(tmp_path):
    """Broken: documents are not learnt, or a cut file costs the run that is there."""
    rng, made = np.random.default_rng(1), tmp_path / "made"
    texts = [" ".join(rng.choice(WORDS, rng.integers(5, 40))) for _ in range(400)]
    write_jsonl(tmp_path / "docs.jsonl", [{"text": text} for text in texts])
    run("prepare_documents.py", f"--documents={tmp_path}/docs.jsonl", f"--out_dir={made}",
        "--vocab_size=300")

    def train(name, *args, **more):
        return run("train_base.py", f"--documents={made}", "--data_dir=", *BASE, *BOTH, *args,
                   f"--out_dir={tmp_path}/{name}", "--practice=0", **more)
    said = train("straight", "--max_steps=4")
    assert "documents" in said and "cropped" in said and "practice_loss" not in said
    train("next", "--max_steps=1", f"--lm={tmp_path}/straight")
    before = losses(tmp_path / "straight")
    assert losses(tmp_path / "next")[1] < before[1] - 0.02
    os.truncate(made / "val.bin", 9)
    said = train("straight", "--max_steps=4", "--init_from=scratch", ok=False)
    assert "val.bin is not of" in said
    assert losses(tmp_path / "straight") == before  # nothing is touched


@pytest.mark.slow
@pytest.mark.parametrize("train", [base, align])
def test_a_killed_run_goes_on_as_if_it_had_not_been(world, tmp_path, train):
    """Broken: after SIGKILL losses differ, or files are broken, left behind or lost."""
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 10**6))
    print(f"KILL_SEED={seed}")  # repeats which steps
    rng, straight, killed = random.Random(seed), tmp_path / "straight", tmp_path / "killed"
    settings = ["--max_steps=24", "--save_every=1", "--eval_every=4", "--log_every=3"]
    train(world, straight, *settings)
    killed.mkdir()
    (killed / "log.jsonl").touch()  # as if killed before the first checkpoint
    for kill in range(3):
        first, delay = (checkpoint_steps(killed) or [0])[-1], rng.uniform(0, 0.2)
        until = first + rng.randint(1, 6)

        def is_time():
            if (checkpoint_steps(killed) or [0])[-1] < until:
                return False
            if kill % 2:  # amid a save
                return any(name.endswith((".pt.tmp", ".json.tmp")) for name in os.listdir(killed))
            return time.sleep(delay) or True
        out = train(world, killed, *settings, "--init_from=resume",
                    kill_when=is_time if kill < 2 else None)
        assert f"starting at step {first}" in out or not first
        assert all(row in log_of(straight) for row in log_of(killed))
    assert log_of(killed) == log_of(straight)
    assert sorted(os.listdir(killed)) == sorted(os.listdir(straight))
    assert checkpoint_steps(killed) == [23, 24]
    for step in (23, 24):
        sums = read_meta(killed, step)["sha256"]
        assert sums == read_meta(straight, step)["sha256"] and len(sums) == 2 + (train is align)
        assert all(sha256_file(killed / name) == value for name, value in sums.items())
    assert "other lr_decay_steps" in train(world, killed, *settings, "--lr_decay_steps=9", ok=False)


@pytest.mark.slow
def test_vocabulary_grows(world, tmp_path):
    """Broken: whole tokens are trained before their time, or a stop just there changes the run."""
    straight, parts = tmp_path / "straight", tmp_path / "parts"

    def table(step, folder=straight):
        return load_saved(folder, read_meta(folder, step), "model")["transformer.wte.weight"]

    settings = "--spell_share=0.25", "--save_every=2", "--max_steps=4"
    base(world, straight, *settings)
    shutil.copytree(straight, parts, ignore=shutil.ignore_patterns("*_000004*"))
    base(world, parts, *settings, "--init_from=resume")
    assert torch.equal(table(4), table(4, parts))
    tok = load_tokenizer(straight)
    pieces = BPETokenizer(tok.tokens[256:270])
    began = torch.stack([table(2)[pieces.spell(tok.tokens[i])].mean(0) for i in range(270, 291)])
    assert (table(4)[270:291] - began).abs().max() < 1.0
    assert (table(4)[270:291] - table(2)[270:291]).abs().amax(1).min() > 0.3


@pytest.mark.slow
def test_alignment_freezes_the_lm(world, tmp_path):
    """Broken: W2 moves the LM, not the projector, or leaves a folder that needs its sources."""
    run_dir, lm = tmp_path / "run", world / "base/model_000002.pt"
    manifest = shutil.copytree(world / "features", tmp_path / "de") / "manifest.json"
    manifest.write_text(manifest.read_text().replace("{", '{"language": "de", ', 1))
    align(world, run_dir, "--max_steps=2", "--save_every=1", f"--data_dir={tmp_path}/de")
    assert same_state(lm, run_dir / "model_000002.pt")
    assert os.path.samefile(*(run_dir / f"model_00000{n}.pt" for n in (1, 2)))  # written once
    audio = read_meta(run_dir)["audio"]
    assert (audio["prompt"], audio["encoder"], audio["language"]) == ("transcript", "random", "de")
    assert {"encoder.pt", "tokenizer.json", "pca.png", "log.jsonl"} <= set(os.listdir(run_dir))
    evaluated = log_of(run_dir)[-1]
    assert {"val_loss", "val_shuffled", "gap", "val_wer", "val_acc"} <= set(evaluated)
    align(world, tmp_path / "alone", "--max_steps=1", "--batch_tokens=1")
    alone = log_of(tmp_path / "alone")[-1]  # a clip alone in its batch has no other's audio
    assert "val_loss" in alone and not {"val_shuffled", "gap"} & set(alone)
    assert "alike" in align(world, tmp_path / "no", f"--lm={run_dir}", "--stack=5", ok=False)
    align(world, tmp_path / "lm", "--max_steps=2", "--lm_learning_rate=1e-3")
    assert not same_state(lm, tmp_path / "lm/model_000002.pt")


def test_auto_goes_on_with_the_same_code_alone(world, tmp_path):
    """Broken: a kill before an evaluation loses it, or it is there twice; an edited loss, run
    again, shows yesterday's numbers."""
    settings, killed = ("--save_every=1", "--eval_every=1"), tmp_path / "killed"
    align(world, tmp_path / "straight", "--max_steps=2", *settings)
    align(world, killed, "--max_steps=1", *settings)
    write_json(killed / "meta_000001.json", read_meta(killed) | {"evaluated": False})
    align(world, killed, "--max_steps=2", *settings)
    assert log_of(killed) == log_of(tmp_path / "straight")
    assert "is up to date: finished at" in align(world, killed, "--max_steps=2", *settings)
    meta = read_meta(killed)
    code = meta["versions"]["code"]
    assert {"train_align.py", "trainer.py", "model.py", "optim.py", "run.py"} <= set(code)
    code["optim.py"] = f"{sys.version_info.minor}-another"
    write_json(killed / "meta_000002.json", meta)
    out = align(world, killed, "--max_steps=3", *settings, ok=False)
    assert "other code (optim.py changed since)" in out and "resume (goes on)" in out
    out = align(world, killed, "--max_steps=3", *settings, "--init_from=resume")
    assert "starting at step 2" in out


def test_code_sums_see_code_alone(monkeypatch, tmp_path):
    """Broken: a comment stops a run, a changed line does not, or a machine without git crashes."""
    path, sums = tmp_path / "a.py", []
    for text in ('"""Doc."""\ndef f(x):\n    """Say."""\n    return x + 1  # why\n',
                 '"""Other."""\ndef f(x):\n    """Tell."""\n\n    return x + 1\n',
                 "def f(x):\n    return x + 2\n"):
        path.write_text(text)
        sums.append(record.code_sum(path))
    assert sums[0] == sums[1] != sums[2]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record.provenance("cpu")["git_commit"] == ""


def test_read_ahead_keeps_the_order():
    """Broken: microbatches come in another order with workers, or an error in one hangs the run."""
    def read(n):
        time.sleep(0.002 * (n % 3 == 0))
        if n == 30:
            raise ValueError("n is 30")
        return n
    reader = read_ahead(read, range(40), 2)
    assert [next(reader) for _ in range(30)] == list(range(30))
    raises("n is 30", next, reader)


@pytest.mark.slow
@pytest.mark.case("B39")
def test_bad_input_is_one_line(world, tmp_path):
    """Broken: a user's mistake ends in a traceback, or leaves half a run under its name."""
    torch.manual_seed(1)
    write_encoder(tmp_path / "other.pt", name="other")
    for arg, message in (("--data_dir=nowhere", "no whole manifest"),
                         ("--lm=nowhere", "holds no checkpoint"),
                         ("--stack=0", "stack=0: give 1 or more"),
                         ("--init_from=nowhere", "use scratch, resume or auto"),
                         (f"--lm={tmp_path}/no", "out_dir too"),
                         (f"--whisper={tmp_path}/other.pt", "encoder_sha256")):
        assert message in align(world, tmp_path / "no", "--max_steps=2", arg, ok=False)
    assert not (tmp_path / "no").exists() or not os.listdir(tmp_path / "no")
    said = base(world, tmp_path / "no", "--data_dir=some/where/text", ok=False)
    assert "some/where/text/train.txt: " in said and "prepare_text.py" in said


@pytest.mark.slow
def test_w1_learns_the_five_tones(world, tmp_path):
    """Broken: W1 passes with an LM that ignores its audio (a random encoder: no network)."""
    torch.manual_seed(0)
    encoder = draw_encoder(name="random", n_embd=64, n_head=4)
    encoder.half_weights["embed_positions.weight"].zero_()  # else they would drown the tones
    encoder = build_encoder(encoder.config, encoder.half_weights)
    save_encoder(encoder, str(tmp_path / "encoder.pt"))
    args = "train_align.py", "config/w1_smoke.py", f"--whisper={tmp_path}/encoder.pt"
    out = run(*args, f"--out_dir={tmp_path}/w1")
    verdict = json.loads((tmp_path / "w1/smoke.json").read_text())
    assert out.strip().endswith("PASS") and 5.4 < verdict["first_loss"] < 5.7
    assert verdict["tones_named"] == 5 and verdict["permuted_higher_by"] >= 0.3
    out = run(*args, f"--out_dir={tmp_path}/two", "--grad_accum=2", "--max_steps=1",
              "--batch_tokens=300", n_ranks=2, ok=False)
    assert "FAIL" in out and "no whole manifest" not in out  # rank 1 waits for the tones


@pytest.mark.slow
def test_resume_takes_new_rates_and_refuses_broken_files(world, tmp_path):
    """Broken: a resumed run has old rates or another's log or files; a cut file is a traceback."""
    run_dir, on = tmp_path / "run", ("--max_steps=3", "--init_from=resume")
    align(world, run_dir, "--max_steps=2")
    kept = shutil.copytree(run_dir, tmp_path / "kept")
    (run_dir / "optim_000009_rank0.pt.tmp").touch()
    with open(run_dir / "log.jsonl", "a") as f:
        f.write('{"step": 9}\n?\n{"st')
    align(world, run_dir, *on, "--learning_rate=0", "--muon_lr=1e-30")
    assert same_state(*(run_dir / f"projector_00000{n}.pt" for n in (2, 3)))
    assert max(row["step"] for row in log_of(run_dir)) == 3
    align(world, run_dir, "--max_steps=1", "--init_from=scratch")
    assert max(row["step"] for row in log_of(run_dir)) == 1
    assert not list(run_dir.glob("*_00000[239]*"))
    for args in (["--hidden=16"], ["--muon_lr=0"]):
        align(world, kept, *on, *args, ok=False)
    os.truncate(kept / "optim_000002_rank0.pt", 3000)
    assert "cut short" in align(world, kept, *on, ok=False)
