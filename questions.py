"""Questions about a recording: tasks, how each is asked, and options to choose from.

A task asks for one property of a recording, whose labels are {task: answer}, as in
{"pitch": "low", "sentence": "the bird sings"}. assets/questions.toml lists the tasks.
All is English until write_rows() translates it.
"""
import os
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from files import own_file, read_lines, write_jsonl
from language import Language
from tokenizer import multiple_choice

QUESTIONS = "assets/questions.toml"
SPOKEN = "assets/spoken.txt"
SMALL_TALK = "assets/chat.txt"
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
NOBODY = "nobody is speaking"
NO_RECORDING = "send me a recording first"
VOICE_TASKS = "person style emotion voice accent sex pair pitch rate quality".split()
CHOICE_SHARE = 0.6  # share of the questions with options that list them


class Task(NamedTuple):
    train: list         # of str: questions of training
    weight: float = 1   # how often it is asked in training, to others' 1
    n_bench: int = 0    # its questions in the bench, of 25 in its cell
    cell: str = ""      # the bench's group of tasks
    bench: tuple = ()   # questions that no training sees
    labels: tuple = ()  # all answers, where they are a closed set

    @property
    def texture(self):
        """Whether it is about a recording's sound, not its words."""
        return bool(self.labels) and self.cell != "spoken content"


@cache
def read_tasks(code="en"):
    """Return {name: Task}; code: of another language: none about a clip's words."""
    try:
        tables = tomllib.loads(Path(own_file(QUESTIONS)).read_text(encoding="utf-8"))
        tasks = {name: Task(**fields) for name, fields in tables.items()}
    except (ValueError, TypeError) as e:  # no TOML; another field, or one missing
        raise ValueError(f"{QUESTIONS}: {e}") from None
    return {name: task for name, task in tasks.items() if code == "en" or task.texture}


@cache
def read_answers():
    """Return {line: answer} of spoken.txt: numbers, orders and short questions."""
    return read_columns(own_file(SPOKEN))


def read_columns(path):
    return dict(line.split(" | ", 1) for line in read_lines(path) if " | " in line)


@cache
def read_small_talk(code="en"):
    """Return chat.txt's blocks: [{"|": lines of training, "?": held-out lines, " ": answers}].

    code: of a language, whose own chat.<code>.txt is read if it is there.
    """
    path, blocks = own_file(f"assets/chat.{code}.txt"), []
    for line in read_lines(path if os.path.isfile(path) else own_file(SMALL_TALK)):
        kind = line[:1] if line[:1] in ("?", "#", " ") else "|"
        if kind == "|" and line:
            blocks.append({"|": [], "?": [], " ": []})
        if kind != "#" and line:
            blocks[-1][kind] += [part.strip() for part in line.lstrip("? ").split("|")]
    return blocks


def texts_of(code):
    """Return the paths of all texts; those of another language must be there."""
    own = [f"assets/{name}.{code}.txt" for name in ("questions", "chat") if code != "en"]
    return [QUESTIONS, SPOKEN, SMALL_TALK, *own]


@cache
def read_table(code):
    """Return {English line: translation} of questions.<code>.txt, {} if it is not there."""
    path = own_file(f"assets/questions.{code}.txt")
    if not os.path.isfile(path):
        return {}
    table, lines = read_columns(path), [NOBODY, NO_RECORDING, multiple_choice("", [])[1:]]
    for task in read_tasks().values():
        lines += [*task.train, *task.bench, *task.labels]
    for line in lines:
        if line not in table:
            raise ValueError(f"{path}: add a line '{line} | ...'")
    return table


def translate(text, code):
    """Return a str in a language, or a list or dict of such; lines that are none of ours stay."""
    if isinstance(text, list):
        return [translate(each, code) for each in text]
    if isinstance(text, dict):
        return {name: translate(each, code) for name, each in text.items()}
    return "\n".join(read_table(code).get(line, line) for line in text.split("\n"))


def pick(values, rng):
    return values[rng.integers(len(values))]


def spoken_task(text):
    """Return the task of a line of spoken.txt."""
    if text in NUMBERS:
        return "digit"
    return "command" if text in read_tasks()["command"].labels else "answer"


def long_words(text, code):
    """Return a text's words of over 3 letters; all characters of a language without spaces."""
    language = Language(code)
    return [word for word in language.words(text)
            if (len(word) > 3 if language.space else not word.isascii())]


def word_labels(text, rng, code="en"):
    """Return {task: answer} of what can be asked about a sentence's words."""
    words = Language(code).words(text)
    labels = {"sentence": text, "first": words[0], "last": words[-1]}
    if long := [word for word in long_words(text, code) if words.count(word) == 1]:
        labels["word"] = pick(long, rng)
    if 3 <= len(words) <= 12:
        labels["n_words"] = NUMBERS[len(words)]
    return labels


# ---- one question

def said_in(texts, code="en"):
    """Return {"sentences": texts, "words": their longer words, repeated}, for wrong options.

    These are as frequent as right ones: text alone can't tell them apart.
    """
    sentences = sorted(set(texts))
    words = [word for text in sentences for word in long_words(text, code)]
    if not words:
        raise ValueError(f"no word to ask about: are texts like '{sentences[0]}' in {code}?")
    return {"sentences": sentences, "words": words, "code": code}


def some_of(said, rng, own=""):
    """Draw 6 sentences and 24 words of said_in(); "own": the words of the text `own`."""
    sentences = [said["sentences"][i] for i in rng.integers(len(said["sentences"]), size=6)]
    words = [said["words"][i] for i in rng.integers(len(said["words"]), size=24)]
    own = Language(said["code"]).words(own)
    return said | {"sentences": sentences, "words": words, "own": own}


def options_for(task, answer, rng, said):
    """Return four options, the answer among them, or None; said: what some_of() returns."""
    labels = read_tasks()[task].labels
    answers = read_answers()
    if task == "sentence":
        labels = list(answers) if answer in answers else said["sentences"]
    elif task in ("word", "first", "last"):
        labels = [word for word in said["words"] if word not in said["own"]]
        if not long_words(answer, said["code"]):  # the others are longer: it would stand out
            labels = []
    others = [label for label in dict.fromkeys(labels) if label != answer]
    if len(others) < 3 or answer == NOBODY and NOBODY not in labels:
        return None
    options = [answer, *(others[i] for i in rng.choice(len(others), 3, replace=False))]
    return [options[i] for i in rng.permutation(4)]


def ask(task, answer, rng, said):
    """Return [task, question, answer]; None where a word's question has no options."""
    ways = read_tasks()[task].train
    question = pick(ways, rng)
    options = options_for(task, answer, rng, said)
    if task == "word" and not options:
        return None
    if options and (task == "word" or rng.uniform() < CHOICE_SHARE):
        question = multiple_choice(question, options)
    return [task, question, answer]


def translate_row(row, code):
    """Return a row of JSON whose questions and answers are in a language."""
    fields = [name for name in ("labels", "question", "options", "answer") if name in row]
    row = row | {name: translate(row[name], code) for name in fields}
    if "turns" in row:
        row["turns"] = [[task, *translate(texts, code)] for task, *texts in row["turns"]]
    return row


def write_rows(out_dir, files, code):
    """Write {file name: rows of JSON} in a language -> (file names, counts) for make_folder()."""
    for name, rows in files.items():
        write_jsonl(f"{out_dir}/{name}", [translate_row(row, code) for row in rows])
    return list(files), {name: len(rows) for name, rows in files.items()}
