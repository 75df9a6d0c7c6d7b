"""Make AudioBench-mini: four-choice questions about recordings that no training hears.

    python prepare_bench.py                         # data/audiobench_mini: 200 questions, 3 s
    python prepare_bench.py --bench_items=100 --out_dir=data/audiobench   # these, and 600 more
    python prepare_bench.py --sources=fsdd=data/fsdd,people=data/LibriSpeech    # and real ones

Reads  the split test of three folders of prepare_synthetic.py; real recordings (sources.py);
       assets/questions.toml.
Writes <out_dir>/wavs/*.wav (16 kHz mono); questions.jsonl (audiobench.py), whose "part" is
       "synthetic" or "real"; meta.json.
Each label is right once for three times that it is wrong, and each place equally often: text alone
can't answer. Voices, rooms and sounds are none of training (clip_makers.Beyond); two voices to
compare are alike in pitch and rate.
"""
from collections import Counter
from pathlib import Path

import numpy as np

from clip_makers import MAKERS, Beyond, is_clear, is_plain, pair_up, read_clips, write_clip
from configurator import configure
from meters import median_pitch
from questions import TEXTS, pick, read_answers, read_tasks, write_rows
from record import make_folder, sums
from recordings import read_audio
from sources import read_sources

# config: set by a config file or --name=value
voices = "data/voices"     # prepare_synthetic.py --corpus=many; '': real recordings alone
spoken = "data/spoken"     # --corpus=spoken
speech = "data/synthetic"  # --corpus=plain
out_dir = "data/audiobench_mini"
bench_items = 25           # questions in each cell
sources = ""               # real recordings too: name=folder, ... (sources.py)
config = configure(globals())
# ----
SEED = 0
BLOCK = 25     # questions of a cell drawn together: the first blocks are AudioBench-mini
REAL_TASKS = ("emotion", "thing", "digit", "command", "person")  # and pairs of people
COMPARED = 400  # real voices, of less than 4 s, among which pairs are sought
ON_PLAIN = ("room", "noise", "channel", "loudness", "scene")  # shown on any ordinary voice
MORE = "make more clips (n_test), or give more recordings"
ATTEMPTS = 20  # to show the answer: a peaky voice may not get as loud


def read_synthetic():
    """Return [(part, cell, {task: questions of 25}, {task: clips to ask about}), ...]."""
    cells = {}
    for name, task in read_tasks().items():
        if task.n_bench:
            cells.setdefault(task.cell, {})[name] = task.n_bench
    others = read_clips(voices, "test", style=str, pitch=int)
    numbers = read_clips(spoken, "test", read_answers())
    clear = [clip for clip in read_clips(speech, "test") if is_clear(clip)]
    for clip in numbers:
        clip["labels"] = {"digit": clip["text"]}
    pools = dict.fromkeys(read_tasks(), others) | {"digit": numbers}
    pools |= dict.fromkeys(("room", "noise", "channel", "scene", "sentence", "word"), clear)
    return [("synthetic", cell, shares, pools) for cell, shares in cells.items()]


def read_real():
    """Return the same of real recordings: a cell for each task of four labels or more."""
    clips, pools = read_sources(sources, True), {}
    for task in REAL_TASKS:
        shown = [clip for clip in clips if task in clip["labels"]]
        if len({clip["labels"][task] for clip in shown}) >= 4:
            pools[task] = shown
    people = [clip for clip in clips if clip.get("seconds", 9) < 4]
    at = np.random.default_rng(SEED).permutation(len(people))[:COMPARED]
    people = [people[i] for i in at]
    if len({clip["sex"] for clip in people}) == 2:
        for clip in people:
            clip["pitch_hz"] = median_pitch(read_audio(clip["path"]))
            clip["rate"] = len(clip["text"].split()) / clip["seconds"]
        pools["pair"] = people
    return [("real", f"real {task}", {task: BLOCK}, pools) for task in pools]


def label_sets(task, count, clips, rng):
    """Return [(clip, options)] about labels, the answer first; each is wrong equally often.

    Labels: those that real clips show, or all where a sound can be made of each.
    """
    labels, left_out, rows = read_tasks()[task].labels, Counter(), []
    shown = {clip["labels"].get(task) for clip in clips if "root" not in clip}
    labels = [label for label in labels if label in shown] or labels
    for i in rng.permutation(np.arange(count) % len(labels)):
        answer = labels[i]
        others = [label for label in labels if label != answer]
        others.sort(key=lambda label: (left_out[label], rng.uniform()))
        left_out.update(others[:-3])
        rows.append((choose_clip(task, answer, clips, rng), [answer, *others[-3:]]))
    return rows


