"""Make chats to practise with: questions about recordings that are imitated in text.

practice.py imitates the words of a recording, texture.py how it sounds.

    python prepare_practice.py                                # data/practice; one core, 12 s
    python prepare_practice.py --n=200 --out_dir=data/toy     # a toy

Reads  <text_dir>/train.txt and val.txt of prepare_text.py; assets/questions.toml and spoken.txt.
Writes <out_dir>/chats.jsonl, {"split", "text", "labels": {task: answer}, "turns": [[task,
       question, answer], ...]} a line; meta.json.
"""
import numpy as np

from configurator import configure
from folders import make_folder, sums
from questions import (NOBODY, QUESTIONS, SPOKEN, VOICE_TASKS, ask, pick, read_answers,
                       read_sentences, read_tasks, said_in, some_of, spoken_task, word_labels,
                       write_rows)

# config: every value here can be set from a config file or as --name=value
text_dir = "data/text"
out_dir = "data/practice"
n = 12_000  # chats of train; val has a twentieth of that
config = configure(globals())  # prints each change; stored in meta.json
# -----------------------------------------------------------------------------
SEED = 0
VAL_SHARE = 0.05
SPOKEN_SHARE = 0.1  # share of train's chats that are about a line of spoken.txt
NOBODY_SHARE = 0.1  # share of the chats about a recording in which nobody speaks
KNOWN_SHARE = 0.5   # share of the texture's tasks that a recording has a label for
SOUND_SHARE = 0.6   # share of the questions that are about the sound, not about the words
TURNS = 10          # questions to a recording
WEIGHTS = {"word": 0.8, "first": 0.05, "last": 0.05, "sentence": 0.05, "n_words": 0.05}
SHORT_SHARE = 0.7  # of the questions lack the line "answer with one of the options"


def draw_labels(text, rng):
    """Draw {task: answer} of how a recording of `text` ('': nobody speaks) might sound."""
    labels = {name: pick(task.labels, rng) for name, task in read_tasks().items()
              if task.texture and rng.uniform() < KNOWN_SHARE}
    labels["kind"] = "speech" if text else pick(["music", "noise", "silence"], rng)
    return {task: label for task, label in labels.items() if text or task not in VOICE_TASKS}


def what_to_ask(text, labels, rng):
    """Return {task: answer} about the words and {task: its weight}, or about the sound."""
    answers = read_answers()
    if rng.uniform() < SOUND_SHARE:
        found = labels if text else labels | dict.fromkeys(VOICE_TASKS, NOBODY)
        return found, dict.fromkeys(found, 1)
    if not text:
        return {"sentence": NOBODY}, {"sentence": 1}
    if text in answers:
        found = {spoken_task(text): answers[text], "sentence": text}
        return found, dict.fromkeys(found, 1)
    found = word_labels(text, rng)
    return found, {task: WEIGHTS[task] for task in found}


def make_turns(text, labels, rng, said):
    """Return [[task, question, answer], ...] about a recording that says `text`."""
    turns = []
    while len(turns) < TURNS:
        found, weights = what_to_ask(text, labels, rng)
        weights = np.array(list(weights.values()))
        task = list(found)[rng.choice(len(found), p=weights / weights.sum())]
        turn = ask(task, found[task], rng, some_of(said, rng, text))
        if turn and rng.uniform() < SHORT_SHARE:
            turn[1] = turn[1].removesuffix("\nanswer with one of the options")
        turns += filter(None, [turn])
    return turns


def make_chats(split, count, salt):
    """Return `count` rows of chats.jsonl; val asks about new sentences alone."""
    rng, texts = np.random.default_rng([SEED, salt]), read_sentences(text_dir, split)
    said, spoken, rows = said_in(texts), list(read_answers()), []
    for _ in range(count):
        is_spoken = split == "train" and rng.uniform() < SPOKEN_SHARE
        text = pick(spoken if is_spoken else texts, rng) if rng.uniform() > NOBODY_SHARE else ""
        labels = draw_labels(text, rng)
        rows.append({"split": split, "text": text, "labels": labels,
                     "turns": make_turns(text, labels, rng, said)})
    return rows


def find_inputs():
    if n < 1:
        raise ValueError(f"{n=} chats are too few: at least 1")
    return sums(f"{text_dir}/train.txt", f"{text_dir}/val.txt", QUESTIONS, SPOKEN)


def make():
    chats = make_chats("train", n, 60) + make_chats("val", max(8, round(VAL_SHARE * n)), 61)
    return write_rows(out_dir, {"chats.jsonl": chats})


if __name__ == "__main__":
    make_folder(out_dir, config, find_inputs, make)
