"""Make chats for listening practice: questions about sentences that practice.py imitates as audio.

    python prepare_practice.py                                # data/practice; one core, 12 s
    python prepare_practice.py --n=200 --out_dir=data/toy     # a toy

Reads  <text_dir>/train.txt and val.txt of prepare_text.py; assets/questions.toml and spoken.txt.
Writes <out_dir>/chats.jsonl, {"split", "text", "turns": [[task, question, answer], ...]} a line;
       meta.json.
"""
import numpy as np

from configurator import configure
from folders import make_folder, sums
from questions import (QUESTIONS, SPOKEN, ask, pick, read_answers, read_sentences, said_in,
                       some_of, spoken_task, word_labels, write_rows)

# config: every value here can be set from a config file or as --name=value
text_dir = "data/text"
out_dir = "data/practice"
n = 12_000  # chats of train; val has a twentieth of that
config = configure(globals())  # prints each change; stored in meta.json
# -----------------------------------------------------------------------------
SEED = 0
VAL_SHARE = 0.05
SPOKEN_SHARE = 0.1  # share of train's chats that are about a line of spoken.txt
TURNS, SPOKEN_TURNS = 10, 3  # questions to a sentence, to a line of spoken.txt
WEIGHTS = {"word": 0.8, "first": 0.05, "last": 0.05, "sentence": 0.05, "n_words": 0.05}
SPOKEN_WEIGHT = 0.4  # how often each task of a line of spoken.txt is asked
SHORT_SHARE = 0.7  # of the questions lack the line "answer with one of the options"


def make_turns(text, rng, said):
    """Return [[task, question, answer], ...] about a sentence or a line of spoken.txt."""
    answers, turns = read_answers(), []
    while len(turns) < (SPOKEN_TURNS if text in answers else TURNS):
        if text in answers:
            labels = {spoken_task(text): answers[text], "sentence": text}
        else:
            labels = word_labels(text, rng)
        weights = np.array([WEIGHTS.get(task, SPOKEN_WEIGHT) for task in labels])
        task = list(labels)[rng.choice(len(labels), p=weights / weights.sum())]
        turn = ask(task, labels[task], rng, some_of(said, rng, text))
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
        text = pick(spoken if is_spoken else texts, rng)
        rows.append({"split": split, "text": text, "turns": make_turns(text, rng, said)})
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