def choose_clip(task, answer, clips, rng):
    """Return a clip that can show an answer; two for a pair, None for an event."""
    if task == "event":
        return None
    if task == "pair":
        return pair_up(clips, rng, answer)
    fits = [clip for clip in clips if clip["labels"].get(task) == answer
            or task in ON_PLAIN and is_plain(clip)]
    if not fits:
        raise ValueError(f"no clip shows {task} = {answer}: {MORE}")
    return pick(fits, rng)


def content_sets(task, count, clips, rng):
    """Return [(clip, options)] about sentences or a word: the answer, the next three's answers."""
    chosen, keys, seen, n_sets = [], [], set(), max(count, 4)
    clips = [clip for clip in clips if 5 <= len(clip["text"].split()) <= 8]
    for i in rng.permutation(len(clips)):
        words = clips[i]["text"].split()
        long = [word for word in words if 5 <= len(word) <= 7 and word not in seen]
        if long and not set(words) & set(keys) and len(chosen) < n_sets:
            chosen.append(clips[i])
            keys.append(pick(long, rng))
            seen.update(words)
    if len(chosen) < n_sets:
        raise ValueError(f"{len(chosen)} clear sentences for {n_sets} questions: {MORE}")
    if task == "sentence":
        keys = [clip["text"] for clip in chosen]
    keys += keys[:3]
    return [(clip, keys[i:i + 4]) for i, clip in enumerate(chosen[:count])]


def plan():
    """Return the rows of questions.jsonl, each with its "clip"; AudioBench-mini's come first."""
    planned, cells = [], read_synthetic() if voices else []
    cells += read_real()
    for block in range(0, bench_items, BLOCK):
        items = min(BLOCK, bench_items - block)
        for part, cell, shares, pools in cells:
            sizes = {task: round(items * n / BLOCK) for task, n in shares.items()}
            sizes[next(iter(sizes))] += items - sum(sizes.values())
            for k, (task, size) in enumerate(sizes.items()):
                planned += plan_task(part, cell, task, size, pools[task], [len(planned), k])
    if not planned:
        raise ValueError(f"no question: {bench_items=}, {voices=}, {sources=}")
    places = np.random.default_rng([SEED, 78]).permutation(np.arange(len(planned)) % 4)
    for number, row in enumerate(planned):
        answer, *others = row["options"]
        row["options"] = np.random.default_rng([SEED, 79, number]).permutation(others).tolist()
        row["key"] = int(places[number])
        row["options"].insert(row["key"], answer)
    return planned


def plan_task(part, cell, task, size, clips, seed):
    """Yield plan()'s rows of one task, without "key"; the first option is the answer."""
    rng = np.random.default_rng([SEED, 77, *seed])
    phrase = np.random.default_rng([SEED, 81, *seed])  # not moved by the draws of clips
    make_sets = content_sets if task in ("sentence", "word") else label_sets
    for number, (clip, options) in enumerate(make_sets(task, size, clips, rng), seed[0]):
        name = f"{number:03d}"
        question = pick(read_tasks()[task].bench, phrase)
        yield {"clip": clip, "id": name, "cell": cell, "task": task, "audio": f"wavs/{name}.wav",
               "question": question, "options": options, "part": part}


def make_wav(clip, row):
    """Return a question's wav; ValueError: none shows the answer."""
    task, answer = row["task"], row["options"][row["key"]]
    make = MAKERS.get(task, MAKERS["voice"])
    if row["part"] == "real" and task != "pair":
        make = MAKERS["real"]
    for attempt in range(ATTEMPTS):
        rng = Beyond(np.random.PCG64([SEED, 80, int(row["id"]), attempt]))
        wav, labels = make(clip, rng, task, answer)
        if task == "word" or labels.get(task) == answer:
            return wav
    raise ValueError(f"question {row['id']}: no recording shows {task} = {answer}: {MORE}")


def find_inputs():
    paths = [f"{folder}/labels.jsonl" for folder in (voices, spoken, speech) if voices]
    paths += [clip["path"] for clip in read_sources(sources, True)]
    return sums(*paths, *TEXTS)


def make():
    rows = plan()
    Path(out_dir, "wavs").mkdir()
    for row in rows:
        write_clip(f"{out_dir}/{row['audio']}", make_wav(row.pop("clip"), row))
    return write_rows(out_dir, {"questions.jsonl": rows})


if __name__ == "__main__":
    make_folder(out_dir, config, find_inputs, make, "wavs")
