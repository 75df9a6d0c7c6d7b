"""The chat stage: conversations made, read and packed, learnt from on the real command line, and then held."""
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest

from conversations import Conversations, pack_whole, read_conversations
from decode import generate
from drill import make_audio, post, sound, start_server
from documents import fetch_source
from checkpoints import checkpoint_steps
from talk import Talker
from test_chat import said as words_said
from test_eval import run as run_here
from test_train import ROOT, WORDS, run, same_state
from tokenizer import chat_prompt, load_tokenizer, render_conversation

NANOCHAT = os.path.join(ROOT, "tests", "nanochat_d4")  # of nanochat itself: 307 ids, 512 tokens
TRAIN = ["--practice=0", "--text_len=96", "--batch_size=4", "--grad_accum=2", "--warmup_steps=1", "--lr_decay_steps=8",
         "--use_compile=False", "--log_every=1", "--save_every=2", "--eval_every=0", "--eval_rows=16", "--device=cpu"]


def messages(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def prepare(out, mix, *args, ok=True):
    return run("prepare_chat.py", f"--out_dir={out}", f"--mix={mix}", *args, ok=ok)


def rows_of(folder, split):
    return [json.loads(line) for line in open(os.path.join(folder, f"{split}.jsonl"), encoding="utf-8")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of prepare_chat.py, of built-in conversations, a list and dialogues."""
    root = tmp_path_factory.mktemp("chat")
    (root / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (
        {"messages": [{"role": "system", "content": "be brief"}, *messages("mine", "yes", "and", "no", "unanswered")]},
        messages("a list", "as nanochat's"))))
    (root / "dialogues").mkdir()
    turns = [{"speaker": speaker, "utterance": f"{speaker} said"} for speaker in ("USER", "SYSTEM")]
    (root / "dialogues" / "dialogues_001.json").write_text(json.dumps([{"turns": turns}]))
    (root / "again.jsonl").write_text(json.dumps({"messages": [
        {"content": m["content"], "role": m["role"]} for m in messages("a list", "as nanochat's")]}) + "\n")
    mix = f"identity=100,repeat=600,letters=1200,{root}/mine.jsonl,{root}/dialogues,{root}/again.jsonl"
    prepare(root / "data", mix, "--val_share=0.1")
    before = (root / "data" / "train.jsonl").stat().st_mtime_ns
    assert "up to date" in prepare(root / "data", mix, "--val_share=0.1")
    assert (root / "data" / "train.jsonl").stat().st_mtime_ns == before
    return str(root / "data")


def test_conversations_are_made(folder):
    """Broken: letters tell the answer or it isn't the option's, splits share a question, or a source is lost."""
    rows = {split: rows_of(folder, split) for split in ("train", "val")}
    asked = {split: [row for row in rows[split] if "letters" in row] for split in rows}
    counts = Counter(row["messages"][1]["content"] for row in asked["train"])
    assert set(counts) == set("ABCD") and max(counts.values()) < 1.3 * min(counts.values())
    keys = {split: set() for split in rows}
    for split, row in ((split, row) for split in rows for row in asked[split]):
        question, *options, last = row["messages"][0]["content"].splitlines()
        assert [option[:2] for option in options] == ["A ", "B ", "C ", "D "] and last == "answer with the letter"
        names = [option[2:] for option in options]
        right = names["ABCD".index(row["messages"][1]["content"])]
        if "letter" in question or "begins" in question:
            assert [name for name in names if name[0] == question.rstrip("?").split()[-1]] == [right]
        elif any(f" {name}" in question for name in names):
            assert f" {right}" in question
        keys[split].add((question, *sorted(names)))
    assert keys["train"] and keys["val"] and not keys["train"] & keys["val"]
    assert len(asked["train"]) + len(asked["val"]) == 1200 == sum(map(len, keys.values()))
    repeated = {split: {answer["content"].lower() for row in rows[split] for ask, answer in zip(
        row["messages"][::2], row["messages"][1::2]) if "letters" not in row and answer["content"] in ask["content"]}
        for split in rows}
    assert len(repeated["train"]) > 400 and len(repeated["val"]) > 20 and not repeated["train"] & repeated["val"]
    everything = json.dumps(rows)
    assert everything.count("as nanochat's") == 1  # though two files have it
    assert all(text in everything for text in ("as nanochat's", "SYSTEM said", "trained from nothing", "be brief"))
    assert "unanswered" not in everything and max(len(row["messages"]) for row in rows["train"]) > 4


@pytest.mark.parametrize("line, reason", [
    ('{"messages": [{"role": "user"}]}', "'content'"), ("[1, 2", "delimiter"), ("{}", "no 'messages'"),
    (json.dumps(messages("only a question")), "no answer"),
    (json.dumps(messages("a", "b")[::-1]), "message 0 is from 'assistant'")])
def test_bad_lines_are_named(tmp_path, line, reason):
    """Broken: a wrong conversation is skipped or a traceback, or the line doesn't say where it stands."""
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(messages("a", "b")) + "\n" + line + "\n")
    with pytest.raises(ValueError, match="bad.jsonl:2: ") as e:
        list(read_conversations(str(path)))
    assert reason in str(e.value) and "write {" in str(e.value)


def test_wrong_settings_stop(folder, tmp_path, monkeypatch, capsys):
    """Broken: a wrong mix or folder is a traceback, or says not what to write."""
    base = (f"--init_from={NANOCHAT}", f"--out_dir={tmp_path}/run", *TRAIN)
    (tmp_path / "train.jsonl").write_text('{"messages": []}\n')
    (tmp_path / "meta.json").write_text('{"sha256": {}}')
    for script, args, message in (
            ("prepare_chat.py", ["--mix=identiti=3"], "mix: 'identiti=3': write identity,"),
            ("prepare_chat.py", ["--mix=repeat"], "with =so many"),
            ("prepare_chat.py", [f"--mix={tmp_path}"], "dialogues_*.json"),
            ("train_base.py", [*base, f"--conversations={tmp_path}/none"], "run prepare_chat.py"),
            ("train_base.py", [*base, f"--conversations={tmp_path}"], "train.jsonl:1: conversation: no messages"),
            ("train_base.py", [*base, f"--conversations={folder}", "--conversation_share=0"], "conversation_share"),
            ("serve.py", [f"--ckpt={NANOCHAT}", "--port=0", "--device=cpu"], "neither hears nor chats")):
        more = [f"--out_dir={tmp_path}/none"] if script == "prepare_chat.py" else []
        code, _, err = run_here(monkeypatch, capsys, script, *args, *more)
        assert code == 2 and message in err and "Traceback" not in err, (message, err)


def test_smoltalk_comes_by_http(tmp_path, monkeypatch):
    """Broken: SmolTalk's address, HF_ENDPOINT, or its column of messages isn't read."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = tmp_path / "datasets" / "HuggingFaceTB" / "smol-smoltalk" / "resolve" / "main" / "data"
    files.mkdir(parents=True)
    rows = [messages("hello", f"answer {i}") for i in range(3)]
    parquet.write_table(pyarrow.table({"messages": rows}), files / "train-00000-of-00004.parquet")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        paths = fetch_source("smoltalk", 1, [], str(tmp_path / "got"))
        server.shutdown()
    assert [row["messages"] for path in paths for _, row in read_conversations(path)] == rows


@pytest.mark.parametrize("n, width, n_buffer", [(300, 40, 20), (50, 9, 1), (0, 9, 5), (200, 64, 1000)])
def test_packing_keeps_conversations_whole(n, width, n_buffer):
    """Broken: one is cut, lost or used twice, or a shorter one is taken than what fits."""
    lengths = np.random.default_rng(n).integers(1, width + 1, n).tolist()
    rows = pack_whole(lengths, width, n_buffer)
    waiting, buffer, slow = list(enumerate(lengths)), [], []
    while waiting or buffer:
        buffer, waiting = buffer + waiting[:n_buffer - len(buffer)], waiting[n_buffer - len(buffer):]
        left = width - sum(lengths[i] for i in slow[-1]) if slow else 0
        fits = [item for item in buffer if item[1] <= left]
        slow += [] if fits else [[]]
        buffer.remove(item := max(fits or buffer, key=lambda item: (item[1], item[0])))
        slow[-1].append(item[0])
    assert rows == slow and sorted(sum(rows, [])) == list(range(n))
    assert all(sum(lengths[i] for i in row) <= width for row in rows)


def test_only_answers_are_learnt(folder):
    """Broken: a question, padding or a special token but the answer's end is a target, or a row's text is another."""
    tok = load_tokenizer(NANOCHAT)
    talks, width = Conversations(folder, "val", tok, 97), 97
    idx, targets = talks.batch(range(len(talks.rows)))
    lines = [render_conversation(tok, row) for row in rows_of(folder, "val")]
    expected = Counter(tuple(zip(ids[1:width], mask[1:width])) for ids, mask in lines if any(mask[:width]))
    found = Counter()
    for row, target in zip(idx, targets):
        whole = [*row, target[-1] if target[-1] >= 0 else tok.bos_id]  # what isn't learnt there is not seen
        starts = [i for i in range(width) if whole[i] == tok.bos_id] + [width]
        for start, end in zip(starts, starts[1:]):
            pairs = [(int(whole[i]), int(target[i - 1] >= 0)) for i in range(start + 1, end)]
            found[tuple(pairs)] += bool(pairs)
    found = Counter({pairs: n for pairs, n in found.items() if n and len(pairs) < width - 2})
    assert found == Counter({pairs: n for pairs, n in expected.items() if len(pairs) < width - 2}) and len(found) > 20
    assert ((targets == -1) | (targets == np.roll(idx, -1, 1)))[:, :-1].all()
    assert talks.n_cropped == sum(max(len(ids) - width, 0) for ids, _ in lines) > 0
    question, letters, right = talks.questions[0]
    asked = next(row for row in rows_of(folder, "val") if "letters" in row)
    assert question == chat_prompt(tok, [], asked["messages"][0]["content"])
    assert tok.decode([letters[right]]) == asked["messages"][1]["content"]


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """Runs that begin with nanochat's checkpoint: straight, stopped on the way, of two ranks."""
    out = tmp_path_factory.mktemp("runs")
    args = (f"--init_from={NANOCHAT}", f"--conversations={folder}", *TRAIN)
    said = run("train_base.py", f"--out_dir={out}/straight", "--max_steps=4", *args)
    (out / "stopped").mkdir()
    (out / "stopped" / "begun.json").write_text(json.dumps({"init_from": NANOCHAT}))
    (out / "stopped" / "log.jsonl").touch()  # killed before its first checkpoint
    for steps in (2, 4):
        run("train_base.py", f"--out_dir={out}/stopped", f"--max_steps={steps}", *args[1:], "--init_from=resume")
    run("train_base.py", f"--out_dir={out}/ranks", "--max_steps=4", *args, n_ranks=2)
    return out, said


def log_of(folder):
    return [json.loads(line) for line in open(os.path.join(folder, "log.jsonl"))]


def test_training(trained):
    """Broken: a resumed run differs, ranks read other conversations, or the meta lacks what chat.py needs."""
    out, said = trained
    assert "conversations in" in said and "rows of 96" in said and "answer_loss" in said
    assert same_state(*(out / name / "model_000004.pt" for name in ("straight", "stopped")))
    losses = {name: [row["answer_loss"] for row in log_of(out / name) if "answer_loss" in row]
              for name in ("straight", "ranks")}
    assert len(losses["straight"]) == 4 and losses["ranks"] == pytest.approx(losses["straight"], rel=1e-4)
    last, ranks = (log_of(out / name)[-1] for name in ("straight", "ranks"))
    assert "loss" not in last and 0 <= last["val_letters"] <= 1 and "val_bpb" not in last
    assert ranks["val_answer_bpb"] == pytest.approx(last["val_answer_bpb"], rel=1e-3)
    meta = json.loads((out / "straight" / "meta_000004.json").read_text())
    assert meta["conversations"] and meta["inputs"]["conversations"] and meta["max_seq_len"] == 96


def test_beside_text_and_listening(folder, tmp_path):
    """Broken: with a share of text, or listening practice, one of the kinds is not learnt."""
    sentences = [" ".join(np.random.default_rng(i).choice(WORDS, 5)) for i in range(60)]
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text("\n".join(sentences) + "\n")
    args = (*TRAIN, "--max_steps=2", f"--data_dir={tmp_path}", f"--out_dir={tmp_path}/run", "--practice=0.5",
            "--conversation_share=0.5", "--practice_vocab=280", "--grad_accum=4")
    run("train_base.py", f"--init_from={NANOCHAT}", f"--conversations={folder}", *args)
    rows = log_of(tmp_path / "run")
    assert all(row[name] > 0 for row in rows[:2] for name in ("loss", "practice_loss", "answer_loss"))
    assert {"val_bpb", "val_practice", "val_answer_bpb", "val_letters"} <= set(rows[-1])
    (tmp_path / "train.jsonl").write_text("no JSON\n")
    (tmp_path / "meta.json").write_text('{"sha256": {}}')
    args += ("--init_from=scratch", "--vocab_size=320")
    said = run("train_base.py", *args, f"--conversations={tmp_path}", ok=False)
    assert "train.jsonl:1: " in said and checkpoint_steps(tmp_path / "run") and log_of(tmp_path / "run") == rows


def two_answers(ckpt):
    """What a run says to "Hello", and then to "And now?", by way of decode.py."""
    talker, turns = Talker(ckpt, device="cpu"), []
    for question in ("Hello", "And now?"):
        rows = generate(talker.model, [chat_prompt(talker.tok, turns, question)], max_tokens=8,
                        stop_ids=talker.stop_ids())
        turns.append((question, talker.tok.decode([ids[0] for ids in rows if ids[0] is not None])))
    return [answer for _, answer in turns]


def test_serving_without_ears(trained):
    """Broken: the API of a run that only reads answers otherwise, or a recording is an error of the server's."""
    server, port = start_server(str(trained[0] / "straight"), "--device=cpu")
    try:
        first, second = two_answers(str(trained[0] / "straight"))
        body = {"messages": messages("Hello", first, "And now?"), "max_tokens": 8}
        status, said = post(port, json.dumps(body).encode())
        assert status == 200 and json.loads(said)["choices"][0]["message"]["content"] == second
        body["messages"] = [{"role": "user", "content": [sound(make_audio(0.5, 1))]}]
        status, said = post(port, json.dumps(body).encode())
        assert status == 400 and "takes no audio" in said.decode()
    finally:
        server.kill()


def test_a_chat_of_two_turns(trained, tmp_path, monkeypatch, capsys):
    """Broken: chat.py continues text in place of answering, forgets the first turn, or a base is taken for a chat."""
    ckpt, command = str(trained[0] / "straight"), [sys.executable, "chat.py", "--device=cpu", "--max_tokens=8"]
    first, second = two_answers(ckpt)
    done = subprocess.run([*command, f"--ckpt={ckpt}"], cwd=ROOT, text=True, capture_output=True,
                          input="Hello\nAnd now?\n/audio clip.wav\n/quit\n")
    assert done.returncode == 0 and f"> {first}\n> {second}\n> " in done.stdout and "has no ears" in done.stderr
    here = lambda folder, *args: run_here(monkeypatch, capsys, *command[1:], f"--ckpt={folder}", *args)
    assert words_said(here(ckpt, "--prompt=Hello")[1]) == first.split()
    assert "\nHello" in here(NANOCHAT, "--prompt=Hello")[1] and "holds no chat" in here(NANOCHAT)[2]
    shutil.copytree(NANOCHAT, tmp_path / "sft")  # chat_sft.py's user_config names no depth
    meta = json.loads((tmp_path / "sft" / "meta_000010.json").read_text()) | {"user_config": {"mmlu_epochs": 3}}
    (tmp_path / "sft" / "meta_000010.json").write_text(json.dumps(meta))
    assert Talker(str(tmp_path / "sft"), device="cpu").can_chat
