"""Make chats to practise with: questions about recordings that are imitated in text.

    python prepare_practice.py                                # data/practice; one core, 20 s
    python prepare_practice.py --n=200 --out_dir=data/toy     # a toy

Reads  <text_dir>/train.txt and val.txt; assets/questions.toml, spoken.txt and chat.txt.
Writes <out_dir>/chats.jsonl, about the words of recordings (practice.py), and texture.jsonl, half
       as many, most about how they sound (texture.py): {"split", "text", "labels": {task: answer},
       "turns": [[task, question, answer], ...]} a line; meta.json.
"""
import numpy as np

from configurator import configure
from files import read_sentences
from questions import (NOBODY, TEXTS, VOICE_TASKS, ask, draw_talk, pick, read_answers, read_tasks,
                       said_in, some_of, spoken_labels, word_labels, write_rows)
from record import make_folder, sums

# config: set by a config file or --name=value
text_dir = "data/text"
out_dir = "data/practice"
n = 12_000  # chats of train about words; val has a twentieth of that
config = configure(globals())
# ----
SEED = 0
VAL_SHARE = 0.05
SPOKEN_SHARE = 0.1  # share of train's chats about a line of spoken.txt
TURNS, SPOKEN_TURNS = 10, 3  # questions to a sentence, to a line of spoken.txt
WEIGHTS = {"word": 0.8, "first": 0.05, "last": 0.05, "sentence": 0.05, "n_words": 0.05}
SPOKEN_WEIGHT = 0.4  # how often each task of a line of spoken.txt is asked
SHORT_SHARE = 0.7  # of the questions lack the line "answer with one of the options"
# texture.jsonl
SOUND_SHARE = 0.75  # share of the questions about the sound
SOUND_WEIGHTS = {"voice": 3, "accent": 2, "event": 2, "thing": 0.5}  # how often asked; else 1
TALK_SHARE = 0.1    # share of the turns that are small talk
KNOWN_SHARE = 0.5   # share of the texture's tasks with a label
NOBODY_SHARE = 0.1  # share of the recordings in which nobody speaks


def draw_labels(text, rng):
    """Draw {task: answer} of how a recording of `text` ('': nobody speaks) might sound."""
    labels = {name: pick(task.labels, rng) for name, task in read_tasks().items()
              if task.texture and rng.uniform() < KNOWN_SHARE}
    if text:
        own = {task: label for task, label in labels.items() if label != NOBODY}
        return own | {"kind": "speech"}
    own = {task: label for task, label in labels.items() if task not in VOICE_TASKS}
    return own | {"kind": pick(["music", "noise", "silence"], rng), "person": NOBODY}


def about_words(text, rng):
    """Return {task: answer} of a sentence, a line of spoken.txt or ''."""
    if not text:
        return {"sentence": NOBODY}
    return spoken_labels(text) if text in read_answers() else word_labels(text, rng)


def make_turns(text, rng, said, sound):
    """Return [[task, question, answer], ...] about a recording of `text`.

    sound: {task: answer} of what most questions are about; {}: all are about words.
    """
    turns = []
    while len(turns) < (SPOKEN_TURNS if text in read_answers() else TURNS):
        if sound and rng.uniform() < TALK_SHARE:
            turns.append(["talk", *draw_talk(rng)])
            continue
        if sound and rng.uniform() < SOUND_SHARE:
            labels = sound if text else sound | dict.fromkeys(VOICE_TASKS, NOBODY)
            weights = [SOUND_WEIGHTS.get(task, 1) for task in labels]
        else:
            labels = about_words(text, rng)
            weights = [WEIGHTS.get(task, SPOKEN_WEIGHT) for task in labels]
        weights = np.array(weights)
        task = rng.choice(list(labels), p=weights / weights.sum())
        turn = ask(task, labels[task], rng, some_of(said, rng, text))
        if turn:
            if rng.uniform() < SHORT_SHARE:
                turn[1] = turn[1].removesuffix("\nanswer with one of the options")
            turns.append(turn)
    return turns


def make_chats(split, count, salt, has_sound=False):
    """Return `count` rows of chats.jsonl or texture.jsonl; val asks about new sentences alone."""
    rng, texts = np.random.default_rng([SEED, salt]), read_sentences(text_dir, split)
    said, rows = said_in(texts), []
    for _ in range(count):
        is_spoken = split == "train" and rng.uniform() < SPOKEN_SHARE
        text = pick(list(read_answers()) if is_spoken else texts, rng)
        if has_sound and rng.uniform() <= NOBODY_SHARE:
            text = ""
        labels = draw_labels(text, rng) if has_sound else {}
        rows.append({"split": split, "text": text, "labels": labels,
                     "turns": make_turns(text, rng, said, labels)})
    return rows


def find_inputs():
    if n < 1:
        raise ValueError(f"{n=}: at least 1")
    return sums(f"{text_dir}/train.txt", f"{text_dir}/val.txt", *TEXTS)


def make():
    n_val = max(8, round(VAL_SHARE * n))
    words = make_chats("train", n, 60) + make_chats("val", n_val, 61)
    sound = make_chats("train", n // 2, 62, True) + make_chats("val", n_val // 2, 63, True)
    return write_rows(out_dir, {"chats.jsonl": words, "texture.jsonl": sound})


if __name__ == "__main__":
    make_folder(out_dir, config, find_inputs, make)
