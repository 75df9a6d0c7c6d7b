"""prepare_text.py on its real command line: the grammar's size and sentences, splits, reruns, text files, bad input."""
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPLITS = ("train", "val", "test")


def prepare(out, *args, **env):
    """Run prepare_text.py into `out`; returns the finished process."""
    command = [sys.executable, str(ROOT / "prepare_text.py"), f"--out_dir={out}", *args]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=120)


def read(out):
    """Return ({split: list of sentences}, meta.json) of a folder."""
    texts = {split: (Path(out) / f"{split}.txt").read_text().splitlines() for split in SPLITS}
    return texts, json.loads((Path(out) / "meta.json").read_text())


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The repository's own grammar, 20,000 sentences."""
    out = tmp_path_factory.mktemp("text")
    done = prepare(out, "config/quick_text.py", f"--out_dir={out}")
    assert done.returncode == 0, done.stderr
    return out, *read(out)


def language(tmp_path, grammar, *args):
    """Every sentence of a small grammar, and its meta.json."""
    path = tmp_path / "small.txt"
    path.write_text(grammar)
    done = prepare(tmp_path / "small", f"--grammar={path}", "--min_words=1", *args)
    assert done.returncode == 0, done.stderr
    texts, meta = read(tmp_path / "small")
    return sorted(sum(texts.values(), [])), meta


def test_grammar_is_rich_enough(text):
    """A grammar too small or too repetitive: a language model would guess the words without listening."""
    _, texts, meta = text
    assert meta["frames"] >= 300 and meta["words"] >= 2000
    assert 35 < meta["perplexity"] < 75 and meta["perplexity"] == pytest.approx(math.exp(meta["entropy"]))
    assert meta["counts"] == {"train": 20_000, "val": 200, "test": 400} == {s: len(texts[s]) for s in SPLITS}
    assert meta["mean_words"] == pytest.approx(meta["grammar_words"], abs=0.2)
    assert meta["oov"] < 60


def test_sentences_are_clean(text):
    """A stray character, an empty line, a wrong length or a wrong article reaches speech and transcripts."""
    _, texts, _ = text
    for sentence in sum(texts.values(), []):
        assert re.fullmatch(r"[a-z']+( [a-z']+){2,13}", sentence), sentence
        assert not re.search(r"\ba ([aio](?!ne)|e(?!u)|unc|umb)|\ban [^aeiouh]|\ban (uni|use)", sentence), sentence


def test_splits_are_disjoint_whatever_the_seed(text, tmp_path):
    """A held-out sentence of one run in the training text of another."""
    _, texts, _ = text
    assert len(set(sum(texts.values(), []))) == sum(map(len, texts.values()))
    prepare(tmp_path / "b", "--seed=2", "--n_train=5000", "--n_val=0", "--n_test=0")
    prepare(tmp_path / "lines", f"--text_file={tmp_path / 'b' / 'train.txt'}", "--one_per_line=True", "--n_val=9")
    other, _ = read(tmp_path / "b")
    assert not set(other["train"]) & set(texts["val"] + texts["test"]) and other["train"] != texts["train"]
    assert {s: len(v) for s, v in read(tmp_path / "lines")[0].items()} == {"train": 5_000, "val": 0, "test": 0}


def test_same_settings_same_bytes_and_no_second_run(text, tmp_path):
    """Text that changes with the hash seed of Python, or stale text under new settings."""
    out, texts, _ = text
    args = ("config/quick_text.py", f"--out_dir={tmp_path}")
    prepare(tmp_path, *args, PYTHONHASHSEED="7")
    assert all((out / f"{s}.txt").read_bytes() == (tmp_path / f"{s}.txt").read_bytes() for s in SPLITS)
    before = (tmp_path / "train.txt").stat().st_mtime_ns
    assert "up to date" in prepare(tmp_path, *args).stdout
    assert (tmp_path / "train.txt").stat().st_mtime_ns == before
    assert "up to date" not in prepare(tmp_path, *args, "--limit=8").stdout  # a new setting
    assert {len(v) for v in read(tmp_path)[0].values()} == {8}
    (tmp_path / "val.txt").write_text("cut short\n")
    assert "up to date" not in prepare(tmp_path, *args, "--limit=8").stdout  # a damaged file
    assert len(read(tmp_path)[0]["val"]) == 8 and not list(tmp_path.glob("*.tmp"))


