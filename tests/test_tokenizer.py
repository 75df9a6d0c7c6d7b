"""Token ids as nanochat's, round trips, files that are missing, corrupt or foreign, chat rendering, transcripts."""
import json
import os
import pickle
import random
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

import tokenizer
from tokenizer import (BPETokenizer, ByteTokenizer, compression, export_nanochat, load_tokenizer, render_conversation,
                       train_bpe)

HERE = os.path.join(os.path.dirname(__file__), "nanochat_d4")
ODD = ["", " ", "héllo  wörld\r\n\t3.14", "你好 🙂\u2028\u0085\x00\x1f", "<|bos|><|user_end|>x", "'S '' it's\n\n\n  end "]


def nanochat():
    """Read nanochat's numbers."""
    with open(os.path.join(HERE, "expected_tokens.json"), encoding="utf-8") as f:
        return json.load(f)


def nanochat_pickle():
    """Return the bytes of the tokenizer.pkl that nanochat itself saved."""
    with open(os.path.join(HERE, "tokenizer.pkl"), "rb") as f:
        return f.read()


@pytest.fixture(scope="module")
def bpe():
    """The tokenizer of nanochat's tiny checkpoint, from its tokenizer.pkl."""
    return load_tokenizer(HERE, 307)


@pytest.fixture
def encoding(monkeypatch):
    """A stand-in for tiktoken's class, importable for this test: its pickles are tiktoken's to the byte."""
    class Encoding:
        pass
    Encoding.__module__, Encoding.__qualname__ = "tiktoken.core", "Encoding"
    module = types.ModuleType("tiktoken.core")
    module.Encoding = Encoding
    monkeypatch.setitem(sys.modules, "tiktoken", types.ModuleType("tiktoken"))
    monkeypatch.setitem(sys.modules, "tiktoken.core", module)
    return Encoding


def sentences(n=400):
    """Sentences of made-up words, always the same."""
    rng = random.Random(1)
    words = ["".join(rng.choice("aeioustrnlm'") for _ in range(rng.randint(1, 7))) for _ in range(120)]
    return [" ".join(rng.choice(words) for _ in range(6)) for _ in range(n)]


def test_ids_are_nanochats(bpe):
    """Broken: split pattern, merge order, byte order or special ids differ: a nanochat checkpoint reads gibberish."""
    expected = nanochat()
    assert [bpe.encode(text) for text in expected["texts"]] == expected["ids"]
    assert [bpe.decode(ids) for ids in expected["ids"]] == expected["texts"]
    assert bpe.special_ids == expected["special"] and bpe.bos_id == expected["bos"]
    assert bpe.vocab_size == 307 and all(bpe.tokens[b] == bytes([b]) for b in range(256))


def test_conversation_is_nanochats(bpe):
    """Broken: chat tokens or the loss mask differ from what nanochat's models were finetuned with."""
    expected = nanochat()
    wanted = expected["conversation_ids"], expected["conversation_mask"]
    assert render_conversation(bpe, expected["conversation"]) == wanted
    long = {"messages": [{"role": "user", "content": "a" * 5000}]}
    assert len(render_conversation(bpe, long)[0]) > 3000  # nothing is cut


