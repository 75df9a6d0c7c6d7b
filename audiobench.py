"""AudioBench-mini: four-choice questions about recordings, and the controls.

prepare_bench.py makes a folder of recordings and questions.jsonl: {"id", "part", "cell", "task",
"audio", "question", "options": four, "key": 0 to 3}. An option's score is the log-probability of
its text as the answer, averaged over the four rotations of the options. Controls: another recording
of the same cell ("shuffled"), noise, no audio. Baselines: a linear probe of the features; level
meters (meters.py); the answer that is most often right.
"""
import html
import math
import os
from collections import Counter
from functools import cache
from urllib.parse import quote

import numpy as np

from decode import generate, score_answers
from files import find_path, read_jsonl
from meters import measure
from questions import read_small_talk
from recordings import read_audio
from texture import ridge
from tokenizer import multiple_choice

BATCH_SIZE = 32       # prompts read together
SEED = 0
MAX_TOKENS = 32       # of a free answer
NOISE = 0.03          # standard deviation of the noise in place of a recording
RIDGE = 300.0         # strength of the probe's regression
METERS_RIDGE = 3.0    # and of the meters'
PROBE_CLIPS = 1500    # training clips that teach the probe a task, at most
N_PLAYED = 3          # errors of a cell that the page plays
PROBE_LABELS = 50     # a task with more labels is an open set (words): not probed


# ---- the questions

def read_bench(folder):
    """Return the rows of questions.jsonl, "audio" as a path; ValueError names a bad line."""
    path = f"{folder}/questions.jsonl"
    fields = dict.fromkeys(("id", "part", "cell", "task", "audio", "question"), str)
    rows = []
    for where, row in read_jsonl(path, options=list, key=int, **fields):
        if not len(row["options"]) == len(set(row["options"])) == 4 or row["key"] not in range(4):
            raise ValueError(f"{where}: give each question four different options, a key 0 to 3")
        rows.append(row | {"audio": find_path(folder, row["audio"])})
    if not rows:
        raise ValueError(f"{path} holds no question")
    return rows


def partners(rows):
    """Return int (n,): the question of the same cell whose audio each question gets instead."""
    partner = np.arange(len(rows))
    for members in members_by(rows, "cell").values():
        order = np.random.default_rng([SEED, members[0]]).permutation(members)
        partner[order] = np.roll(order, 1)
    return partner


def members_by(rows, field):
    """Return {value of the field: indices of its rows}."""
    members = {}
    for i, row in enumerate(rows):
        members.setdefault(row[field], []).append(i)
    return members


# ---- statistics

def wilson(n_right, n):
    """Return the 95% interval of a share n_right / n (Wilson 1927): [low, high], fractions."""
    z = 1.959964
    share = n_right / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return [round((centre + side) / (1 + z * z / n), 4) for side in (-half, half)]


def mcnemar(a, b):
    """Return the exact p that two bool arrays of right answers are equally good (McNemar 1947)."""
    only_a = int(np.sum(a & ~b))
    only_b = int(np.sum(b & ~a))
    n = only_a + only_b
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2 ** n)


# ---- a model's answers

def score_options(talker, rows, audio):
    """Return the mean log-probabilities of each question's options, float64 (n, 4).

    audio: audio tokens (T_a, C) of each question, or None.
    """
    end = talker.tok.special("<|assistant_end|>")
    jobs = []
    for i, row in enumerate(rows):
        for turn in range(4):
            order = [(k + turn) % 4 for k in range(4)]
            options = [row["options"][k] for k in order]
            answers = [[*talker.tok.encode(talker.clean(option)), end] for option in options]
            question = multiple_choice(row["question"], options)
            jobs.append((i, order, talker.prompt([("user", question, None)]), answers))
    jobs.sort(key=lambda job: len(job[2]) + (0 if audio is None else len(audio[job[0]])))
    scores = np.zeros((len(rows), 4))
    for start in range(0, len(jobs), BATCH_SIZE):
        owners, orders, prompts, answers = zip(*jobs[start:start + BATCH_SIZE])
        heard = None if audio is None else [audio[i] for i in owners]
        sums = score_answers(talker.model, prompts, answers, heard)
        for i, order, each in zip(owners, orders, sums.tolist()):
            scores[i, order] += np.array(each) / 4
    return scores