def test_every_construct_of_the_format(tmp_path):
    """Slots, forms, brackets, weights or articles that expand into something else than the file's top says."""
    found, meta = language(tmp_path, """# a comment
~ child .pl children | go .ed went .en gone
thing: apple | box
    child   # a line more
verb: go | stop | try
- see $thing.pl
- a [very] $thing
- $who's (old | new) $thing.pl saw a uniform
- $verb $verb.s $verb.ed $verb.en $verb.ing *2
who: $name
name: kim
""")
    forms = [("go", "goes", "went", "gone", "going"), ("stop", "stops", "stopped", "stopped", "stopping"),
             ("try", "tries", "tried", "tried", "trying")]
    plural = ["apples", "boxes", "children"]
    expected = {f"see {t}" for t in plural} | {"an apple", "a box", "a child"}
    expected |= {f"a very {t}" for t in ("apple", "box", "child")}
    expected |= {f"kim's {a} {t} saw a uniform" for a in ("old", "new") for t in plural}
    expected |= {" ".join((a[0], b[1], c[2], d[3], e[4]))
                 for a in forms for b in forms for c in forms for d in forms for e in forms}
    assert set(found) == expected and len(found) == len(expected) and meta["frames"] == 4


def test_entropy_is_exact(tmp_path):
    """A figure that claims more surprise than the text holds; 5 nats/word would be 148, not 50."""
    _, meta = language(tmp_path, "word: a *3 | $b\nb: c | d\n- $word x\n- [y] $word *2\n")
    word = -(3 / 5 * math.log(3 / 5) + 2 / 5 * math.log(1 / 5))  # the bare $b joins as two alternatives
    frame = -(1 / 3 * math.log(1 / 3) + 2 / 3 * math.log(2 / 3))
    words = 1 / 3 * 2 + 2 / 3 * 1.5
    assert meta["grammar_words"] == pytest.approx(words)
    assert meta["entropy"] == pytest.approx((frame + word + 2 / 3 * math.log(2)) / words)


@pytest.mark.parametrize("line, message", [
    ("- hello $nobody there", "bad.txt:3: $nobody"), ("- hello [big there", "bad.txt:3: unbalanced"),
    ("- hello big) there", "bad.txt:3: unbalanced"), ("x: one || two", "bad.txt:3: an empty"),
    ("x: one $y\ny: two | [$x]", "bad.txt:3: the rule 'x' contains itself"), ("x: one\nx: two", "bad.txt:4: rule 'x'"),
    ("- Hello there", "bad.txt:3: 'Hello'"), ("- the $word.er", "bad.txt:3: '.er'"), ("- *2 words", "bad.txt:3: '*2'"),
    ("hello there", "bad.txt:3: write"), ("~ eat ate", "bad.txt:3: write")])
def test_bad_grammar_names_the_line(tmp_path, line, message):
    """A mistake in the grammar that ends in a traceback, or in text."""
    path = tmp_path / "bad.txt"
    path.write_text(f"word: book | pen\n- $word $word.pl\n{line}\n- the $x is here\nx2: $x\n" if line[0] == "x"
                    else f"word: book | pen\n- $word $word.pl\n{line}\n")
    done = prepare(tmp_path / "out", f"--grammar={path}")
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("args, message", [
    (["--grammar=nowhere.txt"], "nowhere.txt"), (["--text_file=nowhere.txt"], "nowhere.txt"),
    (["--min_words=9", "--max_words=8"], "min_words"), (["--n_train=many"], "n_train")])