def test_conversation_with_system_and_tools(bpe):
    """Broken: a system message is lost or changes the caller's data, or the model is trained on Python's output."""
    parts = [{"type": "text", "text": "a"}, {"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
    user, assistant = {"role": "user", "content": "b"}, {"role": "assistant", "content": parts}
    conversation = {"messages": [{"role": "system", "content": "s"}, user, assistant]}
    before = json.dumps(conversation)
    ids, mask = render_conversation(bpe, conversation)
    assert bpe.decode(ids) == ("<|bos|><|user_start|>s\n\nb<|user_end|><|assistant_start|>a<|python_start|>1+1"
                               "<|python_end|><|output_start|>2<|output_end|><|assistant_end|>")
    trained = bpe.decode([i for i, is_trained in zip(ids, mask) if is_trained])
    assert trained == "a<|python_start|>1+1<|python_end|><|assistant_end|>"
    assert json.dumps(conversation) == before


@pytest.mark.parametrize("messages, said", [
    ([], "no messages"), ([{"role": "assistant", "content": "x"}], "message 0 is from 'assistant', not from 'user'"),
    ([{"role": "user"}], "content"), ([{"role": "system", "content": "x"}], "system message"), (None, "messages"),
    ([{"role": "user", "content": [{"type": "python", "text": "x"}]}], "message 0 (user)"),
    ([{"role": "user", "content": 3}], "message 0 (user)"),
    ([{"role": "user", "content": "x"}, {"role": "assistant", "content": [{"type": "mp3", "text": ""}]}], "message 1"),
])
def test_wrong_conversation(bpe, messages, said):
    """Broken: a malformed line of somebody's data ends in a KeyError, or is rendered as something else."""
    with pytest.raises(ValueError, match="conversation") as wrong:
        render_conversation(bpe, {"messages": messages})
    assert said in str(wrong.value)


@pytest.mark.parametrize("text", ODD + nanochat()["texts"])
def test_round_trip(bpe, text):
    """Broken: text doesn't survive encode and decode, or a user can smuggle special tokens in through text."""
    for tok in (bpe, ByteTokenizer()):
        ids = tok.encode(text)
        assert tok.decode(ids) == text
        assert all(0 <= i < len(tok.tokens) for i in ids)
        lengths = tok.token_bytes()
        assert len(lengths) == tok.vocab_size and sum(lengths[i] for i in ids) == len(text.encode())


def test_every_character(bpe):
    """Broken: one of the 256 bytes stands for another, which ordinary English never shows."""
    text = "".join(chr(i) for i in [*range(0xD800), *range(0x10000, 0x110000, 997)])
    for tok in (bpe, ByteTokenizer()):
        assert b"".join(tok.tokens[i] for i in tok.encode(text)) == text.encode()


def test_byte_tokenizer():
    """Broken: bytes aren't their own ids, bos isn't 256, or a chat on bytes fails without a reason."""
    tok = ByteTokenizer()
    assert (tok.vocab_size, tok.bos_id, tok.encode("hé")) == (257, 256, [104, 195, 169])
    assert tok.token_bytes() == [1] * 256 + [0]
    with pytest.raises(ValueError, match="a byte tokenizer has no <|user_start|>".replace("|", r"\|")):
        render_conversation(tok, nanochat()["conversation"])


def test_decode_of_what_a_model_may_say(bpe):
    """Broken: a half-spoken character or an id of the padding (to 64) kills the answer without a clear line."""
    assert bpe.decode([104, 195]) == "h\ufffd" and bpe.decode(np.array([104, 105])) == "hi"
    for tok in (bpe, ByteTokenizer()):
        assert tok.encode("a\ud800") == tok.encode("a\ufffd") == [97, 239, 191, 189]
    for bad in (-1, 307, 10**9):
        with pytest.raises(ValueError, match=f"token id {bad} is outside this bpe tokenizer's 0..306"):
            bpe.decode([104, bad])
        with pytest.raises(ValueError, match="0..256"):
            ByteTokenizer().decode([bad])


def test_training_is_repeatable(tmp_path):
    """Broken: the same texts give another tokenizer in another process, so a resumed run reads other ids."""
    for name in "ab":
        code = ("import sys; sys.path[:0] = sys.argv[1:3]; import test_tokenizer as t\n"
                "t.train_bpe(iter(t.sentences()), 400).save(sys.argv[3])")
        env = {**os.environ, "PYTHONHASHSEED": "1" if name == "a" else "2"}
        root, here = os.path.dirname(tokenizer.__file__), os.path.dirname(__file__)
        subprocess.run([sys.executable, "-c", code, root, here, str(tmp_path / name)], check=True, env=env)
    files = [(tmp_path / name / "tokenizer.json").read_bytes() for name in "ab"]
    assert files[0] == files[1]
    tok = train_bpe(sentences(), 400)
    assert tok.vocab_size == 400 and tok.special("<|bos|>") == 391
    assert tok.tokens == load_tokenizer(tmp_path / "a").tokens
    assert all(tok.decode(tok.encode(text)) == text for text in sentences())
    assert sum(len(tok.encode(text)) for text in sentences()) < 0.6 * sum(map(len, sentences()))


def merge_by_rank(ranks, piece):
    """Reference, as tiktoken: a token is itself, else merge the leftmost pair of lowest rank until none is left."""
    parts = [piece] if piece in ranks else [bytes([b]) for b in piece]
    while True:
        pairs = [(ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(zip(parts, parts[1:]))]
        if not pairs or min(pairs)[0] == 1 << 30:
            return [ranks[part] for part in parts]
        i = min(pairs)[1]
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


def check_merges(tok, letters, max_letters):
    """Compare tok with the reference on 500 random words."""
    ranks = {token: i for i, token in enumerate(tok.tokens)}
    rng = random.Random(0)
    for _ in range(500):
        word = "".join(rng.choice(letters) for _ in range(rng.randint(1, max_letters)))
        assert tok.encode(word) == merge_by_rank(ranks, word.encode()), (word, tok.tokens[256:])


def test_merges_by_rank():
    """Broken: trained words are merged in another order than nanochat's."""
    check_merges(train_bpe(sentences(), 500), "aeioustrnlm", 20)


def test_merges_of_any_vocabulary():
    """Broken: where no trainer made the merges, a token is reached by some pairs only, or not as a whole piece."""
    rng = random.Random(0)
    for _ in range(20):
        tokens = [b"a", b"b"]
        while len(tokens) < 22:
            token = rng.choice(tokens) + rng.choice(tokens)
            tokens += [token] * (len(token) < 10 and token not in tokens)
        check_merges(BPETokenizer(tokens[2:]), "ab", 12)


def test_numbers_are_cut_into_pairs():
    """Broken: a small vocabulary fills with years and prices."""
    with pytest.raises(ValueError, match="give 3 merges"):  # 19 91 99
        train_bpe(["199199199"], 300)


@pytest.mark.parametrize("texts, vocab_size, said", [
    (["a few words"], 264, "below 265"), (["a few words"], 2000, "lower vocab_size to 2"), ([], 300, "to 265")])
def test_training_that_cannot_be(texts, vocab_size, said):
    """Broken: a vocabulary that the texts can't fill comes out smaller than the model that is built for it."""
    with pytest.raises(ValueError, match=said):
        train_bpe(texts, vocab_size)


def test_long_texts_are_read_in_parts(monkeypatch):
    """Broken: a book that is one str goes to the trainer whole, at 90 bytes a character."""
    assert train_bpe(["abab"], 266).tokens[256:] == [b"ab"]
    monkeypatch.setattr(tokenizer, "MAX_CHARS", 1)
    with pytest.raises(ValueError, match="give 0 merges"):
        train_bpe(["abab"], 266)


def test_save_and_load(bpe, tmp_path):
    """Broken: a saved tokenizer gives other ids when it is read back, or a half-written file stands under its name."""
    for tok in (bpe, ByteTokenizer()):
        tok.save(tmp_path / "run")
        again = load_tokenizer(tmp_path / "run")
        assert (type(again), again.tokens, again.special_ids) == (type(tok), tok.tokens, tok.special_ids)
        assert [again.encode(text) for text in ODD] == [tok.encode(text) for text in ODD]
        assert os.listdir(tmp_path / "run") == ["tokenizer.json"]


def test_interrupted_save_keeps_the_old_file(bpe, tmp_path, monkeypatch):
    """Broken: tokenizer.json is written in place, and an interruption leaves half of it."""
    ByteTokenizer().save(tmp_path)
    monkeypatch.setattr(json, "dump", lambda content, f, **options: f.write("{") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bpe.save(tmp_path)
    assert load_tokenizer(tmp_path).vocab_size == 257


def damage(content, **changes):
    """Return the JSON text of a tokenizer with some fields changed."""
    return json.dumps({**content, **changes})


@pytest.mark.case("B38")
def test_a_checkpoint_without_its_tokenizer(tmp_path):
    """Broken: who copied nanochat's checkpoint alone is not told where its tokenizer.pkl lies and where it goes."""
    run = tmp_path / "base_checkpoints" / "d4"
    run.mkdir(parents=True)
    with pytest.raises(ValueError, match="no tokenizer there .* nanochat's <its base folder>/tokenizer/tokenizer.pkl"):
        load_tokenizer(str(run))
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match=f"nanochat's {tmp_path}/tokenizer/tokenizer.pkl, into {run}$"):
        load_tokenizer(str(run))


def test_wrong_files(bpe, tmp_path):
    """Broken: a missing, cut, damaged or foreign tokenizer.json ends in a traceback, or is read as something else."""
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ValueError, match="no tokenizer there"):
        load_tokenizer(tmp_path)
    bpe.save(tmp_path)
    whole = path.read_text(encoding="utf-8")
    content = json.loads(whole)
    foreign = ["[]", "3", "{}", '{"version": "1.0", "model": {"type": "BPE"}}', damage(content, pattern="x"),
               damage(content, format="nanochat-omni tokenizer 9")]
    tokens = content["tokens"]
    corrupt = [b"", whole[:-40], b"\xff\xfe\x00", damage(content, tokens=tokens[:-1]), damage(content, tokens=3),
               damage(content, tokens=tokens[:-1] + ["ha€"]), damage(content, tokens=tokens[:-1] + ["zqx"]),
               damage(content, tokens=tokens[:-1] + tokens[:1]), damage(content, kind="byte"),
               damage(content, special=[]), damage(content, vocab_size=308),
               json.dumps({name: value for name, value in content.items() if name != "tokens"})]
    for said, texts in (("not a tokenizer of this code", foreign), ("corrupt tokenizer", corrupt)):
        for text in texts:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            with pytest.raises(ValueError, match=said) as wrong:
                load_tokenizer(tmp_path)
            assert str(path) in str(wrong.value) and "\n" not in str(wrong.value)


def refused(path, data):
    """Write a tokenizer.pkl; return why it is refused: one line that starts with the path."""
    path.write_bytes(data)
    with pytest.raises(ValueError) as wrong:
        load_tokenizer(path.parent)
    said = str(wrong.value)
    assert said.startswith(f"{path}: not a tokenizer that nanochat saved (") and "\n" not in said
    return said


@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_pickle_runs_nothing(tmp_path, protocol, encoding):
    """Broken: opening a tokenizer.pkl from the internet runs what its author likes."""
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)
    hostile = pickle.dumps(Hostile(), protocol)
    joined = nanochat_pickle()[:-1] + hostile[2 * (protocol > 1):-1] + b"0."  # nanochat's own with one more call
    for data in (hostile, joined):
        assert "needs no opcode" in refused(tmp_path / "tokenizer.pkl", data)
        assert os.listdir(tmp_path) == ["tokenizer.pkl"]
        pickle.loads(data)  # it would have run
        (tmp_path / "ran").rmdir()


def test_wrong_pickles(tmp_path, encoding):
    """Broken: a foreign, cut or inconsistent pickle ends in a traceback, eats the memory or gives other ids."""
    whole, path = nanochat_pickle(), tmp_path / "tokenizer.pkl"
    state = vars(pickle.loads(whole))
    ranks, special = state["mergeable_ranks"], state["special_tokens"]
    swapped = {bytes([b ^ 1]) if i < 256 else token: i for i, token in enumerate(ranks) for b in token[:1]}

    def changed(**changes):
        enc = encoding()
        vars(enc).update({**state, **changes})
        return pickle.dumps(enc, protocol=4)

    assert changed() == whole
    special_tokens = "special tokens are not <|bos|>"
    wrong = [(changed(pat_str="x"), "split pattern"), (changed(mergeable_ranks=swapped), "the bytes in order"),
             (changed(mergeable_ranks={**ranks, b"he": 400}), "not 0, 1, 2"),
             (changed(mergeable_ranks={}), "the bytes in order"),
             (changed(mergeable_ranks={str(token): i for token, i in ranks.items()}), "of bytes"),
             (changed(special_tokens={**special, "<|bos|>": 3}), special_tokens),
             (changed(special_tokens={"<|endoftext|>": 298}), special_tokens),
             (changed(mergeable_ranks={**ranks, b"zq!": 298}), special_tokens),
             (whole.replace(b"C\x02om", b"C\x02oc"), "there twice"),
             (whole.replace(b"C\x02om", b"C\x03om\n"), "two earlier tokens"),
             (pickle.dumps(state), "no tiktoken.Encoding"), (pickle.dumps("gpt2"), "no tiktoken.Encoding"),
             (b"", ""), (b"\xff\n", ""), (whole[:-1], "exhausted"), (whole[:1000], ""),
             (b"\x80\x04Nr\xff\xff\xff\xff.", "LONG_BINPUT")]  # unpickled, these nine bytes take 64 GB
    for data, said in wrong:
        assert said in refused(path, data)
    path.write_bytes(whole)
    assert load_tokenizer(tmp_path).vocab_size == 307
    with pytest.raises(ValueError, match="tokenizer.pkl has 307 ids, its model 320"):
        load_tokenizer(tmp_path, 320)
    ByteTokenizer().save(tmp_path)  # a run's own file goes first, and is not passed over when it is damaged
    assert load_tokenizer(tmp_path).vocab_size == 257
    (tmp_path / "tokenizer.json").write_bytes(b"{")
    with pytest.raises(ValueError, match="corrupt"):
        load_tokenizer(tmp_path)


def test_export_is_what_nanochat_reads(bpe, tmp_path, encoding, monkeypatch):
    """Broken: nanochat can't unpickle our tokenizer, reads other ids, or counts other bytes for bits per byte."""
    pairs = BPETokenizer([bytes([a, b]) for a in range(256) for b in range(40)])  # over one frame of a pickle (64 kB)
    for tok in (bpe, pairs):
        export_nanochat(tok, tmp_path / "run")
        assert sorted(os.listdir(tmp_path / "run")) == ["token_bytes.pt", "tokenizer.pkl"]
        enc = pickle.loads((tmp_path / "run" / "tokenizer.pkl").read_bytes())
        assert type(enc) is encoding and (tok is pairs or pickle.dumps(enc, protocol=4) == nanochat_pickle())
        assert vars(enc) == {"name": "rustbpe", "pat_str": tokenizer.SPLIT_PATTERN, "special_tokens": tok.special_ids,
                             "mergeable_ranks": {token: i for i, token in enumerate(tok.tokens)}}
        sizes = torch.load(tmp_path / "run" / "token_bytes.pt", weights_only=True)
        assert sizes.dtype == torch.int32 and sizes.tolist() == tok.token_bytes()
        assert load_tokenizer(tmp_path / "run", tok.vocab_size).tokens == tok.tokens
    monkeypatch.setattr(torch, "save", lambda sizes, f: f.write(b"cut") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_nanochat(bpe, tmp_path / "run")
    assert len(torch.load(tmp_path / "run" / "token_bytes.pt", weights_only=True)) == pairs.vocab_size
    with pytest.raises(ValueError, match="byte tokenizer has no"):
        export_nanochat(ByteTokenizer(), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_compression(bpe):
    """Broken: characters are counted for bytes, or an empty text stops the report."""
    texts = {"greek": "λόγος", "english": "hello", "none": "", "half": "\ud800"}
    assert compression(ByteTokenizer(), texts) == {"greek": 1, "english": 1, "none": 0, "half": 1}
    assert compression(bpe, texts) == {"greek": 1, "english": 5 / 4, "none": 0, "half": 1}
