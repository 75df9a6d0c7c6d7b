"""documents.py and prepare_text.py --documents: reading, splits, shards, resume, packing, downloads, bad input."""
import json
import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_data import server  # noqa: F401 (a fixture)

import documents
from documents import (Documents, deal_chunks, encode_documents, fetch_source, pack, read_documents, read_shard,
                       write_shard)
from files import sha256_file
from tokenizer import load_tokenizer

WORDS = ["Straße", "river", "“quoted”", "\U0001f600", "it's", "12,345", "<|bos|>", "a", "walks\tfar", "..."]


def prepare(out, source, *args, max_bytes=0):
    """Run prepare_text.py on documents with a vocabulary of 300; max_bytes: a longer file finds the disk full."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (max_bytes, max_bytes)) if max_bytes else None
    command = [sys.executable, "prepare_text.py", f"--out_dir={out}", f"--documents={source}", "--vocab_size=300"]
    return subprocess.run([*command, "--grammar=nowhere", *args], cwd=Path(__file__).parent.parent, capture_output=True,
                          text=True, timeout=120, preexec_fn=limit)


def make_texts(n, seed=0):
    """Documents of 5 to 200 words."""
    rng = np.random.default_rng(seed)
    return [f"{i}: " + " ".join(rng.choice(WORDS, rng.integers(5, 200))) for i in range(n)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """300 documents of a .jsonl, two thirds of them twice, and of two text files: (folder, texts)."""
    root, texts = tmp_path_factory.mktemp("documents"), make_texts(300)
    (root / "in").mkdir()
    (root / "in" / "a.jsonl").write_text("\n\n".join(json.dumps({"body": t}) for t in texts + texts[:200] + ["", None]))
    (root / "in" / "b.md").write_text("# A title\n\nof a text\n")
    (root / "in" / "c.txt").write_text("\ufeffanother one\r\n", encoding="utf-8")
    (root / "in" / "d.csv").write_text("not,read")
    done = prepare(root / "out", root / "in", "--json_key=text,body", "--shard_mb=0.1")
    assert done.returncode == 0 and "left out 2 empty" in done.stdout, done.stderr
    return root / "out", texts + texts[:200] + ["# A title\n\nof a text", "another one"]


def read_all(folder, split):
    """The documents of a split: decoded, and as they are in the shards."""
    tok, docs = load_tokenizer(folder), []
    for path in sorted(Path(folder).glob(f"{split}-*.bin")):
        lengths, tokens, n_bytes = read_shard(str(path), sha256_file(f"{folder}/tokenizer.json"))
        docs += (parts := np.split(tokens, np.cumsum(lengths)[:-1]))
        assert n_bytes == sum(len(tok.decode(ids[1:]).encode()) for ids in parts) and tokens.dtype == np.uint16
    assert all(ids[0] == tok.bos_id and tok.bos_id not in ids[1:] for ids in docs)
    return [tok.decode(ids[1:]) for ids in docs], docs


@pytest.mark.case("B24")
def test_all_documents_come_back(made, tmp_path):
    """Broken: text is lost or changed on its way, a special token's name is taken for one, a document is in both
    splits, val is empty, a run of documents needs the grammar or makes sentences, or --tokenizer is not used."""
    folder, texts = made
    (train, _), (val, _) = read_all(folder, "train"), read_all(folder, "val")
    assert Counter(train + val) == Counter(texts) and not set(train) & set(val) and 1 <= len(val) < 25
    meta = json.loads((folder / "documents.json").read_text())
    assert (meta["train"]["documents"], meta["train"]["bytes"]) == (len(train), len("".join(train).encode()))
    names = {"documents.json", "tokenizer.json", *meta["shards"]}
    assert set(os.listdir(folder)) == names and {"train-000002.bin", "val-000000.bin"} <= names
    assert all(row["sha256"] == sha256_file(folder / name) for name, row in meta["shards"].items())
    prepare(tmp_path, folder.parent / "in", "--json_key=body", "--shard_mb=0.1", "--limit=99", f"--tokenizer={folder}")
    assert Counter(sum((read_all(tmp_path, split)[0] for split in ("train", "val")), [])) == Counter(texts[:99])
    assert sha256_file(tmp_path / "tokenizer.json") == sha256_file(folder / "tokenizer.json")


def test_killed_run_goes_on(tmp_path):
    """Broken: a full disk ends in a traceback or a half shard, the next run starts anew or gives other shards than a
    straight one, a finished one is made twice, or settings are mixed in one folder."""
    texts, out = make_texts(60) + ["a much longer one " * 9000] + make_texts(40, seed=1), tmp_path / "killed"
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    run = lambda out, *args, **kw: prepare(out, tmp_path / "a.jsonl", *(args or ["--shard_mb=0.02"]), **kw)
    straight, done = run(tmp_path / "straight"), run(out, max_bytes=40_000)
    assert straight.returncode == 0, straight.stderr
    assert "File too large: make room" in done.stderr and len(done.stderr.splitlines()) == 1
    before, whole = (out / "train-000000.bin").stat().st_mtime_ns, sorted(os.listdir(tmp_path / "straight"))
    assert not list(out.glob("*.tmp")) and len(os.listdir(out)) < len(whole)
    with pytest.raises(ValueError, match="no finished documents.json"):
        Documents(str(out), "train", 8)
    assert "up to date" not in run(out).stdout and (out / "train-000000.bin").stat().st_mtime_ns == before
    assert sorted(os.listdir(out)) == whole
    assert all((tmp_path / "straight" / name).read_bytes() == (out / name).read_bytes() for name in whole)
    assert "up to date" in run(out).stdout
    assert "has shards of other shard_mb: delete them, or give another --out_dir" in run(out, "--shard_mb=1").stderr


def test_split_by_hash():
    """Broken: val overruns its limit, what it has no room for is trained on, or none of a few documents is held out."""
    texts, dropped = make_texts(2000), Counter()
    chunks = list(deal_chunks(iter(texts), 0.1, 20_000, 50_000, dropped))
    val, train = ([t.decode() for chunk in chunks for t in chunk[split]] for split in ("val", "train"))
    assert 18_000 < len("".join(val).encode()) <= 20_000 and 150 < len(val) + sum(dropped.values()) < 250
    assert [t for t in texts if t in set(train)] == train and len(train) + len(val) + sum(dropped.values()) == 2000
    other = [t.decode() for chunk in deal_chunks(iter(texts[::-1]), 0.1, 1e9, 1e9, Counter()) for t in chunk["val"]]
    assert set(val) <= set(other) and not set(train) & set(other) and len(chunks) > 10
    assert [len(chunk["val"]) for chunk in deal_chunks(iter(texts[:300]), 0.0, 1e9, 50_000, Counter())][:3] == [1, 0, 0]


def test_text_is_cut_at_empty_lines(tmp_path):
    """Broken: a long text is one document, is cut in a paragraph, loses words, or one without empty lines isn't cut."""
    text, path = "\n\n".join(["\n".join(["some words of a line"] * 5)] * 40), tmp_path / "a.txt"
    path.write_text(text)
    cut = list(read_documents(str(path), [], 250))
    assert "\n\n".join(cut) == text and {len(piece) for piece in cut} == {3 * 104 + 4, 104}
    assert list(read_documents(str(path), [], 0)) == [text]
    for text in ("word " * 2000, "a line\n" * 1400):
        path.write_text(text)
        cut = list(read_documents(str(path), [], 250))
        assert all(490 < len(piece) < 510 for piece in cut[:-1])
        assert "".join("".join(cut).split()) == "".join(text.split())