def test_bad_settings_are_one_line(tmp_path, args, message):
    """A user's mistake that ends in a traceback or in a half-written folder."""
    done = prepare(tmp_path / "out", *args)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_text_file(tmp_path):
    """Prose cut in the wrong places, digits or quotes in the sentences, or sentences doubled."""
    (tmp_path / "book.txt").write_text("""CHAPTER ONE

Mr. Smith doesn\u2019t like caf\u00e9s\u2014never did. \u201cGo away now!\u201d he said to
the well-known man. He was 42 years old. Too short. He\nsaid: 'Go away again'. It costs $ a lot of money.

Mr. Smith doesn't like cafes -- never did.
""", encoding="utf-8")
    (tmp_path / "keys.txt").write_text("12-34-0001 GO DO YOU HEAR\n12-34-0002 IT'S ANOTHER LINE\n")
    done = prepare(tmp_path / "out", f"--text_file={tmp_path / 'book.txt'}")
    assert done.returncode == 0, done.stderr
    texts, meta = read(tmp_path / "out")
    assert sorted(sum(texts.values(), [])) == ["go away now", "he said go away again", "he said to the well known man",
                                               "he was forty two years old", "mr smith doesn't like cafes never did"]
    assert meta["dropped"] == {"of another length": 2, "a symbol without a spoken form": 1, "seen before": 1}
    assert meta["frames"] == 0 and meta["perplexity"] is None
    assert prepare(tmp_path / "keys", f"--text_file={tmp_path / 'keys.txt'}", "--one_per_line=True").returncode == 0
    assert sorted(sum(read(tmp_path / "keys")[0].values(), [])) == ["go do you hear", "it's another line"]
    done = prepare(tmp_path / "none", f"--text_file={tmp_path / 'keys.txt'}", "--min_words=14")
    assert done.returncode == 2 and "--one_per_line=True" in done.stderr


def test_folders_json_and_exclusion(tmp_path):
    """Dialogue in JSON is not read, a book takes more than its share, or a test sentence stands in the LM's text."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "talk.json").write_text(json.dumps(
        [{"turns": [{"utterance": "Is \"this\" heard?\nYes, it is."}, {"other": "not this one"}]}], indent=1))
    halves = "The first half ends.\n\n" * 60, "The last part ends. " * 60
    (tmp_path / "in" / "book.md").write_text("# Title of it\n\n" + "Now comes the middle. ".join(halves))
    (tmp_path / "list.jsonl").write_text('{"text": "YES, IT IS"}\n')
    settings = f"--text_file={tmp_path}/in", "--json_key=text,utterance", f"--exclude={tmp_path}/list.jsonl"
    done = prepare(tmp_path / "out", *settings)
    assert done.returncode == 0, done.stderr
    texts, meta = read(tmp_path / "out")
    assert sorted(sum(texts.values(), [])) == ["is this heard", "now comes the middle", "the first half ends",
                                               "the last part ends", "title of it"]
    assert meta["dropped"]["excluded"] == 1
    prepare(tmp_path / "middle", *settings, "--file_kb=1")
    assert "title of it" not in sum(read(tmp_path / "middle")[0].values(), [])
    prepare(tmp_path / "whole", f"--text_file={tmp_path}/in/deep, {tmp_path}/in/book.md", "--file_kb=1")  # named itself
    assert "title of it" in sum(read(tmp_path / "whole")[0].values(), [])
    for n, text in enumerate(("one long line it is. " * 99, "a list of lines\n" * 99)):  # no empty line to cut at
        (tmp_path / f"{n}").mkdir()
        (tmp_path / f"{n}" / "a.txt").write_text(text)
        prepare(tmp_path / f"{n}", f"--text_file={tmp_path}/{n}", "--file_kb=1")
        assert sum(read(tmp_path / f"{n}")[0].values(), []) == [text[:15 if n else 19]]
    (tmp_path / "list.jsonl").write_text('{"text": "yes"}\nno json\n')
    for args in (settings, [f"--text_file={tmp_path}/nowhere"]):
        done = prepare(tmp_path / "no", *args)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert "list.jsonl:2" in done.stderr or "nowhere" in done.stderr
