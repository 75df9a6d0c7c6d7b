"""Make the mix of instructions: questions and answers about voices, words, places and sounds.

    python prepare_instruct.py                                # data/instruct; 2 cores, 25 s
    python prepare_instruct.py --sources=fsdd=data/fsdd,emodb=data/emodb    # real ones too

Reads  labels.jsonl and clips of three folders of prepare_synthetic.py; real recordings
       (sources.py) but the bench's; assets/questions.toml, spoken.txt and chat.txt.
Writes <out_dir>/clips/*.flac (16 kHz mono); items.jsonl, {"audio", "key", "split", "text", "kind",
       "labels": {task: answer}, "turns": [[task, question, answer], ...]}, for
       prepare_librispeech.py; turns.jsonl, {"key", "turns"} about the clips of `speech`;
       text.jsonl, {"question", "answer"} without audio; meta.json.
Labels come from how a clip was made, never from a model.
"""
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clip_makers import MAKERS, is_clear, pair_up, read_clips, write_clip
from configurator import configure
from processes import run_all
from questions import (NOBODY, TEXTS, VOICE_TASKS, ask, draw_talk, pick, read_answers, read_tasks,
                       said_in, some_of, word_labels, write_rows)
from record import make_folder, sums
from sources import read_sources

# config: set by a config file or --name=value
voices = "data/voices"     # prepare_synthetic.py --corpus=many
spoken = "data/spoken"     # --corpus=spoken
speech = "data/synthetic"  # --corpus=plain
out_dir = "data/instruct"
sources = ""               # real recordings too: name=folder, ... (sources.py)
n = 12_000                 # questions about the synthetic clips, roughly
config = configure(globals())
# ----
SEED = 0
KINDS = {"voice": 0.46, "spoken": 0.1, "pair": 0.14, "scene": 0.06, "event": 0.11, "music": 0.06,
         "beeps": 0.03, "silence": 0.04}  # shares of the clips
VAL_SHARE = 0.05      # val's clips to train's: heard voices, new sentences
NOBODY_SHARE = 0.6    # share of the clips without a voice where it is asked about
TEXT_SHARE = 0.1      # chats without audio to n
TURNS = 4             # questions to a clip, at most
CLIP_TURNS = 3        # questions to a clip, on average
UNASKED_CLEAR = 0.6   # share of clear voices, the most, not asked about their quality
REAL_PAIRS = 0.3      # pairs of real voices to recordings of people
TALK_SHARE = 0.6      # share of small talk in the chats without audio


def make_turns(labels, rng, said):
    """Choose up to TURNS of a clip's {task: answer} -> [[task, question, answer], ...]."""
    if labels.get("quality") == "clear" and rng.uniform() < UNASKED_CLEAR:
        labels = {task: answer for task, answer in labels.items() if task != "quality"}
    if not labels:
        return []
    if labels.get("sentence") == NOBODY and rng.uniform() < NOBODY_SHARE:
        labels = labels | {pick(VOICE_TASKS, rng): NOBODY}
    weights = np.array([read_tasks()[task].weight for task in labels])
    count = min(TURNS, len(labels))
    tasks = rng.choice(list(labels), count, False, weights / weights.sum())
    return list(filter(None, (ask(task, labels[task], rng, said) for task in tasks)))


def ask_speech(clips, said, salt):
    """Return the rows of turns.jsonl."""
    rows = []
    for i, clip in enumerate(clips):
        rng, labels = np.random.default_rng([SEED, salt, i]), clip["labels"]
        if is_clear(clip):
            labels = labels | word_labels(clip["text"], rng)
        turns = make_turns(labels, rng, some_of(said, rng, clip["text"]))
        rows.append({"key": clip["key"], "turns": turns})
    return rows


