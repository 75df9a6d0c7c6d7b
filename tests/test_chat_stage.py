"""The chat stage: conversations made, packed, learnt on the real command line, and then held."""
import json
import os
import shutil
from collections import Counter

import numpy as np
import pytest

from conversations import Conversations, pack_whole
from decode import generate
from drill import make_audio, post, sound, start_server
from talk import Talker
from test_train import ROOT, log_of, refusal, run, same_state
from tokenizer import chat_prompt, load_tokenizer, render_conversation

NANOCHAT = os.path.join(ROOT, "tests", "nanochat_d4")  # of nanochat itself: 307 ids, 512 tokens
TRAIN = [f"--lm={NANOCHAT}", "--batch_size=4", "--max_steps=4", "--save_every=2", "--device=cpu",
         "--use_compile=False"]


def messages(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def rows_of(folder, split):
    return [json.loads(line) for line in open(os.path.join(folder, f"{split}.jsonl"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of prepare_chat.py: questions about the model and a .jsonl."""
    root = tmp_path_factory.mktemp("chat")
    system = {"role": "system", "content": "be brief"}
    rows = [{"messages": [system, *messages("mine", "yes", "and", "no", "unanswered")]},
            *({"messages": messages(f"say {i}", f"{i} " * i)} for i in range(1, 60)),
            {"messages": messages("long", "word " * 600)}, {"messages": messages("q " * 600, "a")}]
    (root / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*rows, rows[1])))
    args = f"--out_dir={root}/data", f"--sources={root}/mine.jsonl"
    assert ", twice 1" in run("prepare_chat.py", *args)
    made = (root / "data" / "train.jsonl").read_bytes()
    assert "is up to date" in run("prepare_chat.py", *args)
    (root / "data" / "meta.json").write_text('{"script": "prepare_chat.py"}')  # killed
    assert "up to date" not in run("prepare_chat.py", *args)
    assert (root / "data" / "train.jsonl").read_bytes() == made
    return str(root / "data")


def test_conversations_are_made(folder):
    """Broken: a source is lost, one stands twice, or a question is in both splits."""
    rows = {split: rows_of(folder, split) for split in ("train", "val")}
    texts = [json.dumps(row) for split in rows for row in rows[split]]
    assert len(texts) == len(set(texts)) == 1236 + 62  # questions about itself, own chats
    everything = "".join(texts)
    assert "unanswered" not in everything
    assert all(text in everything for text in ("be brief", "trained from nothing"))
    with open(os.path.join(ROOT, "assets", "identity.txt")) as f:
        lines = [line.strip().lower() for line in f if line.strip() and line[0] not in "# "]
    asked = [{row["messages"][0]["content"].lower().rstrip("?.!") for row in rows[split]}
             for split in rows]
    for question in " | ".join(lines).split(" | "):
        in_train, in_val = (any(text.endswith(question) for text in texts) for texts in asked)
        assert in_train != in_val


@pytest.mark.parametrize("line, reason", [
    ('{"messages": [{"role": "user"}]}', "'content'"), ("[1, 2", "no JSON"), ("{}", '"messages"'),
    (json.dumps({"messages": messages("only a question")}), "no answer"),
    (json.dumps({"messages": messages("a", "b")[::-1]}), "message 0 is from 'assistant'")])
def test_bad_lines_are_named(tmp_path, line, reason):
    """Broken: a wrong conversation is skipped or a traceback, or its place isn't named."""
    (tmp_path / "bad.jsonl").write_text(json.dumps({"messages": messages("a", "b")}) + "\n" + line)
    args = [f"--sources={tmp_path}/bad.jsonl", f"--out_dir={tmp_path}/x"]
    said = refusal("prepare_chat.py", args).splitlines()[-1]
    assert "bad.jsonl:2: " in said and reason in said
    assert not (tmp_path / "x/train.jsonl").exists()


def test_wrong_settings_stop(tmp_path):
    """Broken: a wrong source, folder or setting is a traceback, or says not what to do."""
    prepare, train = [f"--out_dir={tmp_path}/no"], [*TRAIN, f"--out_dir={tmp_path}/run"]
    for script, args, message in (
            ("prepare_chat.py", [*prepare, "--sources=nowhere"], "nowhere"),
            ("train_chat.py", [*train, f"--data_dir={tmp_path}"], "run prepare_chat.py"),
            ("train_chat.py", [*train, "--batch_size=0"], "batch_size=0"),
            ("train_chat.py", [*train, "--init_from=out/x"], "--lm=<folder>")):
        assert message in refusal(script, args).splitlines()[-1]


def test_packing_keeps_conversations_whole():
    """Broken: one is cut, lost or used twice, or a row holds too much."""
    lengths = np.random.default_rng(0).integers(1, 41, 300).tolist()
    rows = pack_whole(lengths, 40)
    assert sum(rows, []) == list(range(300)) and pack_whole([], 5) == []
    sizes = [sum(lengths[i] for i in row) for row in rows]
    assert max(sizes) <= 40
    assert all(size + lengths[row[0]] > 40 for size, row in zip(sizes, rows[1:]))


def test_only_answers_are_learnt(folder):
    """Broken: a question, padding or <|bos|> is a target, or an answer or its end is none."""
    tok, width = load_tokenizer(NANOCHAT), 97
    talks = Conversations(folder, "train", tok, width)
    idx, targets = talks.batch(range(len(talks.rows)))
    assert idx.shape == targets.shape == (len(talks.rows), width - 1)
    lines = [render_conversation(tok, row) for row in rows_of(folder, "train")]
    expected = Counter()
    for ids, mask in lines:
        expected.update(i for i, is_on in zip(ids[:width], mask[:width]) if is_on)
    assert Counter(targets[targets >= 0].tolist()) == expected
    assert ((targets == -1) | (targets == np.roll(idx, -1, 1)))[:, :-1].all()
    assert talks.n_dropped == sum(not any(mask[:width]) for _, mask in lines) > 0
    assert talks.n_cropped == sum(max(len(ids) - width, 0) for ids, _ in lines) > 0


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """Runs that begin with nanochat's checkpoint: straight, stopped on the way, of two ranks."""
    out = tmp_path_factory.mktemp("runs")
    args = (*TRAIN, f"--data_dir={folder}")
    said = run("train_chat.py", f"--out_dir={out}/straight", *args)
    assert "conversations in" in said and "1 conversations left out" in said
    (out / "stopped").mkdir()
    for name in ("meta_000002.json", "model_000002.pt", "optim_000002_rank0.pt", "tokenizer.json"):
        shutil.copy(out / "straight" / name, out / "stopped")
    lines = (out / "straight" / "log.jsonl").read_text().splitlines(True)
    (out / "stopped" / "log.jsonl").write_text(lines[0] + '{"step": 3, "torn')
    assert "starting at step 2" in run(
        "train_chat.py", f"--out_dir={out}/stopped", *args, "--init_from=resume")
    run("train_chat.py", f"--out_dir={out}/ranks", *args, n_ranks=2)
    return out


def test_training(trained, folder):
    """Broken: a resumed run differs, ranks read other rows, or meta doesn't say it is a chat."""
    assert same_state(*(trained / name / "model_000004.pt" for name in ("straight", "stopped")))
    straight, stopped, ranks = (log_of(trained / name) for name in ("straight", "stopped", "ranks"))
    assert [row["step"] for row in straight] == [2, 4, 4]
    assert stopped == straight and ranks == [pytest.approx(row, rel=1e-3) for row in straight]
    meta = json.loads((trained / "straight" / "meta_000004.json").read_text())
    assert meta["conversations"] and meta["chats"] and meta["evaluated"]
    assert meta["inputs"]["conversations"]["train.jsonl"] and meta["max_seq_len"] == 512
    args = [*TRAIN, f"--data_dir={folder}", f"--out_dir={trained}/straight"]
    assert "is up to date" in run("train_chat.py", *args)
    assert "other schedule" in refusal("train_chat.py", [*args, "--max_steps=6"])


def test_a_chat_of_two_turns(trained, tmp_path):
    """Broken: a chat is answered otherwise than by decode.py, or forgets a turn, or is no chat."""
    ckpt, turns = str(trained / "straight"), []
    talker = Talker(ckpt, device="cpu")
    for question in ("Hello", "And now?"):
        prompt = chat_prompt(talker.tok, turns, question)
        ids = generate(talker.model, [prompt], max_tokens=8, stop_ids=talker.stop_ids())
        answer = talker.tok.decode([row[0] for row in ids if row[0] is not None])
        turns.append((question, answer))
    server, port = start_server(ckpt)
    try:
        bodies = messages("Hello", turns[0][1], "And now?"), [
            {"role": "user", "content": [sound(make_audio(0.5, 1))]}]
        (status, said), deaf = (post(port, json.dumps(
            {"messages": body, "max_tokens": 8}).encode()) for body in bodies)
    finally:
        server.kill()
    assert status == 200
    assert json.loads(said)["choices"][0]["message"]["content"] == turns[1][1]
    assert deaf[0] == 400 and "takes no audio" in deaf[1].decode()
    assert "neither hears nor chats" in refusal("serve.py", [f"--ckpt={NANOCHAT}", "--port=0"])
    shutil.copytree(NANOCHAT, tmp_path / "sft")  # chat_sft.py's user_config names no depth
    path = tmp_path / "sft" / "meta_000010.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"user_config": {"mmlu_epochs": 3}}))
    can_chat = [Talker(folder, device="cpu").can_chat for folder in (ckpt, path.parent, NANOCHAT)]
    assert can_chat == [True, True, False]