def pack_slowly(docs, width, keep_rest=False, n_buffer=1000):
    """The rows of documents (lists of ids, bos first) as pack()'s docstring says, and what is lost of them."""
    waiting, buffer, rows, row, lost = list(enumerate(docs)), [], [], [], 0
    n_all = len(waiting)
    while waiting or buffer:
        while waiting and len(buffer) < n_buffer:
            buffer.append(waiting.pop(0))
        left = width - len(row)
        fits = [item for item in buffer if len(item[1]) <= left]
        i, ids = (max if fits else min)(fits or buffer, key=lambda item: (len(item[1]), -item[0]))
        buffer.remove((i, ids))
        row += ids[:left]
        if ids[left:] and keep_rest:
            buffer.append((n_all, ids[:1] + ids[left:]))
            n_all += 1
        else:
            lost += len(ids[left:])
        if len(row) == width:
            rows, row = [*rows, row], []
    return rows, lost + len(row)


@pytest.mark.parametrize("keep_rest", [False, True])
@pytest.mark.parametrize("n, width, n_buffer", [(500, 40, 50), (500, 200, 10), (300, 8, 1000), (60, 33, 1), (0, 9, 5)])
def test_packing(n, width, n_buffer, keep_rest):
    """Broken: a document that fits is cropped, a shorter one is taken, one is used twice, or a row is not full."""
    lengths = np.random.default_rng(n + width).geometric(0.04, n)
    stream, ends = list(range(1, 1 + lengths.sum())), np.cumsum(lengths)
    docs = [[0, *stream[end - size + 1:end]] for end, size in zip(ends, lengths)]
    starts, sizes, firsts, n_lost = pack(lengths.astype(np.uint32), width, keep_rest, n_buffer)
    pieces = [[0, *stream[a + 1:a + size]] for a, size in zip(starts, sizes)]
    rows = [sum(pieces[a:b], []) for a, b in zip(firsts, firsts[1:])]
    assert (rows, n_lost) == pack_slowly(docs, width, keep_rest, n_buffer) and (n_lost < width or not keep_rest)