def plan_clips(split, count, said, salt):
    """Return make_item()'s arguments for `count` clips of a split."""
    clips = read_clips(voices, split, style=str, pitch=int)
    lines = read_clips(spoken, split, read_answers())
    rng, jobs = np.random.default_rng([SEED, salt]), []
    for i in range(count):
        kind = rng.choice(list(KINDS), p=list(KINDS.values()))
        pool = lines if kind == "spoken" else clips
        clip = pair_up(clips, rng) if kind == "pair" else pick(pool, rng)
        wrong = some_of(said, rng, clip["text"] if kind in ("voice", "spoken") else "")
        jobs.append((f"{split}-{i:06d}", kind, clip, split, wrong, [SEED, salt, i]))
    return jobs


def plan_real(said):
    """Return make_item()'s arguments for the recordings of `sources`, and for pairs of people."""
    clips, rng = read_sources(sources, False), np.random.default_rng([SEED, 3])
    people = [clip for clip in clips if "voice" in clip]
    made = [("real", clip) for clip in clips]
    made += [("pair", pair_up(people, rng)) for _ in range(round(REAL_PAIRS * len(people)))]
    jobs = []
    for i, (kind, clip) in enumerate(made):
        split = "val" if rng.uniform() < VAL_SHARE else "train"
        own = clip["labels"].get("sentence", "") if kind == "real" else ""
        jobs.append((f"real-{i:06d}", kind, clip, split, some_of(said, rng, own), [SEED, 3, i]))
    return jobs


def make_item(key, kind, clip, split, said, seed):
    """Make a clip and write it; return its row of items.jsonl."""
    rng = np.random.default_rng(seed)
    wav, labels = MAKERS[kind](clip, rng, "", "")
    text = labels.get("sentence", "")
    if text == NOBODY:
        text, labels = "", labels | {"person": NOBODY}
    elif kind == "real" and " " in text:
        labels = labels | word_labels(text, rng)
    path = f"clips/{key}.flac"
    write_clip(f"{out_dir}/{path}", wav)
    return {"audio": path, "key": key, "split": split, "text": text, "kind": kind,
            "labels": labels, "turns": make_turns(labels, rng, said)}


def make_text_chats(count):
    """Return chats without audio: small talk, other questions."""
    answers, tasks = list(read_answers().items()), list(read_tasks().values())
    rng, chats = np.random.default_rng([SEED, 9]), []
    for _ in range(count):
        talk = draw_talk(rng)
        deaf = pick(pick(tasks, rng).train, rng), "send me a recording first"
        others = pick(answers, rng), deaf
        question, answer = talk if rng.uniform() < TALK_SHARE else pick(others, rng)
        chats.append({"question": question, "answer": answer})
    return chats


def find_inputs():
    if n < 1:
        raise ValueError(f"{n=}: at least 1")
    labels = [f"{folder}/labels.jsonl" for folder in (voices, spoken, speech)]
    paths = [clip["path"] for clip in read_sources(sources, False)]
    return sums(*labels, *paths, *TEXTS)


def make():
    jobs, overlay = [], []
    n_train = max(8, round(n / CLIP_TURNS))
    n_val = max(8, round(VAL_SHARE * n_train))
    for salt, (split, count) in enumerate([("train", n_train), ("val", n_val)]):
        clips = read_clips(speech, split)
        said = said_in([clip["text"] for clip in clips])
        jobs += plan_clips(split, count, said, salt)
        overlay += ask_speech(clips, said, 50 + salt)
        jobs += plan_real(said) if split == "train" else []
    chats = make_text_chats(max(8, round(TEXT_SHARE * n)))
    Path(out_dir, "clips").mkdir()
    made = run_all(make_item, jobs, chunksize=32)
    items = list(tqdm(made, total=len(jobs), unit=" clips", desc="instructions"))
    files = {"items.jsonl": items, "turns.jsonl": overlay, "text.jsonl": chats}
    return write_rows(out_dir, files)


if __name__ == "__main__":
    make_folder(out_dir, config, find_inputs, make, "clips")
