"""The training scripts' real command lines at toy size: resume, ranks, frozen weights, checkpoints, bad input, W1."""
import contextlib
import io
import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import data
import record
import recordings
from audio import Projector, WhisperEncoder, save_encoder
from files import sha256_file
from checkpoints import checkpoint_steps, load_checkpoint, read_meta
from record import code_sum, code_sum_of
from checkpoints import note_evaluation, save_checkpoint
from run import read_ahead
from tokenizer import BPETokenizer, load_tokenizer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORDS = "the a small red old dog cat bird man girl sees hears likes wants two three houses".split()
BASE = ["--depth=2", "--head_dim=32", "--vocab_size=300", "--sequence_len=64", "--text_len=16", "--batch_size=8",
        "--grad_accum=2", "--warmup_steps=1", "--lr_decay_steps=8", "--use_compile=False", "--log_every=1",
        "--practice_vocab=270", "--spell_share=0.125", "--chat_rows=4", "--device=cpu"]  # whole tokens from step 1 on
ALIGN = ["--hidden=32", "--batch_tokens=160", "--grad_accum=2", "--warmup_steps=1", "--lr_decay_steps=8",
         "--eval_clips=4", "--use_compile=False", "--log_every=1", "--device=cpu"]


def refusal(script, args):
    """What a script says that is run in this process, which saves the seconds of importing torch, and has to refuse."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(sys, "argv", [script, *map(str, args)])
        patch.setattr(sys, "stderr", out)
        patch.chdir(ROOT)
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(os.path.join(ROOT, script), run_name="__main__")
    torch.use_deterministic_algorithms(False)
    assert stop.value.code == 2, out.getvalue()[-3000:]
    return out.getvalue()


class Bf16Operations(TorchDispatchMode):
    """Records every operation that reads or makes a bf16 tensor."""

    def __init__(self):
        super().__init__()
        self.found, self.n = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        self.n += 1
        if any(x.dtype == torch.bfloat16 for x in tensors):
            self.found.add(str(func))
        return out


def run_in_process(script, *args):
    """Run a script in this process, which lets a test see its operations."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", [script, *map(str, args)])
        patch.chdir(ROOT)
        with Bf16Operations() as mode, contextlib.suppress(SystemExit):
            runpy.run_path(os.path.join(ROOT, script), run_name="__main__")
    torch.use_deterministic_algorithms(False)
    return mode


