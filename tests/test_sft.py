"""train_sft.py's real command line at toy size: LoRA alone moves, merging, resume, ranks, the mix, bad input."""
import json
import os

import numpy as np
import pytest
import torch

import data
from audio import Projector
from decode import score_answers
from checkpoints import load_checkpoint
from model import GPT, GPTConfig, add_lora, lora_state, merged_state
import test_train
from test_train import align, base, losses, run, run_in_process, same_state, world  # noqa: F401: world is a fixture
from tokenizer import chat_prompt, load_tokenizer, multiple_choice
from transcripts import plain_text

SFT = ["--texture=3", "--texture_hidden=16", "--batch_tokens=400", "--grad_accum=2", "--warmup_steps=1",
       "--lr_decay_steps=8", "--eval_clips=2", "--use_compile=False", "--log_every=1", "--device=cpu", "--text_rows=3",
       "--lora_rank=2"]


@pytest.fixture(scope="module")
def school(world):  # noqa: F811
    """An aligned run, and features of two taps with questions: what was asked is `low` or `high` by the clip's mean."""
    align(world, world / "w2", "--max_steps=1")
    sha = json.loads((world / "features" / "manifest.json").read_text())["encoder_sha256"]
    rng, clips = np.random.default_rng(1), []
    for i in range(48):
        high = i % 2
        turns = [["pitch", multiple_choice("Which pitch is it?", ["low", "high", "red", "old"]), ("low", "high")[high]],
                 ["sex", "who likes it", "a man"]]
        info = {"text": "the dog sees a cat" if i % 3 else "", "seconds": 0.5, "split": "train" if i < 40 else "val",
                "turns": turns[:1 + i % 2], "labels": {"pitch": ("low", "high")[high]}}
        clips.append((f"item{i:03d}", (rng.normal(size=(18 + i % 5, 2, 32)) + 2 * high).astype(np.float16), info))
    (world / "items").mkdir()
    path = str(world / "items" / "shard-000000.tar")
    rows = data.write_shard(path, clips)
    data.write_index(str(world / "items"), rows, {"shard-000000.tar": {"bytes": os.path.getsize(path), "sha256": ""}},
                     {"encoder": "random", "encoder_sha256": sha, "taps": [0, -1], "D": 32})
    (world / "text.jsonl").write_text('{"question": "Say this: a cat", "answer": "a cat"}\n' * 3)
    turns = [["own", "who sees", "the dog"], ["number", "how many", "42"], ["own", "who", "\u4f60\u597d"]]
    (world / "turns.jsonl").write_text(json.dumps({"key": "item000", "turns": turns}) + "\n")
    return world


def sft(school, out, *args, **kwargs):
    return run("train_sft.py", f"--data_dir={school}/items", f"--lm={school}/w2", f"--chats={school}/text.jsonl",
               f"--turns={school}/turns.jsonl", f"--text_dir={school}/text", f"--out_dir={out}", *SFT, *args, **kwargs)


def test_lora_changes_nothing_at_first_and_merges():
    """A LoRA that isn't zero at its start, or a merged checkpoint that answers otherwise than the model trained."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(sequence_len=64, vocab_size=64, n_layer=2, n_head=2, n_kv_head=2, n_embd=64)).eval()
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    idx = torch.randint(0, 64, (2, 9))
    before = model(idx)
    lora = add_lora(model, 4, 8.0)
    assert len(lora) == 2 * 2 * 6 and torch.equal(model(idx), before)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [*lora_state(model)]
    for p in lora:
        p.data.normal_(std=0.3)
    after, plain = model(idx), GPT(model.config).eval()
    plain.load_state_dict(merged_state(model))
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(plain(idx), after, atol=2e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="attn.c_q"):
        add_lora(GPT(model.config), 4, 8.0, targets=("nothing",))


def test_score_answers_are_the_forward_pass():
    """Options would be scored with another prompt's cache, their end, or a neighbour's padding."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(sequence_len=64, vocab_size=64, n_layer=2, n_head=2, n_kv_head=2, n_embd=64)).eval()
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    prompts, audio = [[5, 6, 7, 8], [9, 10]], [torch.randn(3, 64), torch.randn(5, 64)]
    answers = [[[1, 2, 3], [4]], [[3, 3], [2, 1, 1, 4]]]
    got = score_answers(model, prompts, answers, audio)
    for b in range(2):
        for k, answer in enumerate(answers[b]):
            idx = torch.tensor([prompts[b] + answer])
            logits = model(idx[:, :-1], audio_features=audio[b][None]).log_softmax(2)[0, len(prompts[b]) - 1:]
            assert got[b, k] == pytest.approx(sum(logits[t, i].item() for t, i in enumerate(answer)), abs=1e-3)