@pytest.mark.parametrize("width, keep_rest", [(33, False), (33, True), (500, False), (500, True)])
def test_rows(made, width, keep_rest):
    """Broken: a row is not what the shards hold, is padded, begins without <|bos|>, or a count is wrong."""
    texts, docs = read_all(made[0], "train")
    data = Documents(str(made[0]), "train", width, sha256_file(made[0] / "tokenizer.json"), keep_rest)
    assert (data.n_docs, data.n_tokens, data.n_bytes) == (len(docs), sum(map(len, docs)), len("".join(texts).encode()))
    rows, (expected, n_lost) = data.rows(range(data.n_rows)), pack_slowly([d.tolist() for d in docs], width, keep_rest)
    assert rows.dtype == np.int64 and rows.tolist() == expected and (rows[:, 0] == docs[0][0]).all()
    assert np.array_equal(data.rows(np.array([5, 0, 5])), rows[[5, 0, 5]])
    assert data.n_cropped == n_lost and data.share == n_lost / data.n_tokens


def test_wide_tokens_and_damaged_shards(made, tmp_path):
    """Broken: ids over 65,535 wrap around, or a shard that is damaged or another tokenizer's is trained on."""
    tok = SimpleNamespace(kind="byte", vocab_size=70_000, bos_id=69_999, encode=lambda text: [66_000 + ord(text)])
    path = str(tmp_path / "train-000000.bin")
    write_shard(path, list(encode_documents(tok, [b"b", b"c"])), 2, "ab" * 32)
    lengths, tokens, n_bytes = read_shard(path, "ab" * 32)
    assert (tokens.tolist(), lengths.tolist(), n_bytes) == ([69_999, 66_098, 69_999, 66_099], [2, 2], 2)
    whole = Path(path).read_bytes()
    for content, sha256, words in ((whole, "cd" * 32, "another tokenizer.json .abababab, not cdcdcdcd"),
                                   (whole[:-1], "", "95 bytes instead of 96"), (whole + b"x", "", "97 bytes instead"),
                                   (b"RIFF" + whole[4:], "", "no shard of documents"), (whole[:9], "", "no shard"),
                                   (whole[:8] + b"\7" + whole[9:], "", "version 7")):
        Path(path).write_bytes(content)
        with pytest.raises(ValueError, match=f"train-000000.bin: .*{words}.*run prepare_text.py"):
            read_shard(path, sha256)
    for split, width, words in (("val", 10**6, "fill no row of 1000000"), ("test", 9, "the 0 tokens of test")):
        with pytest.raises(ValueError, match=words):
            Documents(str(made[0]), split, width)