def answer_freely(talker, questions, audio=None):
    """Return what the model says (greedy) to each question: list of str."""
    prompts, said = [talker.prompt([("user", each, None)]) for each in questions], []
    for start in range(0, len(prompts), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        said += generate(talker.model, prompts[part], audio and audio[part],
                         MAX_TOKENS, talker.stop_ids())
    return [talker.tok.decode(ids).strip() for ids in said]


def small_talk(talker):
    """Return [(held-out line of chat.txt, what the model says, is it a right answer)]."""
    asked = [(line, block[" "]) for block in read_small_talk() for line in block["?"]]
    said = answer_freely(talker, [line for line, _ in asked])
    return [(line, text, text in [talker.clean(answer).strip() for answer in answers])
            for (line, answers), text in zip(asked, said)]


# ---- the ceiling: a linear probe

def pool(x):
    """Return the mean, spread and distance of quarters of features (T, n_taps, D), in one row."""
    x = np.asarray(x, np.float32).reshape(len(x), -1)
    quarters = np.stack([part.mean(0) for part in np.array_split(x, 4) if len(part)])
    return np.concatenate([x.mean(0), x.std(0), np.abs(quarters - x.mean(0)).mean(0)])


def regress(clips, vector, rows, own, strength):
    """Answer questions by ridge regression on the labels of training clips.

    clips: data.Features; vector(i): of its clip i, (D,); own: of the questions' recordings (n, D).
    Returns float (n,): 1 where a question is right, NaN where its answers are an open set.
    """
    right = np.full(len(rows), np.nan)
    for task, members in members_by(rows, "task").items():
        found = {i: info["labels"][task] for i, info in enumerate(clips.infos)
                 if task in info.get("labels", {})}
        labels = sorted(set(found.values()))
        is_known = all(set(rows[i]["options"]) <= set(labels) for i in members)
        if len(labels) > PROBE_LABELS or not is_known:
            continue
        at = np.random.default_rng(SEED).permutation(list(found))[:PROBE_CLIPS]
        y = np.array([[found[i] == label for label in labels] for i in at], np.float32)
        weight, bias = ridge(np.stack([vector(i) for i in at]), y, strength)
        for i in members:
            votes = own[i] @ weight + bias
            best = np.argmax([votes[labels.index(option)] for option in rows[i]["options"]])
            right[i] = best == rows[i]["key"]
    return right


def baselines(clips, rows, features, wavs):
    """Return {"probe", "meters": as regress() does, "majority": bool (n,)}.

    majority takes the option that is most often right in its cell.
    """
    unknown = np.full(len(rows), np.nan)
    times = Counter((row["cell"], row["options"][row["key"]]) for row in rows)
    counts = [[times[row["cell"], option] for option in row["options"]] for row in rows]
    is_key = np.argmax(counts, 1) == [row["key"] for row in rows]
    found = {"probe": unknown, "meters": unknown, "majority": is_key}
    if clips:
        pooled = cache(lambda i: pool(clips[i][0]))
        found["probe"] = regress(clips, pooled, rows, list(map(pool, features)), RIDGE)
        paths = [row["audio"] for row in clips.rows]
        if all(map(os.path.isfile, paths)):
            metered = cache(lambda i: measure(read_audio(paths[i])))
            own = list(map(measure, wavs))
            found["meters"] = regress(clips, metered, rows, own, METERS_RIDGE)
    return found


# ---- the whole bench

def run_bench(talker, rows, wavs, clips):
    """Ask a model all questions under every condition -> (dict of bench.json, a dict a question).

    rows: of read_bench(); wavs: their recordings, float32 (n,) at 16 kHz; clips: training's
    data.Features, or None.
    """
    rng = np.random.default_rng(SEED)
    features = talker.features(wavs)
    heard = list(map(talker.project, features))
    noise = [(NOISE * rng.standard_normal(len(wav))).astype(np.float32) for wav in wavs]
    audio = {"score": heard, "shuffled": [heard[j] for j in partners(rows)],
             "noise": talker.hear(noise), "no_audio": None}
    scores = {name: score_options(talker, rows, tokens) for name, tokens in audio.items()}
    keys = np.array([row["key"] for row in rows])
    right = {name: each.argmax(1) == keys for name, each in scores.items()}
    asked = [multiple_choice(row["question"], row["options"]) for row in rows]
    said = answer_freely(talker, asked, heard)
    wanted = [talker.clean(row["options"][row["key"]]).strip() for row in rows]
    right["free_generation"] = np.array(said) == wanted
    right |= baselines(clips, rows, features, wavs)
    result = summarize(rows, right)
    result["mcnemar_p"] = mcnemar(right["score"], right["shuffled"])
    result["small_talk"] = small_talk(talker)
    for name in ("probe", "meters"):
        at = ~np.isnan(right[name])
        ours, theirs = right["score"][at], right[name][at] > 0
        result[f"mcnemar_p_{name}"] = mcnemar(ours, theirs)
        result[f"beside_{name}"] = [int(each.sum()) for each in (ours, theirs, at)]
    choices = []
    for row, each, text in zip(rows, scores["score"], said):
        best = int(each.argmax())
        choices.append({"id": row["id"], "chosen": row["options"][best],
                        "right": best == row["key"], "said": text,
                        "log_probability": [round(x, 3) for x in each.tolist()]})
    return result, choices


def summarize(rows, right):
    """Return the figures of all questions, of each part and cell; shares are fractions.

    right: {condition: (n,), true or not, or NaN}, with "score".
    """
    def figures(members):
        found, n = {}, len(members)
        for name, each in right.items():
            known = each[members][~np.isnan(each[members])]
            found[name] = round(float(known.mean()), 4) if len(known) else None
        n_right = int(right["score"][members].sum())
        return found | {"right": n_right, "of": n, "interval": wilson(n_right, n)}

    result = figures(np.arange(len(rows))) | {"questions": len(rows)}
    for field in ("cell", "part"):
        groups = members_by(rows, field)
        result[f"{field}s"] = {name: figures(members) for name, members in groups.items()}
    return result


# ---- what is shown

def table(result):
    """Return the result as lines of markdown."""
    columns = ("score", "meters", "probe", "majority", "shuffled", "noise", "no_audio",
               "free_generation")
    lines = [f"| cell | of | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    parts = result["parts"] if len(result["parts"]) > 1 else {}
    for name, cell in [*result["cells"].items(), *parts.items(), ("all", result)]:
        shares = ["" if cell[x] is None else f"{100 * cell[x]:.1f}%" for x in columns]
        lines.append(f"| {name} | {cell['of']} | {' | '.join(shares)} |")
    low, high = result["interval"]
    lines.append(f"95% interval of all: {100 * low:.1f} - {100 * high:.1f}%; McNemar's p against "
                 f"another clip's audio {result['mcnemar_p']:.1e}")
    is_right = [each for *_, each in result["small_talk"]]
    lines.append(f"small talk in new words: {sum(is_right)} of {len(is_right)} answered in kind")
    for name in ("meters", "probe"):
        ours, theirs, n = result[f"beside_{name}"]
        lines.append(f"where {name} can answer: {ours} of {n} right, {name} {theirs}, McNemar's p "
                     f"{result[f'mcnemar_p_{name}']:.1e}")
    return lines


def page(rows, choices, folder):
    """Return an HTML page for `folder` that plays each cell's first N_PLAYED errors.

    rows: of read_bench(); choices: of run_bench().
    """
    parts = ["<!doctype html><meta charset=utf-8><title>AudioBench-mini</title>"]
    for cell, members in members_by(rows, "cell").items():
        wrong = [i for i in members if not choices[i]["right"]]
        parts.append(f"<h2>{html.escape(cell)}: {len(wrong)} of {len(members)} wrong</h2>")
        for i in wrong[:N_PLAYED]:
            row = rows[i]
            path = quote(os.path.relpath(row["audio"], folder))
            text = (f"{row['part']}: {row['question']}? {', '.join(row['options'])}. chosen: "
                    f"{choices[i]['chosen']}; right: {row['options'][row['key']]}")
            parts.append(f"<p>{html.escape(text)}<br>"
                         f'<audio controls preload=none src="{path}"></audio>')
    return "\n".join(parts)