def test_texture_tokens_ignore_padding_and_know_the_level():
    """A clip alone would sound otherwise than in a batch, or its mean level be lost on the way to the LM."""
    torch.manual_seed(0)
    projector = Projector(8, 2, 4, 16, texture=3).eval()
    short, long = torch.randn(1, 9, 2, 8), torch.randn(1, 20, 2, 8)
    both = torch.cat([torch.nn.functional.pad(short, (0, 0, 0, 0, 0, 11)), long])
    together, lens = projector(both, torch.tensor([9, 20]))
    alone, n = projector(short, torch.tensor([9]))
    assert lens.tolist() == [3 + 3, 3 + 5] and n.tolist() == [6]
    torch.testing.assert_close(together[0, :6], alone[0], atol=1e-5, rtol=1e-4)
    louder, _ = projector(short + 1.0, torch.tensor([9]))
    assert (louder[0, :3] - alone[0, :3]).abs().max() > 0.01
    start = Projector(8, 1, 4, 16)
    projector.start_from(start, [0, -1], [-1])
    content, _ = projector(both, torch.tensor([9, 20]))
    expected, _ = start(both[:, :, 1:], torch.tensor([9, 20]))
    torch.testing.assert_close(content[:, 3:], expected, atol=1e-2, rtol=1e-2)
    with pytest.raises(ValueError, match="alike"):
        projector.start_from(Projector(8, 1, 5, 16), [0, -1], [-1])


def test_options_have_one_spelling(school):
    """An option that is tokenized otherwise as an answer could not be copied from the list."""
    tok = load_tokenizer(school / "w2")
    question = plain_text(multiple_choice("Who sees it?", ["The man", "a girl", "a cat", "old dog"]))
    ids = chat_prompt(tok, [], question)
    for option in ("The man", "a girl", "a cat", "old dog"):
        own = tok.encode(plain_text(option))
        assert any(ids[i:i + len(own)] == own for i in range(len(ids))), option
    assert ids[0] == tok.bos_id and ids[-1] == tok.special("<|assistant_start|>")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["base", "align", "sft"])
def test_fp32_means_no_bf16(school, tmp_path, stage):
    """A CPU without bf16 instructions would wait 55 times as long for one operation that is in bf16 all the same."""
    scripts = {"base": base, "align": align, "sft": sft}
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_train, "run", lambda *command: seen.append(run_in_process(*command)))
        patch.setattr("test_sft.run", test_train.run)
        scripts[stage](school, tmp_path / stage, "--max_steps=2")
    assert seen[0].n > 1000 and not seen[0].found
    assert (tmp_path / stage / "meta_000002.json").exists()  # it ran to its end


