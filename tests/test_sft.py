"""train_sft.py's real command line at toy size: only LoRA moves, merging, resume, ranks, errors."""
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from audio import Projector
from checkpoints import load_checkpoint, load_saved, read_meta
from commands import write_rows
from data import Features
from decode import score_answers
from drill import make_audio
from model import GPT, add_lora, lora_state, merged_state
from test_data import write_features
from test_model import tiny  # a fixture, as is world
from test_train import BOTH, ROOT, align, base, log_of, losses, run, same_state, world
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from texture import Texture
from tokenizer import load_tokenizer, multiple_choice

SFT = [*BOTH, "--batch_tokens=400", "--text_rows=3", "--lora_rank=2"]


@pytest.fixture(scope="module")
def school(world):
    """An aligned run; features of two taps with questions, whose answers are in the clip's mean."""
    align(world, world / "w2", "--max_steps=1", "--ctc=0.5")
    sha256 = Features(f"{world}/features").manifest["encoder_sha256"]
    rng, clips = np.random.default_rng(1), []
    question = multiple_choice("Which pitch is it?", ["low", "high", "red", "old"])
    for i in range(48):
        turns = [["pitch", question, ("low", "high")[i % 2]], ["sex", "who likes it", "a man"]]
        info = {"text": "the dog sees a cat" * (i % 3 > 0), "seconds": 0.5,
                "labels": {} if i % 3 else {"sentence": "nobody is speaking"},
                "split": "train" if i < 40 else "val", "turns": turns[:1 + i % 2]}
        feats = (rng.normal(size=(18 + i % 5, 2, 32)) + 2 * (i % 2)).astype(np.float16)
        clips.append((f"item{i:03d}", feats, info))
    write_features(world / "items", clips, taps=[0, -1], sha256=sha256)
    write_rows(world / "text.jsonl", [{"question": "Say this: a cat", "answer": "a cat"}] * 3)
    turns = [["own", "who sees", "the dog"], ["number", "how many", "42"],
             ["own", "who", "\u4f60\u597d"]]
    write_rows(world / "turns.jsonl", [{"key": "item000", "turns": turns}])
    return world


def sft(school, out, *args, **kwargs):
    return run("train_sft.py", f"--data_dir={school}/items", f"--lm={school}/w2",
               f"--chats={school}/text.jsonl", f"--turns={school}/turns.jsonl",
               f"--sentences={school}/text/train.txt", f"--out_dir={out}", *SFT, *args, **kwargs)


def test_lora_changes_nothing_at_first_and_merges(tiny):
    """Broken: LoRA isn't zero at its start, or a merged checkpoint answers otherwise."""
    idx = torch.randint(0, 50, (2, 9))
    before = tiny(idx)
    lora = add_lora(tiny, 4, 8.0)
    assert len(lora) == 2 * 4 * 6 and torch.equal(tiny(idx), before)
    assert [n for n, p in tiny.named_parameters() if p.requires_grad] == [*lora_state(tiny)]
    for p in lora:
        p.data.normal_(std=0.3)
    after, plain = tiny(idx), GPT(tiny.config).eval()
    plain.windows = tiny.windows
    plain.load_state_dict(merged_state(tiny))
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(plain(idx), after, atol=2e-4, rtol=1e-4)


def test_score_answers_are_the_forward_pass(tiny):
    """Broken: options are scored with another prompt's cache, or a neighbour's padding."""
    prompts, audio = [[5, 6, 7, 8], [9, 10]], [torch.randn(3, 48), torch.randn(5, 48)]
    answers = [[[1, 2, 3], [4]], [[3, 3], [2, 1, 1, 4]]]
    scores = score_answers(tiny, prompts, answers, audio).tolist()
    for prompt, sound, options, found in zip(prompts, audio, answers, scores):
        for answer, score in zip(options, found):
            idx = torch.tensor([prompt + answer])[:, :-1]
            logits = tiny(idx, audio_features=sound[None]).log_softmax(2)[0, len(prompt) - 1:]
            expected = sum(logits[t, i].item() for t, i in enumerate(answer))
            assert score == pytest.approx(expected, abs=1e-3)


def test_texture_tokens_know_the_level():
    """Broken: a clip's level is lost, or its other tokens aren't those of the aligned projector."""
    torch.manual_seed(0)
    projector, start = Projector(8, 2, 4, 16, texture=3).eval(), Projector(8, 1, 4, 16)
    lens = torch.tensor([9, 20])
    both = torch.randn(2, 20, 2, 8)
    louder = projector(both + 1.0, lens)[0] - projector(both, lens)[0]
    assert louder[0, :3].abs().max() > 0.01
    projector.start_from(start, [0, -1], [-1])
    content, expected = projector(both, lens)[0][:, 3:], start(both[:, :, 1:], lens)[0]
    torch.testing.assert_close(content, expected, atol=1e-2, rtol=1e-2)


class Bf16Operations(TorchDispatchMode):
    """Records every operation that reads or makes a bf16 tensor."""
    n, found = 0, frozenset()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.n += 1
        for x in tree_leaves((args, kwargs, out)):
            if isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16:
                self.found |= {str(func)}
        return out


@pytest.mark.slow
@pytest.mark.parametrize("train", [base, align, sft])
def test_fp32_means_no_bf16(school, tmp_path, train):
    """Broken: a CPU without bf16 instructions is 55 times slower in one operation in bf16."""
    with Bf16Operations() as seen:
        train(school, tmp_path / "run", "--max_steps=2")
    assert seen.n > 1000 and not seen.found
    assert (tmp_path / "run/meta_000002.json").exists()  # it ran to its end


