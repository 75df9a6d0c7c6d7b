"""documents.py and prepare_documents.py: reading, splits, tokens, rows, bad input."""
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from commands import raises, run, write_file, write_rows
from documents import Documents, read_documents
from files import sha256_file
from tokenizer import load_tokenizer

WORDS = ["Straße", "river", "“quoted”", "\U0001f600", "it's", "12,345", "<|bos|>", "a",
         "walks\tfar", "..."]


def prepare(out, source, *args, **options):
    """Run prepare_documents.py with a vocabulary of 300."""
    return run("prepare_documents.py", f"--documents={source}", f"--out_dir={out}",
               "--vocab_size=300", *args, **options)


def make_texts(n, seed=0):
    """Documents of 5 to 200 words."""
    rng = np.random.default_rng(seed)
    return [f"{i}: " + " ".join(rng.choice(WORDS, rng.integers(5, 200))) for i in range(n)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """300 documents of a .jsonl, two thirds of them twice, and two text files: (folder, texts)."""
    root, texts = tmp_path_factory.mktemp("documents"), make_texts(300)
    texts += texts[:200] + ["x" + char * 100_000 + "x" for char in "^ a\n\U0001f468"]
    texts += ["\u4f60\u597d" * 30_000, "e\u0301" * 500, "<|user_start|>hi<|assistant_end|>"]
    write_file(root / "in/b.md", "# A title\n\nof a text\n")
    write_file(root / "in/c.txt", "\ufeffanother one\r\n")
    write_rows(root / "in/a.jsonl", [{"text": text} for text in (*texts, "", None)])
    assert "{'empty': 2}" in prepare(root / "out", root / "in")
    return root / "out", texts + ["# A title\n\nof a text", "another one"]


def read(folder, *splits):
    """The documents of splits, decoded, each after its <|bos|>."""
    tok, docs = load_tokenizer(folder), []
    for split in splits:
        tokens = np.fromfile(Path(folder, f"{split}.bin"), "<u2")
        docs += np.split(tokens, np.flatnonzero(tokens == tok.bos_id))[1:]
    return [tok.decode(ids[1:]) for ids in docs]


@pytest.mark.case("B24")
def test_all_documents_come_back(made, tmp_path):
    """Broken: text changes, a saved tokenizer isn't used, splits share a document, val is empty."""
    folder, texts = made
    train, val = read(folder, "train"), read(folder, "val")
    assert Counter(train + val) == Counter(texts)
    assert not set(train) & set(val) and 1 <= len(val) < 25
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["train"]["documents"] == len(train)
    assert meta["train"]["bytes"] == len("".join(train).encode())
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in texts[:99]])
    prepare(tmp_path / "out", tmp_path / "a.jsonl", f"--tokenizer={folder}")
    assert sorted(read(tmp_path / "out", "train", "val")) == sorted(texts[:99])
    assert sha256_file(tmp_path / "out/tokenizer.json") == sha256_file(folder / "tokenizer.json")


def test_text_is_cut_at_empty_lines(tmp_path):
    """Broken: a long text is cut in a paragraph, loses words, or without empty lines is not cut."""
    text, path = "\n\n".join(["\n".join(["some words of a line"] * 5)] * 40), tmp_path / "a.txt"
    path.write_text(text)
    cut = list(read_documents(str(path), 250))
    assert "\n\n".join(cut) == text and {len(piece) for piece in cut} == {3 * 104 + 4, 104}
    path.write_text("a line\n" * 1400)
    cut = list(read_documents(str(path), 250))
    assert all(490 < len(piece) < 510 for piece in cut[:-1])
    assert "\n".join(cut).split() == ["a", "line"] * 1400


