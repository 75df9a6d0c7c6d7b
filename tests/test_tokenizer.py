"""Token ids as nanochat's, round trips, files that are corrupt, foreign or hostile, chats."""
import json
import os
import pickle
import random
import sys
import types

import pytest
import torch

from commands import ROOT, raises, write_file
from tokenizer import (BPETokenizer, export_nanochat, load_tokenizer, render_conversation,
                       train_bpe)

HERE = ROOT / "tests/nanochat_d4"
ODD = ["", "héllo  wörld\r\n\t3.14", "你好 🙂\u2028\u0085\x00\x1f", "<|bos|><|user_end|>x",
       "'S '' it's\n\n\n  end "]
NANOCHAT = json.loads((HERE / "expected_tokens.json").read_bytes())
PICKLE = (HERE / "tokenizer.pkl").read_bytes()  # as nanochat itself saved it


@pytest.fixture(scope="module")
def bpe():
    """The tokenizer of nanochat's tiny checkpoint, from its tokenizer.pkl."""
    return load_tokenizer(HERE, 307)


@pytest.fixture
def encoding(monkeypatch):
    """A class that is importable as tiktoken's in this test: its pickles are the same."""
    kind = type("Encoding", (), {"__module__": "tiktoken.core"})
    monkeypatch.setitem(sys.modules, "tiktoken", types.ModuleType("tiktoken"))
    monkeypatch.setitem(sys.modules, "tiktoken.core", types.SimpleNamespace(Encoding=kind))
    return kind


def test_ids_are_nanochats(bpe):
    """Broken: split pattern, merge order or ids differ: a nanochat checkpoint reads nonsense."""
    assert [bpe.encode(text) for text in NANOCHAT["texts"]] == NANOCHAT["ids"]
    assert [bpe.decode(ids) for ids in NANOCHAT["ids"]] == NANOCHAT["texts"]
    assert bpe.special_ids == NANOCHAT["special"] and bpe.bos_id == NANOCHAT["bos"]
    assert bpe.vocab_size == 307 and all(bpe.tokens[b] == bytes([b]) for b in range(256))


def test_round_trips(bpe):
    """Broken: text doesn't survive encode and decode, or smuggles special tokens in."""
    every = "".join(chr(i) for i in [*range(0xD800), *range(0x10000, 0x110000, 997)])
    for tok in (bpe, BPETokenizer()):
        lengths = tok.token_bytes()
        assert len(lengths) == tok.vocab_size
        for text in (*ODD, *NANOCHAT["texts"], every):
            ids = tok.encode(text)
            assert tok.decode(ids) == text
            assert all(0 <= i < len(tok.tokens) for i in ids)
            assert sum(lengths[i] for i in ids) == len(text.encode())
    assert (tok.vocab_size, tok.bos_id, tok.encode("hé")) == (265, 256, [104, 195, 169])
    assert bpe.decode([104, 195]) == "h\ufffd"  # half a character
    assert bpe.encode("a\ud800") == bpe.encode("a?")  # half a surrogate pair


# ---- training

def merge_by_rank(ranks, piece):
    """Reference, as tiktoken: merge the leftmost pair of lowest rank until none is left."""
    parts = [piece] if piece in ranks else [bytes([b]) for b in piece]
    while True:
        pairs = enumerate(zip(parts, parts[1:]))
        pairs = [(ranks[a + b], i) for i, (a, b) in pairs if a + b in ranks]
        if not pairs:
            return [ranks[part] for part in parts]
        i = min(pairs)[1]
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


def test_merges_by_rank():
    """Broken: words are merged in another order than nanochat's, whoever made the vocabulary."""
    rng = random.Random(0)

    def draw(letters):
        return "".join(rng.choices(letters, k=rng.randint(1, 15)))

    tokens = [b"ab", b"ba", b"aba", b"bab", b"abab", b"aa", b"aaa", b"abaaa", b"baab"]
    trained = train_bpe([draw("aeioustrnlm") for _ in range(400)], 500)
    for tok, letters in ((trained, "aeioustrnlm"), (BPETokenizer(tokens), "ab")):
        ranks = {token: i for i, token in enumerate(tok.tokens)}
        for word in [draw(letters) for _ in range(500)]:
            assert tok.encode(word) == merge_by_rank(ranks, word.encode()), (word, tokens)


