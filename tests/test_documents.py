"""documents.py and prepare_documents.py: reading, splits, tokens, packing, downloads, bad input."""
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import documents
from documents import Documents, fetch_source, pack, read_documents
from files import sha256_file
from tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
WORDS = ["Straße", "river", "“quoted”", "\U0001f600", "it's", "12,345", "<|bos|>", "a",
         "walks\tfar", "..."]


def prepare(out, source, *args, ok=True):
    """Run prepare_documents.py with a vocabulary of 300 -> what it prints, or its line of error."""
    command = [sys.executable, "prepare_documents.py", f"--documents={source}",
               f"--out_dir={out}", "--vocab_size=300", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == (0 if ok else 2), done.stderr
    assert ok or done.stderr.count("\n") == 1, done.stderr
    return done.stdout if ok else done.stderr


def make_texts(n, seed=0):
    """Documents of 5 to 200 words."""
    rng = np.random.default_rng(seed)
    return [f"{i}: " + " ".join(rng.choice(WORDS, rng.integers(5, 200))) for i in range(n)]


def write_rows(path, texts):
    """Write a .jsonl of texts."""
    path.write_text("\n\n".join(json.dumps({"text": text}) for text in texts))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """300 documents of a .jsonl, two thirds of them twice, and two text files: (folder, texts)."""
    root, texts = tmp_path_factory.mktemp("documents"), make_texts(300)
    texts += texts[:200]
    texts += ["x" + char * 100_000 + "x" for char in "^ a\n\U0001f468"]
    texts += ["\u4f60\u597d" * 30_000, "e\u0301" * 500, "<|user_start|>hi<|assistant_end|>"]
    (root / "in").mkdir()
    write_rows(root / "in" / "a.jsonl", [*texts, "", None])
    (root / "in" / "b.md").write_text("# A title\n\nof a text\n")
    (root / "in" / "c.txt").write_text("\ufeffanother one\r\n", encoding="utf-8")
    (root / "in" / "d.csv").write_text("not,read")
    assert "{'empty': 2}" in prepare(root / "out", root / "in")
    return root / "out", texts + ["# A title\n\nof a text", "another one"]


def read_split(folder, split):
    """The documents of a split: decoded, and as ids."""
    tok = load_tokenizer(folder)
    tokens = np.fromfile(Path(folder, f"{split}.bin"), "<u2")
    docs = np.split(tokens, np.flatnonzero(tokens == tok.bos_id))[1:]
    return [tok.decode(ids[1:]) for ids in docs], [ids.tolist() for ids in docs]


def read_both(folder):
    """A Counter of the documents of both splits."""
    return Counter(read_split(folder, "train")[0] + read_split(folder, "val")[0])


@pytest.mark.case("B24")
def test_all_documents_come_back(made, tmp_path):
    """Broken: text is lost or changed, a special token's name is taken for one, runs of a character
    take minutes, a document is in both splits, val is empty, or --tokenizer is not used."""
    folder, texts = made
    train, val = read_split(folder, "train")[0], read_split(folder, "val")[0]
    assert Counter(train + val) == Counter(texts)
    assert not set(train) & set(val) and 1 <= len(val) < 25
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["train"]["documents"] == len(train)
    assert meta["train"]["bytes"] == len("".join(train).encode())
    assert set(os.listdir(folder)) == {"tokenizer.json", "train.bin", "val.bin", "meta.json"}
    write_rows(tmp_path / "a.jsonl", texts[:99])
    prepare(tmp_path / "out", tmp_path / "a.jsonl", f"--tokenizer={folder}")
    assert read_both(tmp_path / "out") == Counter(texts[:99])
    assert sha256_file(tmp_path / "out/tokenizer.json") == sha256_file(folder / "tokenizer.json")


def test_run_again(made, tmp_path):
    """Broken: a finished run is made twice, settings are mixed, or damaged tokens are kept or
    trained on."""
    out, source = tmp_path / "out", made[0].parent / "in"
    shutil.copytree(made[0], out)
    assert "up to date" not in prepare(out, source)  # other settings: out_dir
    time = (out / "train.bin").stat().st_mtime_ns
    assert "up to date" in prepare(out, source) and (out / "train.bin").stat().st_mtime_ns == time
    whole = (out / "val.bin").read_bytes()
    for wrong in (whole[:-1], whole + b"x"):
        (out / "val.bin").write_bytes(wrong)
        with pytest.raises(ValueError, match="val.bin is missing, or not of .* bytes: run prepare"):
            Documents(str(out), "val", 9)
    assert "up to date" not in prepare(out, source) and (out / "val.bin").read_bytes() == whole
    with pytest.raises(ValueError, match="has another tokenizer: run prepare_documents.py"):
        Documents(str(out), "val", 9, "cd" * 32)
    with pytest.raises(ValueError, match="fill no row of 1000000"):
        Documents(str(out), "val", 10**6)
    (out / "meta.json").unlink()
    with pytest.raises(ValueError, match="holds no finished documents: run prepare_documents.py"):
        Documents(str(out), "train", 8)


def test_text_is_cut_at_empty_lines(tmp_path):
    """Broken: a long text is one document, is cut in a paragraph, loses words, or one without
    empty lines is not cut."""
    text, path = "\n\n".join(["\n".join(["some words of a line"] * 5)] * 40), tmp_path / "a.txt"
    path.write_text(text)
    cut = list(read_documents(str(path), 250))
    assert "\n\n".join(cut) == text and {len(piece) for piece in cut} == {3 * 104 + 4, 104}
    assert list(read_documents(str(path), 10**9)) == [text]
    for text in ("word " * 2000, "a line\n" * 1400):
        path.write_text(text)
        cut = list(read_documents(str(path), 250))
        assert all(490 < len(piece) < 510 for piece in cut[:-1])
        assert "".join("".join(cut).split()) == "".join(text.split())


def pack_slowly(docs, width, n_buffer=1000):
    """The rows of documents (lists of ids) as pack()'s docstring says."""
    waiting, buffer, rows, row = list(enumerate(docs)), [], [], []
    while waiting or buffer:
        while waiting and len(buffer) < n_buffer:
            buffer.append(waiting.pop(0))
        left = width - len(row)
        fits = [item for item in buffer if len(item[1]) <= left]
        best = max if fits else min
        item = best(fits or buffer, key=lambda item: (len(item[1]), -item[0]))
        buffer.remove(item)
        row = row + item[1][:left]
        if len(row) == width:
            rows.append(row)
            row = []
    return rows


@pytest.mark.parametrize("n, width, n_buffer", [
    (500, 40, 50), (500, 200, 10), (300, 8, 1000), (60, 33, 1), (0, 9, 5)])
def test_packing(n, width, n_buffer):
    """Broken: a document that fits is cropped, a shorter one is taken, one is used twice, or a row
    is not full."""
    lengths = np.random.default_rng(n + width).geometric(0.04, n)
    starts = np.cumsum(lengths) - lengths
    docs = [list(range(start, start + size)) for start, size in zip(starts, lengths)]
    rows = [sum((list(range(*piece)) for piece in row), [])
            for row in pack(starts, lengths, width, n_buffer)]
    assert rows == pack_slowly(docs, width, n_buffer)


@pytest.mark.parametrize("width", [33, 500])
def test_rows(made, width):
    """Broken: a row is not what the files hold, begins without <|bos|>, an epoch has a row twice,
    or a count is wrong."""
    docs = read_split(made[0], "train")[1]
    data = Documents(str(made[0]), "train", width, sha256_file(made[0] / "tokenizer.json"))
    assert (data.n_docs, data.n_tokens) == (len(docs), sum(map(len, docs)))
    rows = data.rows(range(data.n_rows))
    assert rows.dtype == np.int64 and rows.tolist() == pack_slowly(docs, width)
    assert data.n_cropped == data.n_tokens - rows.size
    assert data.share == data.n_cropped / data.n_tokens
    n = data.n_rows // 4
    epochs = [[data.batch(i, 4, 7).tolist() for i in range(k * n, k * n + n)] for k in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1]
    assert not Counter(map(tuple, sum(epochs[0], []))) - Counter(map(tuple, rows.tolist()))


def test_public_source(made, tmp_path, monkeypatch):
    """Broken: HF_ENDPOINT or the mirror is not asked, at another address, a file comes twice, or
    the page of a proxy is taken for text."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "datasets/karpathy/climbmix-400b-shuffle/resolve/main"
    folder.mkdir(parents=True)
    for i in range(2):
        table = pyarrow.table({"text": [f"text {i}"]})
        parquet.write_table(table, folder / f"shard_0000{i}.parquet")
    (folder / "shard_00002.parquet").write_text("<html>log in first</html>")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", f"{url}/missing/")
        monkeypatch.setattr(documents, "MIRRORS", (url,))
        got = str(tmp_path / "got")
        fetch_source("climbmix", 1, got)
        (folder / "shard_00000.parquet").unlink()
        paths = fetch_source("climbmix", 2, got)
        with pytest.raises(ValueError, match="shard_00002.parquet is no parquet file"):
            fetch_source("climbmix", 3, got)
        server.shutdown()
    assert [list(read_documents(path, 9)) for path in paths] == [["text 0"], ["text 1"]]
    with pytest.raises(ValueError, match="n_files=6544: climbmix has 6543 files"):
        fetch_source("climbmix", 6544, got)


@pytest.mark.case("B23")
def test_parquet_of_any_writer(tmp_path):
    """Broken: row groups or nulls are lost, pandas' categories or polars' views are no strings, a
    column there twice or a file cut short is a traceback, or lists are taken for text."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts, path = make_texts(3000), str(tmp_path / "a.parquet")
    plain = pyarrow.array([*texts, None])
    large, view = plain.cast(pyarrow.large_string()), plain.cast(pyarrow.string_view())
    for column in (plain, large, view, plain.dictionary_encode(), large.dictionary_encode()):
        parquet.write_table(pyarrow.table({"text": column}), path, row_group_size=1024)
        assert list(read_documents(path, 9)) == [*texts, ""], column.type
    twice = pyarrow.table([plain, plain], names=["text", "text"])
    for table, said in ((twice, r"has text \(string\), text \(string\)"),
                        (pyarrow.table({"text": plain.cast(pyarrow.binary())}), r"text \(binary\)"),
                        (pyarrow.table({"Text": plain}), r"has Text \(string\)"),
                        (pyarrow.table({"text": [["a"]]}), r"text \(list<.*string>\)")):
        parquet.write_table(table, path)
        with pytest.raises(ValueError, match=f'a.parquet: needs one column "text" .*{said}'):
            list(read_documents(path, 0))
    os.truncate(path, os.path.getsize(path) - 100)
    with pytest.raises(ValueError, match="a.parquet: .*cut short"):
        list(read_documents(path, 0))


@pytest.mark.case("B18", "B19", "B23")
def test_folders_as_people_have_them(tmp_path):
    """Broken: what a Mac or a notebook left in a folder stops the run or is read twice, NOTES.TXT
    is left out, or Spark's folder of parts is no file."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder, texts = tmp_path / "in", make_texts(30)
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    (folder / "all.parquet").mkdir()
    for name, data in (("book.txt", texts[0]), ("NOTES.TXT", texts[1]),
                       (".ipynb_checkpoints/book.txt", texts[0]), ("._book.txt", "\0\5\x16\7"),
                       (".DS_Store", "\0\0Bud1"), ("all.parquet/_SUCCESS", "")):
        (folder / name).write_text(data, encoding="utf-8")
    parquet.write_table(pyarrow.table({"text": texts[2:]}), folder / "all.parquet/part-0.parquet")
    prepare(tmp_path / "out", f"{folder}/NOTES.TXT,{folder}")
    assert read_both(tmp_path / "out") == Counter(texts)
    prepare(tmp_path / "out", folder / "all.parquet")
    assert read_both(tmp_path / "out") == Counter(texts[2:])


@pytest.mark.case("B15", "B16", "B20")
def test_other_encodings(tmp_path):
    """Broken: a byte order mark or U+2028 is part of a document or cuts it, or UTF-16 or Latin-1
    is not named, or is learnt as U+FFFD."""
    texts = ["one\u2028two\u2029three\x85four", "half \ud83d a pair", None, "last"]
    lines = "\r\n".join(json.dumps({"text": text}) for text in texts)
    lines = lines.replace("\\u2028", "\u2028").replace("\\u0085", "\x85")
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    found = list(read_documents(str(tmp_path / "a.jsonl"), 9))
    assert found == [texts[0], "half ? a pair", "", "last"]
    for name, data, said in (
            ("a.txt", "a caf\xe9\n".encode("utf-16"), "a.txt:1: this is UTF-16"),
            ("a.txt", b"a line\n" * 3000 + b"a caf\xe9\n", "a.txt:3001: byte 0xe9 is no UTF-8"),
            ("a.txt", b"a\0b", "a.txt:1: no text"),
            ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}', "a.jsonl:2: byte 0xe9 is no UTF-8"),
            ("a.jsonl", b'{"text": 5}', 'a.jsonl:1: "text" is no string'),
            ("a.jsonl", b'{"content": "a"}', "a.jsonl:1: .* missing among content"),
            ("a.jsonl", b"{'text': 'a'}", "a.jsonl:1: no JSON object on one line")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=said):
            list(read_documents(str(tmp_path / name), 100))


def test_bad_input_is_one_line(made, tmp_path, monkeypatch):
    """Broken: a user's mistake ends in a traceback, names neither file nor line, or makes a folder
    that training takes for whole."""
    (tmp_path / "one.txt").write_text("one text")
    write_rows(tmp_path / "bad.jsonl", ["a"])
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n["text"]\n')
    for source, args, said in (
            ("nowhere", [], "documents=nowhere: no such file"), ("", [], "documents names files"),
            (tmp_path / "one.txt", [], "lower vocab_size"),
            (tmp_path / "one.txt", [f"--tokenizer={made[0]}"], "fewer than two documents"),
            (tmp_path / "bad.jsonl", [], 'bad.jsonl:2: no JSON object, but ["text"]'),
            ("climbmix", ["--n_files=0"], "climbmix has 6543 files"),
            (tmp_path / "one.txt", ["--doc_chars=0"], "doc_chars"),
            (tmp_path / "one.txt", ["--tokenizer=nowhere"], "nowhere")):
        assert said in prepare(tmp_path / "out", source, *args, ok=False)
        assert not (tmp_path / "out" / "meta.json").exists()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        list(read_documents("a.parquet", 0))