@pytest.mark.slow
def test_frozen_lm_stays_and_the_run_is_self_contained(school, tmp_path):
    """Broken: the frozen LM drifts, LoRA does not train, or the folder needs its sources."""
    folder = tmp_path / "run"
    out = sft(school, folder, "--max_steps=2", "--learning_rate=0.05",
              f"--data_dir={school}/items*2")
    assert "train: 80 clips" in out and "val: 8 clips" in out  # of val each once
    assert "left out: 1 texts, letters of another script" in out
    rows = log_of(folder)
    assert all(row["text_loss"] > 0 for row in rows if "lr" in row)
    assert "val_right" in rows[-1]
    saved = torch.load(folder / "lora_000002.pt", weights_only=True)
    assert sum(name.endswith("lora_b") and p.any() for name, p in saved.items()) == 12
    before, after = (load_checkpoint(path)[0].state_dict() for path in (school / "w2", folder))
    _, *special = load_tokenizer(folder).special_ids.values()  # <|bos|> is known
    new_ids = [10, *special]
    adamw = load_saved(folder, read_meta(folder), "optim")["optimizers"][0]
    moments = [adamw["state"][i]["exp_avg"] for i in adamw["param_groups"][1]["params"]]
    assert {len(x) for x in moments} == {len(new_ids)}  # of rows, not of whole tables
    for name in before:
        same = before[name] == after[name]
        if name.startswith(("transformer.wte", "lm_head", "value_embeds")):
            assert not same[new_ids].all(), name
            same[new_ids] = True
        is_adapted = name.endswith(("c_q.weight", "c_fc.weight", "c_proj.weight"))
        assert ("c_" in name and not is_adapted) or same.all() != is_adapted, name
    started, learnt = (load_saved(path, read_meta(path), "projector")
                       for path in (school / "w2", folder))
    assert not torch.equal(started["ctc_head.weight"], learnt["ctc_head.weight"])
    key = Texture(load_tokenizer(folder)).key(load_checkpoint(folder)[0])
    assert torch.equal(learnt["texture_key"], key)  # as texture practice knows it
    assert learnt["texture_fc1.weight"].any()  # the regression's
    assert {"prompt": "chat", "taps": [0, -1], "plain": True,
            "language": "en"}.items() <= read_meta(folder)["audio"].items()
    assert (folder / "encoder.pt").exists()


@pytest.mark.slow
def test_resume_and_ranks_repeat_the_straight_run(school, tmp_path):
    """Broken: a stopped run differs: adapters, optimizers, order, dropout; or a rank's share."""
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    sft(school, straight, "--max_steps=4")
    sft(school, parts, "--max_steps=2")
    assert "starting at step 2" in sft(school, parts, "--max_steps=4", "--init_from=resume")
    for name in ("model", "projector", "lora"):
        assert same_state(*(part / f"{name}_000004.pt" for part in (straight, parts))), name
    assert losses(straight) == losses(parts)
    assert "2 ranks" in sft(school, tmp_path / "two", "--max_steps=2", n_ranks=2)
    one, two = losses(straight), losses(tmp_path / "two")
    assert two == pytest.approx({step: one[step] for step in two}, abs=1e-4)
    sft(school, tmp_path / "other", "--max_steps=1", "--transcript_weight=3")
    assert losses(tmp_path / "other")[1] != one[1]


@pytest.mark.slow
def test_bad_input_is_one_line(school, tmp_path):
    """Broken: a traceback, or a run that begins, for a wrong setting, file or checkpoint."""
    bad = write_rows(tmp_path / "bad.jsonl", [{"question": "x"}])
    for arg, message in (("--lora_rank=0", "lora_rank=0: give 1 or more"),
                         (f"--chats={bad}", "bad.jsonl:1"), (f"--turns={bad}", "bad.jsonl:1"),
                         (f"--lm={school}/base", "no projector"), ("--data_dir=no", "no: no")):
        assert message in sft(school, tmp_path / "x", "--max_steps=1", arg, ok=False)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_every_stage_on_a_pretended_gpu(school, tmp_path, monkeypatch):
    """Broken: a training script or chat.py mixes tensors of a GPU with the CPU's."""
    if not shutil.which("g++"):
        pytest.skip("no g++ here")
    library, torch_folder = tmp_path / "pretend.so", os.path.dirname(torch.__file__)
    subprocess.run([
        "g++", "-shared", "-fPIC", "-std=c++20", f"-I{torch_folder}/include",
        f"{ROOT}/tests/pretend.cpp", "-o", library, f"-L{torch_folder}/lib",
        f"-Wl,-rpath,{torch_folder}/lib", "-ltorch_cpu", "-lc10"], check=True)
    clip = tmp_path / "clip.wav"
    clip.write_bytes(make_audio(0.6, 0))

    def pretend(script, *args):
        command = [sys.executable, f"{ROOT}/tests/pretend.py", library, f"{ROOT}/{script}", *args]
        done = subprocess.run(command, text=True, capture_output=True,
                              env=os.environ | {"NANOCHAT_DTYPE": "bfloat16"})
        assert not done.returncode, (done.stdout + done.stderr)[-3000:]
        return done.stdout

    monkeypatch.setattr("test_train.run", pretend)
    monkeypatch.setitem(globals(), "run", pretend)
    gpu = "--device=cuda", "--max_steps=2"
    assert "cuda, torch.bfloat16" in base(school, tmp_path / "base", *gpu)
    align(school, tmp_path / "w2", *gpu, "--ctc=0.5", "--lm_learning_rate=1e-3")
    sft(school, tmp_path / "w3", *gpu)
    for name, question in (("w2", ""), ("w3", "who sees")):
        pretend("chat.py", f"--ckpt={tmp_path}/{name}", f"--audio={clip}", f"--prompt={question}")
