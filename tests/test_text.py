"""prepare_text.py on its real command line: sentences, splits, reruns, text files, bad input."""
import json
import re
from itertools import product
from pathlib import Path

import pytest

from commands import run, write_file, write_rows

SPLITS = ("train", "val", "test")


def prepare(out, *args, ok=True):
    """Run prepare_text.py -> ({split: sentences}, meta.json), or the line of error."""
    said = run("prepare_text.py", f"--out_dir={out}", *args, ok=ok)
    if not ok:
        return said
    texts = {split: Path(out, f"{split}.txt").read_text().splitlines() for split in SPLITS}
    return texts, json.loads(Path(out, "meta.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """20,000 sentences of the repository's own grammar -> (texts, meta.json)."""
    out = tmp_path_factory.mktemp("text")
    return prepare(out, "--n_train=20000", "--n_val=200", "--n_test=400")


def test_grammar_is_rich_and_its_sentences_clean(made):
    """Broken: the LM guesses without listening, or a stray character or wrong article is spoken."""
    texts, meta = made
    counts = {split: len(lines) for split, lines in texts.items()}
    assert meta["counts"] == counts == {"train": 20_000, "val": 200, "test": 400}
    sentences = sum(texts.values(), [])
    assert len(set(" ".join(sentences).split())) >= 2000
    assert len(set(sentences)) == len(sentences)
    wrong = re.compile(r"\ba ([aio](?!ne)|e(?!u)|unc|umb)|\ban [^aeiouh]|\ban (uni|use)")
    for sentence in sentences:
        assert re.fullmatch(r"[a-z']+( [a-z']+){2,13}", sentence), sentence
        assert not wrong.search(sentence), sentence


def test_splits_are_those_of_any_run(made, tmp_path):
    """Broken: a held-out sentence of one run is in the training text of another."""
    texts, _ = made
    lines = [*texts["val"], *texts["train"][:900], *texts["test"]]
    mixed = write_file(tmp_path / "mixed.txt", "\n\n".join(lines))
    again, _ = prepare(tmp_path / "out", f"--text_file={mixed}")
    assert again == {**texts, "train": texts["train"][:900]}


def test_every_construct_of_the_format(tmp_path):
    """Broken: a construct expands otherwise than the format says, or Python's hash seed counts."""
    grammar = write_file(tmp_path / "small.txt", """# a comment
~ child .pl children | go .ed went .en gone
thing: apple | box
    child   # a line more
verb: go | stop | try
- see (the | [very] big) $thing.pl
- is it a $any
any: $thing *4 | $verb.ing thing | $animal
animal: cat | dog
- $who's box was a uniform
- $verb $verb.s $verb.ed $verb.en *2
who: $name
name: kim
""")
    texts, _ = prepare(tmp_path / "out", f"--grammar={grammar}")
    forms = [("go", "stop", "try"), ("goes", "stops", "tries"), ("went", "stopped", "tried"),
             ("gone", "stopped", "tried")]
    expected = {" ".join(words) for words in product(*forms)} | {"kim's box was a uniform"}
    expected |= {f"see {how} {what}" for how in ("the", "big", "very big")
                 for what in ("apples", "boxes", "children")}
    expected |= {f"is it {what}" for what in ("an apple", "a box", "a child", "a going thing",
                                              "a stopping thing", "a trying thing", "a cat",
                                              "a dog")}
    assert sorted(sum(texts.values(), [])) == sorted(expected)
    drawn = [line.split()[-1] for line in texts["train"] if line[:5] == "is it"]
    assert drawn[:5] == ["box", "apple", "thing", "child", "dog"]  # what the seed draws


@pytest.mark.parametrize("line, message", [
    ("- hello $nobody there", "the grammar has no rule 'nobody'"),
    ("- hello [big there", "bad.txt:3: '[big'"), ("- *2 words", "bad.txt:3: '*2'"),
    ("x: one || two", "bad.txt:3: ''"),
    ("x: one $y\ny: two | [$x]\n- a $x", "maximum recursion depth"),
    ("x: [one]\n- the $x.pl", ".pl needs a word")])
def test_bad_grammar(tmp_path, line, message):
    """Broken: a mistake in the grammar ends in a traceback, or in text."""
    path = write_file(tmp_path / "bad.txt", f"word: book | pen\n- $word $word.pl\n{line}\n")
    assert message in prepare(tmp_path / "out", f"--grammar={path}", ok=False)
    assert not list(tmp_path.glob("out/*.txt"))


def test_prose(tmp_path):
    """Broken: prose is cut in wrong places, digits or quotes stay, or a sentence is there twice."""
    book = write_file(tmp_path / "book.txt", """CHAPTER ONE

Mr. Smith doesn\u2019t like caf\u00e9s\u2014never did. \u201cGo away now!\u201d he said to
the well-known man. He was 42 years old. Too short. He\nsaid: 'Go away again'. It costs $ a lot.

Mr. Smith doesn't like cafes -- never did.
""")
    texts, meta = prepare(tmp_path / "out", f"--text_file={book}")
    assert sorted(sum(texts.values(), [])) == [
        "chapter one", "go away now", "he said go away again", "he said to the well known man",
        "he was forty two years old", "mr smith doesn't like cafes never did", "too short"]
    assert meta["dropped"] == {"a symbol without a spoken form": 1, "seen before": 1}
    lines = write_file(tmp_path / "list.txt", "a line\n" * 9)
    said = prepare(tmp_path / "none", f"--text_file={lines}", ok=False)
    assert "sentences end at . ! ? or an empty line" in said


def test_folders_lists_and_exclusion(tmp_path):
    """Broken: a list isn't read, a book takes more than its share, or a test sentence is learnt."""
    rows = [{"text": "Is \"this\" heard?\nYes, it is."}, {"text": "A second row here"}]
    write_rows(tmp_path / "in/deep/talk.jsonl", rows)
    book = ["# Title of it", *["The first half ends."] * 60, "Now comes the middle.",
            *["The last part ends. It does."] * 40]
    (tmp_path / "in/book.md").write_text("\n\n".join(book))
    known = tmp_path / "list.jsonl"
    args = f"--text_file={tmp_path}/in", "--exclude=" + write_rows(known, [{"text": "YES, IT IS"}])
    expected = ["a second row here", "is this heard", "it does", "now comes the middle",
                "the first half ends", "the last part ends", "title of it"]
    for more, n in ((), 7), (["--file_kb=1"], 6):
        texts, _ = prepare(tmp_path / str(n), *args, *more)
        assert sorted(sum(texts.values(), [])) == expected[:n]
    known.write_text('{"text": "yes"}\nno json\n')
    assert "list.jsonl:2" in prepare(tmp_path / "no", *args, ok=False)
    assert "nowhere" in prepare(tmp_path / "none", "--grammar=nowhere", ok=False)
    assert not (tmp_path / "none").exists()