def run(script, *args, n_ranks=1, ok=True, kill_when=None):
    """Run a script as a user does, until kill_when() if given; returns its output, stdout and stderr together."""
    if not ok and n_ranks == 1:
        return refusal(script, args)
    command = [sys.executable, *(["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_ranks}"]
                                 if n_ranks > 1 else []), os.path.join(ROOT, script), *args]
    env = {**os.environ, "NANOCHAT_DTYPE": "float32", "PYTHONFAULTHANDLER": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        while kill_when and process.poll() is None:
            time.sleep(0.001)
            if kill_when():
                process.kill()
        out = process.communicate()[0]
    assert (process.returncode == -9 if kill_when else (process.returncode == 0) == ok), out[-3000:]
    return out


def losses(folder):
    """The logged training losses by step."""
    rows = [json.loads(line) for line in open(os.path.join(folder, "log.jsonl"))]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def log_of(folder):
    """The log's whole lines, without what tells of speed."""
    rows = [json.loads(line) for line in open(os.path.join(folder, "log.jsonl")) if line.endswith("\n")]
    return [{k: v for k, v in row.items() if k not in ("ms", "tok/s", "mfu", "eta_min", "wait", "pad")} for row in rows]


def same_state(a, b):
    a, b = (torch.load(path, weights_only=True) for path in (a, b))
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Sentences, random features of a random encoder, and a base model of two steps."""
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    sentences = sorted({" ".join(rng.choice(WORDS, rng.integers(3, 8))) for _ in range(300)})
    (folder / "text").mkdir()
    (folder / "text" / "train.txt").write_text("\n".join(sentences[20:]) + "\n")
    (folder / "text" / "val.txt").write_text("\n".join(sentences[:20]) + "\n")
    encoder = WhisperEncoder({"name": "random", "n_mels": 80, "n_layer": 1, "n_embd": 32, "n_head": 2})
    save_encoder(encoder, str(folder / "encoder.pt"))
    (folder / "features").mkdir()
    clips = [(f"clip{i:03d}", rng.normal(size=(20 + i % 7, 1, 32)).astype(np.float16),
              {"text": text, "seconds": 0.5, "split": "train" if i < 40 else "val", "speaker": "1"})
             for i, text in enumerate(sentences[:60])]
    path = str(folder / "features" / "shard-000000.tar")
    rows = data.write_shard(path, clips)
    shards = {"shard-000000.tar": {"bytes": os.path.getsize(path), "sha256": ""}}
    data.write_index(str(folder / "features"), rows, shards,
                     {"encoder": "random", "encoder_sha256": encoder.sha256, "taps": [-1], "D": 32})
    chats = [{"split": "val" if i < 5 else "train", "text": text, "turns": [
        ["first", "what is the first word", text.split()[0]], ["word", f"which word\n{text.split()[1]}\ncow", "cow"]]}
        for i, text in enumerate(sentences[:60])]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    base(folder, folder / "base", "--max_steps=2")
    return folder


def base(world, out, *args, **kwargs):
    return run("train_base.py", f"--data_dir={world}/text", f"--chats={world}/chats.jsonl", f"--out_dir={out}", *BASE,
               *args, **kwargs)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A folder of prepare_text.py --documents."""
    folder, rng = tmp_path_factory.mktemp("documents"), np.random.default_rng(1)
    lines = [json.dumps({"text": " ".join(rng.choice(WORDS, rng.integers(5, 40)))}) for _ in range(400)]
    (folder / "docs.jsonl").write_text("\n".join(lines))
    run("prepare_text.py", f"--documents={folder}/docs.jsonl", f"--out_dir={folder}/shards", "--vocab_size=300",
        "--val_share=0.1")
    return folder / "shards"


@pytest.mark.slow
def test_documents(world, documents, tmp_path):
    """Documents are not what is learnt, a stopped run goes on otherwise, ranks differ, or a model is not taken over."""
    def train(name, *args, **more):
        return run("train_base.py", f"--documents={documents}", "--data_dir=", f"--out_dir={tmp_path / name}", *BASE,
                   "--practice=0", "--save_every=2", "--batch_size=4", *args, **more)

    def bpb(name):
        rows = [json.loads(line) for line in open(tmp_path / name / "log.jsonl")]
        return [row["val_bpb"] for row in rows if "val_bpb" in row]
    said = train("straight", "--max_steps=4")
    assert "documents" in said and "cropped" in said and "practice_loss" not in said and "mfu" in said
    train("stopped", "--max_steps=2")
    train("stopped", "--max_steps=4")
    assert same_state(*(tmp_path / name / "model_000004.pt" for name in ("straight", "stopped")))
    train("ranks", "--max_steps=4", "--recompute=True", n_ranks=2)
    assert losses(tmp_path / "ranks") == pytest.approx(losses(tmp_path / "straight"), rel=1e-4)
    assert bpb("ranks") == pytest.approx(bpb("straight"), rel=1e-4)
    train("next", "--max_steps=1", f"--init_from={tmp_path / 'straight'}")
    assert losses(tmp_path / "next")[1] < losses(tmp_path / "straight")[1] - 0.02
    said = train("deep", "--max_steps=1", "--lr_decay_steps=0", "--lr_scale=0", "--grad_accum=0",
                 "--tokens_per_weight=100", "--weight_decay=0.28")
    found = re.search(r"1 steps of (\d+), each (\d+) x 4 rows, rates x ([\d.]+), decay ([\d.]+)", said)
    n_steps, n_batches, scale, decay = map(float, found.groups())
    weights, d12 = 12 * 2 * 128**2 + 128 * 300, 12 * 12 * 768**2 + 768 * 300
    step_tokens = 2 ** round(np.log2(2**19 * (weights / d12) ** 0.383))
    assert n_batches * 4 * 16 == step_tokens and n_steps == 100 * weights // step_tokens
    assert [scale, decay] == pytest.approx([(step_tokens / 2**19) ** 0.5, 0.28 * scale * d12 / weights], rel=1e-2)
    before = (tmp_path / "straight" / "log.jsonl").read_text()
    broken = shutil.copytree(documents, tmp_path / "broken")
    (broken / "val-000000.bin").write_bytes((broken / "val-000000.bin").read_bytes()[:-9])
    for args in ([f"--init_from={tmp_path / 'next'}"], ["--init_from=scratch", f"--documents={broken}"]):
        train("straight", "--max_steps=4", *args, ok=False)
        assert (tmp_path / "straight" / "log.jsonl").read_text() == before  # nothing is touched
    assert "val_practice" in base(world, tmp_path / "plain", "--practice=0", "--max_steps=1")  # sentences alone
    for args, words in ((["--practice=0.5"], "prepare_text.py"), ([f"--documents={tmp_path}"], "tokenizer"),
                        (["--init_from=nowhere"], "nowhere")):
        said = train("wrong", *args, ok=False)
        assert words in said.splitlines()[-1] and "Traceback" not in said, said


def align(world, out, *args, **kwargs):
    return run("train_align.py", f"--data_dir={world}/features", f"--lm={world}/base", f"--whisper={world}/encoder.pt",
               f"--out_dir={out}", *ALIGN, *args, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("train", [base, align])
def test_a_killed_run_goes_on_as_if_it_had_not_been(world, tmp_path, train):
    """After SIGKILL losses would differ (optimizer, data order, noise), or files be broken, left behind or lost."""
    seed, n_kills = (int(os.environ.get(*pair)) for pair in (("KILL_SEED", time.time_ns() % 10**6), ("KILLS", 2)))
    print(f"KILL_SEED={seed}")  # repeats which steps
    rng, straight, killed = random.Random(seed), tmp_path / "straight", tmp_path / "killed"
    settings = [f"--max_steps={12 * n_kills}", "--save_every=1", "--eval_every=4", "--log_every=3"]
    settings += os.environ.get("KILL_ARGS", "").split()
    train(world, straight, *settings)
    killed.mkdir()
    (killed / "log.jsonl").touch()  # as if killed before the first checkpoint
    for kill in range(n_kills + 1):
        first, delay = (checkpoint_steps(killed) or [0])[-1], rng.uniform(0, 0.2)
        until = first + rng.randint(1, 6)

        def is_time():
            if (checkpoint_steps(killed) or [0])[-1] < until:
                return False
            if kill % 2:
                return any(name.endswith((".pt.tmp", ".json.tmp")) for name in os.listdir(killed))  # amid a save
            return time.sleep(delay) or True
        out = train(world, killed, *settings, "--init_from=resume", *["--workers=2"][:train is align and kill % 2],
                    kill_when=is_time if kill < n_kills else None)
        assert f"starting at step {first}" in out or not first
        assert all(row in log_of(straight) for row in log_of(killed))
        print(f"killed at {until}: {sorted(os.listdir(killed))}")
    assert log_of(killed) == log_of(straight) and sorted(os.listdir(killed)) == sorted(os.listdir(straight))
    figure = "val_bpb" if train is base else "val_loss"
    best = min((row for row in log_of(straight) if figure in row), key=lambda row: row[figure])
    assert read_meta(killed, -2)["best"] == {"step": best["step"], "figure": best[figure]}
    assert set(checkpoint_steps(killed)) == {best["step"], 12 * n_kills - 1, 12 * n_kills}
    for step in checkpoint_steps(killed):
        sums = read_meta(killed, step)["sha256"]
        assert sums == read_meta(straight, step)["sha256"] and len(sums) == 2 + (train is align)
        assert all(sha256_file(killed / name) == value for name, value in sums.items())
    out = train(world, killed, *settings, "--grad_clip=0.5", ok=False)  # auto, other settings
    assert "other grad_clip" in out and "Traceback" not in out


@pytest.mark.slow
def test_vocabulary_grows(world, tmp_path):
    """Whole tokens would be trained before their time or start at random, or a stop just there would change the run."""
    def table(step, part="straight"):
        return load_checkpoint(tmp_path / part, step)[0].transformer.wte.weight
    settings = "--spell_share=0.25", "--save_every=2", "--max_steps=4"
    base(world, tmp_path / "straight", *settings)
    (tmp_path / "parts").mkdir()
    for name in ("tokenizer.json", "meta_000002.json", "model_000002.pt", "optim_000002_rank0.pt"):
        shutil.copy(tmp_path / "straight" / name, tmp_path / "parts" / name)
    base(world, tmp_path / "parts", *settings[1:], "--init_from=resume")  # spelling ends as the run was begun
    assert torch.equal(table(4), table(4, "parts"))
    tok = load_tokenizer(tmp_path / "straight")
    state = torch.load(tmp_path / "straight" / "optim_000002_rank0.pt")["optimizers"][1]["state"][0]["exp_avg"]
    assert state[:256].any() and not state[270:291].any()  # the first two steps read pieces alone
    began = torch.stack([table(2)[BPETokenizer(tok.tokens[256:270]).spell(tok.tokens[i])].mean(0)
                         for i in range(270, 291)])
    moved = (table(4)[270:291] - began).abs().amax(1)
    assert (moved < 1.0).all() and (table(4)[270:291] - table(2)[270:291]).abs().amax(1).min() > 0.3
    out = base(world, tmp_path / "late", "--spell_share=1", "--max_steps=4", ok=False)
    assert "spelling ends before max_steps=4" in out and "Traceback" not in out


@pytest.mark.slow
@pytest.mark.parametrize("train", [base, align])
def test_two_ranks_are_one(world, tmp_path, train):
    """torchrun would train something else than one process: other data, or gradients scaled wrongly."""
    for n_ranks in (1, 2):
        train(world, tmp_path / str(n_ranks), "--max_steps=3", n_ranks=n_ranks)
    one, two = (losses(tmp_path / str(n)) for n in (1, 2))
    assert one.keys() == two.keys() and abs(one[1] - two[1]) < 1e-5
    assert all(abs(one[step] - two[step]) < 1e-3 for step in one)


@pytest.mark.slow
def test_alignment_freezes_the_lm(world, tmp_path):
    """W2 would move the LM, or not move the projector, or leave a folder that does not load by itself."""
    align(world, tmp_path / "run", "--max_steps=2")
    assert same_state(world / "base" / "model_000002.pt", tmp_path / "run" / "model_000002.pt")
    align(world, tmp_path / "more", "--max_steps=3")
    assert not same_state(tmp_path / "run" / "projector_000002.pt", tmp_path / "more" / "projector_000003.pt")
    _, meta = load_checkpoint(str(tmp_path / "run"))
    assert meta["audio"]["prompt"] == "transcript" and meta["audio"]["encoder"] == "random"
    assert {"encoder.pt", "tokenizer.json", "pca.png", "log.jsonl"} <= set(os.listdir(tmp_path / "run"))
    evaluated = [json.loads(line) for line in open(tmp_path / "run" / "log.jsonl")][-1]
    assert {"val_loss", "val_shuffled", "gap", "val_acc", "val_wer"} <= set(evaluated)
    assert 0 <= evaluated["val_acc"] <= 1
    align(world, tmp_path / "alone", "--max_steps=1", "--batch_tokens=1")  # each clip alone has no other's audio
    rows = [json.loads(line) for line in open(tmp_path / "alone" / "log.jsonl")]
    assert "val_loss" in rows[-1] and not {"val_shuffled", "gap"} & set(rows[-1])
    align(world, tmp_path / "on", "--max_steps=1", f"--lm={tmp_path}/run", "--learning_rate=0",
          "--muon_lr=0")  # its projector too
    assert same_state(tmp_path / "run" / "projector_000002.pt", tmp_path / "on" / "projector_000001.pt")
    out = align(world, tmp_path / "no", f"--lm={tmp_path}/run", "--stack=5", "--hidden=16", ok=False)
    assert "aligned with other stack, hidden" in out and "Traceback" not in out
    align(world, tmp_path / "lm", "--max_steps=2", "--train_lm=True")
    assert not same_state(world / "base" / "model_000002.pt", tmp_path / "lm" / "model_000002.pt")
    align(world, tmp_path / "text", "--max_steps=2", "--train_lm=True", f"--text_file={world}/text/train.txt")
    assert not same_state(tmp_path / "lm" / "model_000002.pt", tmp_path / "text" / "model_000002.pt")
    assert losses(tmp_path / "lm")[1] == losses(tmp_path / "text")[1]  # of the clips alone; the sentences' beside it
    rows = [json.loads(line) for line in open(tmp_path / "text" / "log.jsonl")]
    assert all(row["text_loss"] > 0 for row in rows if "loss" in row)
    align(world, tmp_path / "muon", "--max_steps=1", "--train_lm=True", "--lm_muon_lr=0.01", "--lm_learning_rate=0")
    before, after = (torch.load(folder / f"model_00000{n}.pt", weights_only=True)
                     for folder, n in ((world / "base", 2), (tmp_path / "muon", 1)))
    matrices = {name for name, p in before.items() if name.startswith("transformer.h.") and p.ndim == 2}
    assert {name for name in before if not torch.equal(before[name], after[name])} == matrices


@pytest.mark.slow
def test_online_hears_what_is_on_disk(world, tmp_path):
    """Features made in the step would not be those on disk, or audio would not be changed as the settings say."""
    rng = np.random.default_rng(0)
    with open(tmp_path / "list.jsonl", "w") as f:
        for i in range(20):
            soundfile.write(tmp_path / f"{i}.wav", 0.1 * rng.normal(size=int(16000 * rng.uniform(0.3, 0.6))), 16000)
            row = {"audio": f"{i}.wav", "text": f"a {WORDS[i % 15]}", "split": "train" if i < 16 else "val"}
            f.write(json.dumps(row) + "\n")
    for name in ("disk", "index"):
        run("prepare_librispeech.py", f"--source={tmp_path}/list.jsonl", f"--whisper={world}/encoder.pt", "--workers=1",
            f"--out_dir={tmp_path}/{name}", f"--index_only={name == 'index'}")
    assert not list((tmp_path / "index").glob("*.tar")) and list((tmp_path / "disk").glob("*.tar"))

    def train(features, out, *args, ok=True):
        return align(world, tmp_path / out, f"--data_dir={tmp_path}/{features}", "--max_steps=2", "--time_warp=0",
                     *args, ok=ok)
    train("disk", "a")
    train("index", "b", "--online=True", "--workers=2")
    a, b = (losses(tmp_path / out) for out in "ab")
    assert a.keys() == b.keys() and all(abs(a[step] - b[step]) < 1e-3 for step in a)
    for change in ("--speed=0.2", "--noise_db=1", "--mask_bands=40"):
        train("disk", "c", "--online=True", "--init_from=scratch", change)
        assert losses(tmp_path / "c")[1] != b[1], change
    assert "names no shard" in train("index", "d", ok=False)
    assert "takes online=True" in train("disk", "d", "--speed=0.2", ok=False)
    (tmp_path / "3.wav").unlink()
    assert "3.wav" in train("index", "d", "--online=True", "--workers=2", ok=False).strip().splitlines()[-1]


def test_auto_sees_a_changed_script(world, tmp_path):
    """An edited loss, run again, would do nothing and show yesterday's numbers."""
    align(world, tmp_path / "run", "--max_steps=1")
    path = tmp_path / "run" / "meta_000001.json"
    before = {name: os.stat(tmp_path / "run" / name).st_mtime_ns for name in os.listdir(tmp_path / "run")}
    assert "is up to date: finished at step 1" in align(world, tmp_path / "run", "--max_steps=1")
    assert before == {name: os.stat(tmp_path / "run" / name).st_mtime_ns for name in os.listdir(tmp_path / "run")}
    meta = json.loads(path.read_text())
    assert {"train_align.py", "model.py", "optim.py", "run.py"} <= set(meta["versions"]["code"])
    assert meta["versions"]["dtype"] == "float32" and "threads of" in meta["versions"]["device"]
    assert re.fullmatch(r"([0-9a-f]{40}(-dirty)?)?", meta["versions"]["git_commit"])
    meta["versions"]["code"]["optim.py"] = f"{sys.version_info.minor}-another"
    path.write_text(json.dumps(meta))
    out = align(world, tmp_path / "run", "--max_steps=2", ok=False)
    assert "other code (optim.py changed since)" in out and "--init_from=resume" in out and "Traceback" not in out
    del meta["versions"]["code"]
    path.write_text(json.dumps(meta))
    assert "it recorded no checksums" in align(world, tmp_path / "run", "--max_steps=2", ok=False)
    assert "starting at step 1" in align(world, tmp_path / "run", "--max_steps=2", "--init_from=resume")


def test_code_sums_see_code_alone(tmp_path):
    """A comment would stop a run from going on, or a changed line would not."""
    path, sums = tmp_path / "a.py", []
    for text in ('"""Doc."""\ndef f(x):\n    """Say."""\n    return x + 1  # why\n',
                 '"""Other."""\ndef f(x):\n    """Tell."""\n\n    return x + 1\n', "def f(x):\n    return x + 2\n"):
        path.write_text(text)
        sums.append(code_sum(path))
    assert sums[0] == sums[1] != sums[2]


def test_no_git_is_no_crash(monkeypatch, tmp_path):
    """A machine without git would lose hours of listening when the result is written."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record.provenance("cpu")["git_commit"] == ""


def test_features_follow_their_code():
    """An edited encoder would leave yesterday's features, or an edited projector would make them anew."""
    sums = [code_sum_of(each) for each in (WhisperEncoder, WhisperEncoder, Projector, recordings)]
    assert sums[0] == sums[1] and len(set(sums)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_read_ahead_keeps_the_order(workers):
    """Microbatches would come in another order with workers, or an error in one would hang the run."""
    def read(n):
        time.sleep(0.002 * (n % 3 == 0))
        if n == 30:
            raise ValueError("n is 30")
        return n
    reader = read_ahead(read, range(40), workers)
    assert [next(reader) for _ in range(30)] == list(range(30))
    with pytest.raises(ValueError, match="n is 30"):
        next(reader)


def test_a_run_killed_before_its_evaluation_makes_up_for_it(world, tmp_path):
    """A kill between a checkpoint and its evaluation would lose the evaluation, or write it twice."""
    settings = "--max_steps=2", "--save_every=1", "--eval_every=1"
    align(world, tmp_path / "straight", *settings)
    align(world, tmp_path / "killed", "--max_steps=1", *settings[1:])
    path = tmp_path / "killed" / "meta_000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"best": None, "evaluated": False}))
    align(world, tmp_path / "killed", *settings)
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "straight")
    assert read_meta(tmp_path / "killed")["best"] == read_meta(tmp_path / "straight")["best"]


@pytest.mark.slow
def test_bad_input_is_one_line(world, tmp_path):
    """A user's mistake would end in a traceback, or leave something half-written under a final name."""
    def refused(*args, script=align):
        out = script(world, tmp_path / "refused", *args, ok=False)
        assert "Traceback" not in out, out
        return out.strip().splitlines()[-1]

    assert "no whole manifest" in refused("--data_dir=nowhere") and not (tmp_path / "refused").exists()
    assert "holds no checkpoint" in refused("--lm=nowhere")
    assert "run prepare_text.py" in refused("--data_dir=nowhere", script=base)
    broken = shutil.copytree(world / "base", tmp_path / "base")
    (broken / "model_000002.pt").write_bytes((broken / "model_000002.pt").read_bytes()[:5000])
    assert "cut short" in refused(f"--lm={broken}")
    shutil.copy(world / "base" / "model_000002.pt", broken)
    tokenizer = json.loads((broken / "tokenizer.json").read_text())
    tokenizer.update(tokens=tokenizer["tokens"][:-1], vocab_size=299)
    (broken / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "299 ids" in refused(f"--lm={broken}")
    other = WhisperEncoder({"name": "other", "n_mels": 80, "n_layer": 1, "n_embd": 32, "n_head": 2})
    save_encoder(other, str(tmp_path / "other.pt"))
    assert "encoder_sha256" in refused(f"--whisper={tmp_path}/other.pt")
    assert not [name for name in os.listdir(tmp_path / "refused") if name.endswith(".pt") or "meta" in name]


@pytest.mark.slow
def test_w1_learns_the_five_tones(world, tmp_path):
    """W1 would pass its low bar with an LM that ignores its audio (here with a random encoder: no network)."""
    torch.manual_seed(0)
    encoder = WhisperEncoder({"name": "random", "n_mels": 80, "n_layer": 2, "n_embd": 64, "n_head": 4})
    encoder.embed_positions.weight.zero_()  # random positions would drown the tones
    save_encoder(encoder, str(tmp_path / "encoder.pt"))
    out = run("train_align.py", "config/w1_smoke.py", f"--whisper={tmp_path}/encoder.pt", f"--out_dir={tmp_path}/w1")
    verdict = json.load(open(tmp_path / "w1" / "smoke.json"))
    assert out.strip().endswith("PASS") and 5.4 < verdict["first_loss"] < 5.7
    assert verdict["last_loss"] < 0.05 and verdict["tones_named"] == 5 and verdict["permuted_higher_by"] >= 0.3
    out = run("train_align.py", "config/w1_smoke.py", f"--whisper={tmp_path}/encoder.pt", f"--out_dir={tmp_path}/two",
              "--grad_accum=2", "--max_steps=1", "--depth=1", "--batch_tokens=300", n_ranks=2, ok=False)
    assert "FAIL" in out and "no whole manifest" not in out  # both ranks read the tones, and end


@pytest.mark.slow
def test_resume_takes_new_rates_and_refuses_broken_files(world, tmp_path):
    """A resumed run would train at the old rates while it logs the new ones, or end in a traceback on a cut file."""
    align(world, tmp_path / "run", "--max_steps=2")
    kept = shutil.copytree(tmp_path / "run", tmp_path / "kept")
    align(world, tmp_path / "run", "--max_steps=3", "--init_from=resume", "--learning_rate=0",
          "--muon_lr=1e-30")  # 0 would be AdamW's
    assert same_state(tmp_path / "run" / "projector_000002.pt", tmp_path / "run" / "projector_000003.pt")
    for args in (["--hidden=16"], ["--muon_lr=0"]):
        out = align(world, kept, "--max_steps=3", "--init_from=resume", *args, ok=False)
        assert "Traceback" not in out and out.strip().splitlines()[-1].startswith("train_align.py: "), out
    (kept / "optim_000002_rank0.pt").write_bytes((kept / "optim_000002_rank0.pt").read_bytes()[:3000])
    out = align(world, kept, "--max_steps=3", "--init_from=resume", ok=False)
    assert "cut short" in out.strip().splitlines()[-1] and "Traceback" not in out


def test_the_best_step_is_kept(tmp_path):
    """The best checkpoint would be removed once two later ones are there, or a worse one be called best."""
    for step, figure in enumerate([3.0, 1.0, 2.0, 1.5, 1.0], 1):
        save_checkpoint(tmp_path, step, {"model": {"x": torch.ones(1)}}, {"model_config": {}})
        assert not read_meta(tmp_path)["evaluated"]
        if step != 3:  # evaluated only where it is due
            note_evaluation(tmp_path, step, {"val_loss": figure}, "val_loss")
    assert checkpoint_steps(tmp_path) == [2, 4, 5] and read_meta(tmp_path, -2)["step"] == 2
    assert read_meta(tmp_path)["best"] == {"step": 2, "figure": 1.0} and read_meta(tmp_path)["val_loss"] == 1.0