@pytest.mark.slow
def test_frozen_lm_stays_and_the_run_is_self_contained(school, tmp_path):
    """The frozen LM would drift, LoRA would not train, or the folder could not be loaded without its sources."""
    out = sft(school, tmp_path / "run", "--max_steps=2", "--learning_rate=0.05")
    assert "adapters alone" in out and "right:" in out
    rows = [json.loads(line) for line in open(tmp_path / "run" / "log.jsonl")]
    assert all(row["text_loss"] > 0 for row in rows if "lr" in row)
    assert "left out: 1 questions, letters of another script" in out
    assert ", 62 questions;" in out  # 60 of items, and two of three of turns
    saved = torch.load(tmp_path / "run" / "lora_000002.pt", weights_only=True)
    moved = [name for name, p in saved.items() if name.endswith("lora_b") and p.any()]
    assert len(moved) == 2 * 6
    before, after = (load_checkpoint(folder)[0].state_dict() for folder in (school / "w2", tmp_path / "run"))
    tok = load_tokenizer(tmp_path / "run")
    is_new = torch.zeros(len(after["lm_head.weight"]), dtype=torch.bool)
    is_new[[10, *(i for name, i in tok.special_ids.items() if name != "<|bos|>")]] = True
    for name in before:
        same = (before[name] == after[name])
        if "transformer.h" in name and name.endswith(("c_q.weight", "c_fc.weight", "c_proj.weight")):
            assert not same.all(), name
        elif name.endswith(("wte.weight", "lm_head.weight")) or name.startswith("value_embeds"):
            assert same[~is_new].all() and not same[is_new].all(), name
        elif "c_" not in name:
            assert same.all(), name
    meta = load_checkpoint(tmp_path / "run")[1]
    assert meta["audio"]["prompt"] == "chat" and meta["audio"]["taps"] == [0, -1]
    assert (tmp_path / "run" / "encoder.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("full", ["--full=False", "--full=True"])
def test_resume_repeats_the_straight_run(school, tmp_path, full):
    """A stopped and continued run would differ: adapters, new tokens, optimizers, order or dropout."""
    sft(school, tmp_path / "straight", "--max_steps=4", full)
    sft(school, tmp_path / "parts", "--max_steps=2", full)
    out = sft(school, tmp_path / "parts", "--max_steps=4", full, "--init_from=resume")
    assert "starting at step 2" in out
    for name in ("model", "projector", *(["lora"] if full == "--full=False" else [])):
        assert same_state(*(tmp_path / part / f"{name}_000004.pt" for part in ("straight", "parts"))), name
    assert losses(tmp_path / "straight") == losses(tmp_path / "parts")


@pytest.mark.slow
def test_two_ranks_match_one(school, tmp_path):
    """Ranks would see other clips, or weigh their losses otherwise than one rank alone."""
    one = sft(school, tmp_path / "one", "--max_steps=2", "--dropout=0.0")
    two = sft(school, tmp_path / "two", "--max_steps=2", "--dropout=0.0", n_ranks=2)
    assert "2 ranks" in two and "1 ranks" in one
    a, b = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert all(a[step] == pytest.approx(b[step], abs=1e-4) for step in a)


@pytest.mark.slow
def test_weights_of_the_mix(school, tmp_path):
    """task_weights or length_power would not reach the loss."""
    plain = sft(school, tmp_path / "a", "--max_steps=1", "--transcript_share=0", "--text_dir=", "--chats=")
    assert "0 questions" not in plain
    sft(school, tmp_path / "b", "--max_steps=1", "--transcript_share=0", "--text_dir=", "--chats=",
        "--task_weights=sex=0.0001,own=0.0001")
    assert losses(tmp_path / "a")[1] != losses(tmp_path / "b")[1]


@pytest.mark.slow
def test_bad_input_is_one_line(school, tmp_path):
    """A traceback, or a run that begins, for a wrong setting, file or checkpoint."""
    (tmp_path / "bad.jsonl").write_text('{"question": "x"}\n')
    for args, message in ((["--lora_targets=nothing"], "attn.c_q"), (["--task_weights=a"], "task_weights=a"),
                          ([f"--chats={tmp_path}/bad.jsonl"], "bad.jsonl:1"), ([f"--lm={school}/base"], "no projector"),
                          ([f"--turns={tmp_path}/bad.jsonl"], "bad.jsonl:1"), (["--data_dir=nowhere"], "nowhere")):
        out = sft(school, tmp_path / "x", "--max_steps=1", *args, ok=False)
        assert message in out and "Traceback" not in out, (args, out[-400:])