def test_public_source(server, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Broken: HF_ENDPOINT or a mirror is not asked or named, at another address, or a file comes twice."""
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/missing/")
    monkeypatch.setattr(documents, "import_parquet", lambda: None)
    with pytest.raises(ValueError, match="no parquet file"):
        fetch_source("climbmix", 1, [f"{server.url}/wrong"], str(tmp_path / "wrong"))
    server.requests.clear()
    for n in (1, 2):
        paths = fetch_source("climbmix", n, [f"{server.url}/whole"], str(tmp_path))
    assert [os.path.basename(path) for path in paths] == ["shard_00000.parquet", "shard_00001.parquet"]
    assert capsys.readouterr().out.count(f"from {server.url}/whole/") == 2
    path = "datasets/karpathy/climbmix-400b-shuffle/resolve/main/shard_0000"
    assert [asked for asked, _ in server.requests] == [
        f"/{hub}/{path}{i}.parquet" for i in (0, 1) for hub in ("missing", "whole")]
    with pytest.raises(ValueError, match="n_files=1824: fineweb-edu has 1823 files"):
        fetch_source("fineweb-edu", 1824, [], str(tmp_path))


def test_parquet(tmp_path):
    """Broken: row groups or nulls are lost, or a file cut short ends in a traceback."""
    parquet, path, texts = pytest.importorskip("pyarrow.parquet"), str(tmp_path / "a.parquet"), make_texts(3000)
    import pyarrow
    parquet.write_table(pyarrow.table({"n": list(range(3001)), "text": texts + [None]}), path, row_group_size=1024)
    assert list(read_documents(path, ["body", "text"], 9)) == texts + [""]
    for keys, words in ((["n"], "no column of strings"), (["x"], "no column of strings"), (["text"], "cut short")):
        os.truncate(path, os.path.getsize(path) - 100 * (keys == ["text"]))
        with pytest.raises(ValueError, match=f"a.parquet: .*{words}"):
            list(read_documents(path, keys, 0))


@pytest.mark.case("B23")
def test_parquet_of_other_writers(tmp_path):
    """Broken: pandas' categories or polars' views are no strings, a column there twice is a traceback, lists are taken
    for text, or the message speaks of a file cut short."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts, path = make_texts(20), str(tmp_path / "a.parquet")
    plain = pyarrow.array([*texts, None])
    large, view = plain.cast(pyarrow.large_string()), plain.cast(pyarrow.string_view())
    for column in (plain, large, view, plain.dictionary_encode(), large.dictionary_encode()):
        parquet.write_table(pyarrow.table({"text": column}), path)
        assert list(read_documents(path, ["text"], 0)) == [*texts, ""], column.type
    for table, said in ((pyarrow.table([plain, plain], names=["text", "text"]), 'the column "text" is there 2 times'),
                        (pyarrow.table({"text": plain.cast(pyarrow.binary())}), r"only text \(binary\)"),
                        (pyarrow.table({"Text": plain}), r'"text" \(json_key\), only Text \(string\)'),
                        (pyarrow.table({"text": [["a"]]}), r"only text \(list<.*string>\)")):
        parquet.write_table(table, path)
        with pytest.raises(ValueError, match=f"a.parquet: .*{said}") as error:
            list(read_documents(path, ["text"], 0))
        assert "cut short" not in str(error.value)


@pytest.mark.case("B18", "B19", "B23")
def test_folders_as_people_have_them(tmp_path):
    """Broken: what a Mac or a notebook left in a folder stops the run or is read twice, NOTES.TXT is left out without a
    word, or Spark's folder of parts is no file."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder, texts = tmp_path / "in", make_texts(30)
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    (folder / "all.parquet").mkdir()
    for name, data in (("book.txt", texts[0]), ("NOTES.TXT", texts[1]), (".ipynb_checkpoints/book.txt", texts[0]),
                       ("._book.txt", "\0\5\x16\7"), (".DS_Store", "\0\0Bud1"), ("all.parquet/_SUCCESS", "")):
        (folder / name).write_text(data, encoding="utf-8")
    parquet.write_table(pyarrow.table({"text": texts[2:]}), folder / "all.parquet" / "part-0.snappy.parquet")
    for source, expected in ((f"{folder}/NOTES.TXT,{folder}", texts), (folder / "all.parquet", texts[2:])):
        done = prepare(tmp_path / "out", source, "--val_share=0")
        assert done.returncode == 0, done.stderr
        found = sum((read_all(tmp_path / "out", split)[0] for split in ("train", "val")), [])
        assert Counter(found) == Counter(expected)
        shutil.rmtree(tmp_path / "out")


@pytest.mark.case("B24")
def test_text_that_tokenizers_choke_on(made):
    """Broken: a special token's name in a text becomes its id, or runs of a character take minutes or change."""
    tok = load_tokenizer(made[0])
    names = "<|bos|><|user_start|>hi<|assistant_end|> <|endoftext|> <|python_start|>"
    runs = ["x" + char * 100_000 + "x" for char in "^ a\n\U0001f468"]
    texts = [names, *runs, "\u4f60\u597d" * 30_000, "e\u0301" * 500]
    for text, ids in zip(texts, encode_documents(tok, [text.encode() for text in texts])):
        assert ids[0] == tok.bos_id and (ids[1:] < tok.bos_id).all() and tok.decode(ids[1:]) == text


@pytest.mark.case("B15", "B16", "B20")
def test_other_encodings(tmp_path):
    """Broken: a byte order mark or U+2028 is part of a document or cuts it; UTF-16 or Latin-1 is not named, or is
    learnt as U+FFFD; old Mac line ends are no lines."""
    texts = ["one\u2028two\u2029three\x85four", "half \ud83d a pair", None, "last"]
    rows = [{"text": text} for text in texts]
    lines = "\r\n".join(json.dumps(row) for row in rows).replace("\\u2028", "\u2028").replace("\\u0085", "\x85")
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert list(read_documents(str(tmp_path / "a.jsonl"), ["text"], 0)) == [texts[0], "half ? a pair", "", "last"]
    for name, data, said in (("a.txt", "a caf\xe9\n".encode("utf-16"), "a.txt:1: this is UTF-16"),
                             ("a.txt", b"a line\n" * 3000 + b"a caf\xe9\n", "a.txt:3001: byte 0xe9 is no UTF-8"),
                             ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}', "a.jsonl:2: byte 0xe9 is no UTF-8"),
                             ("a.jsonl", b'{"text": 5}', 'a.jsonl:1: no JSON object with text under "text"'),
                             ("a.jsonl", b'{"content": "a"}', r'a.jsonl:1: .*\(json_key\), but with content'),
                             ("a.jsonl", b"{'text': 'a'}", "a.jsonl:1: no JSON object on one line")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=said):
            list(read_documents(str(tmp_path / name), ["text"], 100))
    (tmp_path / "mac.txt").write_bytes(b"a line\ra line\r\ra line")
    assert list(read_documents(str(tmp_path / "mac.txt"), ["text"], 10)) == ["a line\na line", "a line"]


def test_bad_input_is_one_line(tmp_path, monkeypatch):
    """Broken: a user's mistake ends in a traceback, names neither file nor line, or leaves a folder behind."""
    for name, text in (("one.txt", "one text"), ("bad.jsonl", '{"text": "a"}\n["text"]\n'), ("zero.txt", "a\0b")):
        (tmp_path / name).write_text(text)
    for args, words in ((["nowhere"], "documents=nowhere: no such file"), ([tmp_path / "one.txt"], "fewer than two"),
                        ([tmp_path / "bad.jsonl"], 'bad.jsonl:2: no JSON object, but ["text"]; each line is a JSON '
                                                   'object with text under "text"'),
                        (["climbmix", "--val_share=1.0"], "val_share < 1"), (["x", "--text_file=x"], "another run")):
        done = prepare(tmp_path / "out", *args)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
        assert not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for name, words in (("zero.txt", "zero.txt: no text"), ("a.parquet", "pip install pyarrow")):
        with pytest.raises(ValueError, match=words):
            list(read_documents(str(tmp_path / name), ["text"], 0))