def test_rows(made):
    """Broken: rows lose or repeat tokens, an epoch has a row twice, or all epochs are alike."""
    tokens, width = np.fromfile(made[0] / "train.bin", "<u2"), 40
    docs = Documents(made[0], "train", width)
    rows = docs.rows(np.arange(docs.n_rows))
    assert docs.n_tokens == len(tokens) == rows[:, 1:].size + 1 + docs.n_cropped
    assert docs.n_cropped < width - 1
    assert docs.n_docs == (tokens == tokens[0]).sum()
    stream = np.concatenate([rows[0, :1], *rows[:, 1:]])  # of two rows one token is the same
    assert (stream == tokens[:len(stream)]).all() and rows.dtype == np.int64
    n = docs.n_rows // 8
    epochs = [np.concatenate([docs.batch(k * n + i, 8, 3) for i in range(n)]).tolist()
              for k in (0, 1)]
    assert epochs[0] != epochs[1]
    assert not Counter(map(tuple, epochs[0])) - Counter(map(tuple, rows.tolist()))
    assert Documents(made[0], "train", 10**9).rows([0]).tolist() == [tokens.tolist()]


@pytest.mark.case("B23")
def test_parquet_of_any_writer(tmp_path):
    """Broken: nulls or row groups are lost, a file cut short is a traceback."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts, path = make_texts(3000), str(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"text": [*texts, None]}), path, row_group_size=1024)
    assert list(read_documents(path, 9)) == [*texts, ""]
    os.truncate(path, os.path.getsize(path) - 100)
    raises("a.parquet: .*cut short", list, read_documents(path, 9))


@pytest.mark.case("B16", "B18", "B19")
def test_files_as_people_have_them(tmp_path):
    """Broken: a file is read twice, or a system's; NOTES.TXT or a link isn't; U+2028 cuts a row."""
    folder, texts = tmp_path / "in", make_texts(30)
    for name in ("in/._b.txt", "in/.ipynb_checkpoints/b.txt", "in/__MACOSX/b.txt", "in/d.pdf",
                 "parts/.part-0.jsonl"):
        write_file(tmp_path / name, "not read")
    (folder / "round").symlink_to(folder, target_is_directory=True)
    (folder / "all.jsonl").symlink_to(tmp_path / "parts", target_is_directory=True)
    write_file(folder / "NOTES.TXT", texts[1])
    write_rows(folder / "all.jsonl/part-0.JSONL", [{"text": text} for text in texts[2:]])
    lines = [json.dumps({"text": "one\u2028two"}, ensure_ascii=False), '{"text": "half \\ud83d"}']
    (folder / "a.jsonl").write_text("\r\n".join(lines), encoding="utf-8")
    prepare(tmp_path / "out", f"{folder}/NOTES.TXT,{folder}")
    wanted = [*texts[1:], "one\u2028two", "half ?"]
    assert sorted(read(tmp_path / "out", "train", "val")) == sorted(wanted)
    for line, said in (('{"text": 5}', '"text" is no string'), ('{"no": "a"}', "not among no")):
        path = write_file(tmp_path / "a.jsonl", line)
        raises(f"a.jsonl:1: .*{said}", list, read_documents(str(path), 100))


def test_bad_input_is_one_line(made, tmp_path):
    """Broken: a user's mistake ends in a traceback, or damaged tokens are trained on."""
    one = write_file(tmp_path / "one.txt", "one text")
    bad = write_file(tmp_path / "bad.jsonl", '{"text": "a"}\n["text"]\n')
    for said, source, *args in (
            ("documents=nowhere: no such file", "nowhere"), ("documents must name files", ""),
            ("fewer than two documents", one, f"--tokenizer={made[0]}"),
            ("nowhere", one, "--tokenizer=nowhere"), ("vocab_size=300: these texts", one),
            ('bad.jsonl:2: no JSON object, but ["text"]', bad)):
        assert said in prepare(tmp_path / "out", source, *args, ok=False)
    cut = shutil.copytree(made[0], tmp_path / "cut")
    os.truncate(cut / "val.bin", 9)
    for said, args in (("holds no finished documents", (tmp_path / "out", "val", 9)),
                       ("val.bin is not of .* bytes.: run prepare", (cut, "val", 9))):
        raises(said, Documents, *args)
