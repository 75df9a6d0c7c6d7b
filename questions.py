"""Questions about a recording: tasks, how each is asked, and options to choose from.

A task asks for one property of a recording, whose labels are {task: answer}, as in
{"pitch": "low", "sentence": "the bird sings"}. assets/questions.toml lists the tasks.
"""
from functools import cache
from typing import NamedTuple

from files import own_file, read_lines, read_toml, write_jsonl
from tokenizer import multiple_choice

QUESTIONS = "assets/questions.toml"
SPOKEN = "assets/spoken.txt"
SMALL_TALK = "assets/chat.txt"
TEXTS = (SPOKEN, SMALL_TALK)
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
NOBODY = "nobody is speaking"
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
def read_tasks():
    """Return {name: Task}."""
    try:
        return {name: Task(**fields) for name, fields in read_toml(QUESTIONS).items()}
    except (ValueError, TypeError) as e:  # no TOML; another field, or one missing
        raise ValueError(f"{QUESTIONS}: {e}") from None


@cache
def read_answers():
    """Return {line: answer} of spoken.txt: numbers, orders and short questions."""
    lines = read_lines(own_file(SPOKEN))
    return dict(line.split(" | ", 1) for line in lines if " | " in line)


@cache
def read_small_talk():
    """Return chat.txt's blocks: [{"|": training's lines, "?": held-out ones, " ": answers}]."""
    blocks = []
    for line in filter(None, read_lines(own_file(SMALL_TALK))):
        kind = line[0] if line[0] in "?# " else "|"
        if kind == "|":
            blocks.append({"|": [], "?": [], " ": []})
        if kind != "#":
            blocks[-1][kind] += [part.strip() for part in line.lstrip("? ").split("|")]
    return blocks


def pick(values, rng):
    return values[rng.integers(len(values))]


def draw_talk(rng):
    """Return (line, answer) of training's small talk."""
    block = pick(read_small_talk(), rng)
    return pick(block["|"], rng), pick(block[" "], rng)


def spoken_labels(text):
    """Return {task: answer} of a line of spoken.txt."""
    task = "command" if text in read_tasks()["command"].labels else "answer"
    task = "digit" if text in NUMBERS else task
    return {task: read_answers()[text], "sentence": text}


def word_labels(text, rng):
    """Return {task: answer} of a sentence's words."""
    words = text.split()
    labels = {"sentence": text, "first": words[0], "last": words[-1]}
    if long := [word for word in words if len(word) > 3 and words.count(word) == 1]:
        labels["word"] = pick(long, rng)
    if 3 <= len(words) <= 12:
        labels["n_words"] = NUMBERS[len(words)]
    return labels


# ---- one question

def said_in(texts):
    """Return {"sentences": texts, "words": their longer words}, for wrong options.

    Words are repeated, so as frequent as right ones: text alone can't tell them apart.
    """
    sentences = sorted(set(texts))
    words = [word for word in " ".join(sentences).split() if len(word) > 3]
    return {"sentences": sentences, "words": words}


def some_of(said, rng, own):
    """Draw 6 sentences and 24 words of said_in(); "own": the words of the text `own`."""
    drawn = {"own": own.split()}
    for name, count in ("sentences", 6), ("words", 24):
        drawn[name] = [said[name][i] for i in rng.integers(len(said[name]), size=count)]
    return drawn


def options_for(task, answer, rng, said):
    """Return four options, the answer among them, or None; said: what some_of() returns."""
    labels = read_tasks()[task].labels
    if task == "sentence":
        labels = list(read_answers()) if answer in read_answers() else said["sentences"]
    elif len(answer) > 3 and task in ("word", "first", "last"):  # a shorter one would stand out
        labels = [word for word in said["words"] if word not in said["own"]]
    others = [label for label in dict.fromkeys(labels) if label != answer]
    if len(others) < 3 or answer == NOBODY and NOBODY not in labels:
        return None
    options = [answer, *rng.choice(others, 3, replace=False)]
    return rng.permutation(options).tolist()


def ask(task, answer, rng, said):
    """Return [task, question, answer]; None where a word's question has no options."""
    question = pick(read_tasks()[task].train, rng)
    options = options_for(task, answer, rng, said)
    if task == "word" and not options:
        return None
    if options and (task == "word" or rng.uniform() < CHOICE_SHARE):
        question = multiple_choice(question, options)
    return [task, question, answer]


def write_rows(out_dir, files):
    """Write {file name: rows} -> (file names, counts), as make_folder() wants them."""
    for name, rows in files.items():
        write_jsonl(f"{out_dir}/{name}", rows)
    return list(files), {name: len(rows) for name, rows in files.items()}