# ---- files

def refused(path, data):
    """Write a tokenizer's file -> why it is refused, in one line that starts with the path."""
    write_file(path, data)
    return raises(f"^{path}: no whole tokenizer ", load_tokenizer, path.parent)


@pytest.mark.case("B38")
def test_wrong_files(bpe, tmp_path):
    """Broken: a missing, cut, damaged or foreign tokenizer.json is read, or ends in a traceback."""
    raises("tokenizer.json: no whole tokenizer.*<base folder>", load_tokenizer, tmp_path)
    bpe.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = path.read_text(encoding="utf-8")
    tokens = json.loads(whole)["tokens"]
    for change in (dict(pattern="x"), dict(tokens=3), dict(tokens=tokens[:-1]),
                   dict(tokens=tokens[:-1] + ["ha€"])):
        refused(path, json.dumps(json.loads(whole) | change))
    for text in ("{}", whole[:-40]):
        refused(path, text)
    (tmp_path / "tokenizer.pkl").write_bytes(PICKLE)
    refused(path, "{")  # the run's own file is not passed over
    path.unlink()
    raises("tokenizer.pkl: .* it has 307 ids, its model 320", load_tokenizer, tmp_path, 320)


def test_wrong_pickles(tmp_path, encoding):
    """Broken: a foreign, cut or inconsistent pickle is read, takes the memory, or is run."""
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    def changed(**changes):
        enc = encoding()
        vars(enc).update({**state, **changes})
        return pickle.dumps(enc, protocol=4)

    path, state = tmp_path / "tokenizer.pkl", vars(pickle.loads(PICKLE))
    swapped = {bytes([i ^ 1]) if i < 256 else token: i
               for token, i in state["mergeable_ranks"].items()}
    hostile = pickle.dumps(Hostile(), protocol=4)
    joined = PICKLE[:-1] + hostile[2:-1] + b"0."  # nanochat's, one more call
    assert changed() == PICKLE
    for data in (hostile, joined, changed(pat_str="x"), changed(mergeable_ranks=swapped),
                 changed(special_tokens={**state["special_tokens"], "<|bos|>": 3}),
                 PICKLE.replace(b"C\x02om", b"C\x02oc"), pickle.dumps(state),
                 b"\x80\x04Nr\xff\xff\xff\xff."):  # 64 GB, if it were unpickled
        assert "are not nanochat's" in refused(path, data)
    refused(path, PICKLE[:-1])
    assert os.listdir(tmp_path) == ["tokenizer.pkl"]
    pickle.loads(joined)  # it would have run
    assert os.listdir(tmp_path / "ran") == []


def test_export_is_what_nanochat_reads(bpe, tmp_path, encoding):
    """Broken: nanochat can't unpickle our tokenizer, reads other ids, or counts other bytes."""
    export_nanochat(bpe, tmp_path)
    assert pickle.dumps(pickle.loads((tmp_path / "tokenizer.pkl").read_bytes()), 4) == PICKLE
    sizes = torch.load(tmp_path / "token_bytes.pt", weights_only=True)
    assert sizes.dtype == torch.int32 and sizes.tolist() == bpe.token_bytes()
    pairs = BPETokenizer([bytes(divmod(i, 40)) for i in range(10_000)])  # a pickle of over 64 kB
    export_nanochat(pairs, tmp_path)
    assert pairs.tokens == load_tokenizer(tmp_path, 10_265).tokens
    assert sorted(os.listdir(tmp_path)) == ["token_bytes.pt", "tokenizer.pkl"]


# ---- chats

def test_conversation_is_nanochats(bpe):
    """Broken: chat tokens or the loss mask differ from nanochat's, or turns may have any order."""
    wanted = NANOCHAT["conversation_ids"], NANOCHAT["conversation_mask"]
    assert render_conversation(bpe, NANOCHAT["conversation"]) == wanted
    chat = {"messages": [{"role": "assistant", "content": "x"}]}
    raises("message 0 is from 'assistant': user and assistant come", render_conversation, bpe, chat)
