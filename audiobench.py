"""AudioBench-mini: four-choice questions about recordings, how a model answers them, and the controls beside it.

A bench is a folder of recordings and questions.jsonl, a line {"id", "cell", "task", "audio", "question", "options":
four, "key": 0 to 3} each. prepare_instruct.py --bench=True makes one.
"""
import base64
import html
import json
import math
import os
from pathlib import Path

import numpy as np
import torch

from audio import encode
from recordings import read_audio
from data import Features, load_batch
from decode import generate, score_answers
from files import read_lines
from tokenizer import chat_prompt, multiple_choice
from transcripts import plain_text, require_distinct

CONDITIONS = ("real", "shuffled", "noise", "no_audio")
LETTERS = "ABCD"


def read_bench(folder):
    """-> rows of questions.jsonl; ValueError names the line or recording that is wrong."""
    path = Path(folder, "questions.jsonl")
    if not path.is_file():
        raise ValueError(f"{path} is missing: prepare_instruct.py config/cpu_bench.py makes a bench")
    rows, seen = [], set()
    for number, line in enumerate(read_lines(path), 1):
        try:
            row = json.loads(line)
            row |= {"id": str(row["id"]), "audio": os.path.join(folder, row["audio"])}
            is_whole = (len(set(row["options"])) == len(row["options"]) == 4 and row["key"] in range(4)
                        and row["question"] and row["cell"] and row["task"] and row["id"] not in seen)
        except (ValueError, KeyError, TypeError):
            is_whole = False
        if not is_whole or not os.path.isfile(row["audio"]):
            raise ValueError(f"{path}:{number}: needs an own id, cell, task, audio that is there, question, four "
                             "different options, and key, 0 to 3")
        try:
            require_distinct(row["question"], row["options"], read_option)
        except ValueError as e:
            raise ValueError(f"{path}:{number}: {e}") from None
        seen.add(row["id"])
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no question")
    return rows


def read_option(text):
    """Return an option or an answer as answers are compared: as it is spoken; 42 is forty two."""
    return plain_text(text, strict=False) or text.strip()


# ---- statistics

def wilson(right, n):
    """The 95% interval of right of n (Wilson 1927) -> [low, high], fractions."""
    z, share = 1.959964, right / n
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return [round((centre - half) / (1 + z * z / n), 4), round((centre + half) / (1 + z * z / n), 4)]


def mcnemar(a, b):
    """Exact p of two lists of right (bool) on the same questions being equally good (McNemar 1947)."""
    only_a, only_b = (sum(x and not y for x, y in zip(*pair)) for pair in ((a, b), (b, a)))
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2 ** n
    return min(1.0, 2 * tail)


def partners(rows, seed):
    """Whose audio each question gets in the shuffled control: another one's of its cell, int (n,)."""
    cells, partner = {}, np.arange(len(rows))
    for i, row in enumerate(rows):
        cells.setdefault(row["cell"], []).append(i)
    for members in cells.values():
        order = np.random.default_rng([seed, members[0]]).permutation(members)
        partner[order] = np.roll(order, 1)
    return partner


# ---- a model's answers

def hear_all(encoder, projector, taps, wavs):
    """Waveforms -> (features float16 (T, n_taps, D), audio tokens (T_a, C)) of each."""
    features = encode(encoder, wavs, tuple(taps))
    device, tokens = encoder.conv1.weight.device, []
    with torch.inference_mode():
        for x in features:
            audio, n = projector(torch.from_numpy(x)[None].to(device), torch.tensor([len(x)]))
            tokens.append(audio[0, :n])
    return features, tokens


def score_options(listener, rows, audio, batch_size):
    """Mean log-probability of each option over the four rotations of the list, float64 (n, 4), and how often which
    place in the list was the likeliest, a list of four. audio: tokens of each question, or None."""
    model, meta, tok, *_ = listener
    clean = plain_text if meta["audio"].get("plain") else str
    end, jobs = [tok.special("<|assistant_end|>")], []
    for i, row in enumerate(rows):
        for turn in range(4):
            order = [(k + turn) % 4 for k in range(4)]
            options = [row["options"][k] for k in order]
            prompt = chat_prompt(tok, [], clean(multiple_choice(row["question"], options)))
            jobs.append((i, order, prompt, [tok.encode(clean(option)) + end for option in options]))
    jobs.sort(key=lambda job: len(job[2]) + (0 if audio is None else len(audio[job[0]])))
    scores, places = np.zeros((len(rows), 4)), [0] * 4
    for start in range(0, len(jobs), batch_size):
        part = jobs[start:start + batch_size]
        sums = score_answers(model, [job[2] for job in part], [job[3] for job in part],
                             None if audio is None else [audio[job[0]] for job in part], meta["audio"]["audio_at"])
        for (i, order, *_), each in zip(part, sums.tolist()):
            scores[i, order] += np.array(each) / 4
            places[int(np.argmax(each))] += 1
    return scores, places


def answer_freely(listener, rows, audio, batch_size):
    """What the model says (greedy) to each question: [(is it the key's text, the text)]."""
    model, meta, tok, *_ = listener
    clean = plain_text if meta["audio"].get("plain") else str
    said, end = [], tok.special("<|assistant_end|>")
    for start in range(0, len(rows), batch_size):
        part = range(start, min(start + batch_size, len(rows)))
        prompts = [chat_prompt(tok, [], clean(multiple_choice(rows[i]["question"], rows[i]["options"]))) for i in part]
        streams, ids = generate(model, prompts, [audio[i] for i in part], meta["audio"]["audio_at"], 32,
                                stop_ids=(end, tok.bos_id)), [[] for _ in part]
        for step in streams:
            for row, token in zip(ids, step):
                row += [] if token is None else [token]
        said += [tok.decode(row) for row in ids]
    return [(clean(row["options"][row["key"]]).strip() == text.strip(), text.strip()) for row, text in zip(rows, said)]


# ---- the ceiling: a linear probe

def pool(x):
    """Features (T, n_taps, D) -> mean, spread, and how far quarters are from it, float32 (3*n_taps*D,)."""
    x = np.asarray(x, np.float32).reshape(len(x), -1)
    quarters = np.stack([part.mean(0) for part in np.array_split(x, 4) if len(part)])
    return np.concatenate([x.mean(0), x.std(0), np.abs(quarters - x.mean(0)).mean(0)])


def ridge(x, y, strength=300.0):
    """Weights (features, classes) of a ridge regression of one-hot y on standardized x, in its dual form."""
    gram = x @ x.T
    return x.T @ np.linalg.solve(gram + strength * np.eye(len(x), dtype=np.float32), y)


def probe(data_dir, ears, rows, features, seed=0, most=1500):
    """Answers of a linear probe of the training features' labels: {index of a question: right or not}.

    Questions whose answers are an open set (words, sentences) have none.
    """
    clips = Features(data_dir, "train", ears["encoder_sha256"], ears["taps"])
    by_task, right = {}, {}
    for i, row in enumerate(rows):
        by_task.setdefault(row["task"], []).append(i)
    for task, members in by_task.items():
        at = [i for i, info in enumerate(clips.infos) if task in info.get("labels", {})]
        labels = sorted({clips.infos[i]["labels"][task] for i in at})
        if not 1 < len(labels) <= 50 or not all(set(rows[i]["options"]) <= set(labels) for i in members):
            continue
        at = np.random.default_rng(seed).permutation(at)[:most]
        x = np.stack([pool(load_batch(clips, [i])[0][0]) for i in at])
        centre, scale = x.mean(0), x.std(0) + 1e-6
        y = np.array([[clips.infos[i]["labels"][task] == label for label in labels] for i in at], np.float32)
        weight = ridge((x - centre) / scale, y - y.mean(0))
        for i in members:
            votes = dict(zip(labels, (pool(features[i]) - centre) / scale @ weight + y.mean(0)))
            options = rows[i]["options"]
            right[i] = max(options, key=votes.get) == options[rows[i]["key"]]
    return right


# ---- the whole bench

def run_bench(listener, folder, batch_size, seed):
    """Ask a model everything under every condition -> (result, choices): the dict of bench.json and each question's
    {"id", "chosen", "right", ...}."""
    model, meta, tok, encoder, projector = listener
    rows, rng = read_bench(folder), np.random.default_rng(seed)
    wavs = [read_audio(row["audio"]) for row in rows]
    features, real = hear_all(encoder, projector, meta["audio"]["taps"], wavs)
    noise = [(0.03 * rng.standard_normal(len(wav))).astype(np.float32) for wav in wavs]
    audio = {"real": real, "shuffled": [real[j] for j in partners(rows, seed)], "no_audio": None,
             "noise": hear_all(encoder, projector, meta["audio"]["taps"], noise)[1]}
    scores, places = {}, {}
    for name in CONDITIONS:
        scores[name], places[name] = score_options(listener, rows, audio[name], batch_size)
    keys = np.array([row["key"] for row in rows])
    right = {name: (each.argmax(1) == keys) for name, each in scores.items()}
    right["pmi"] = (scores["real"] - scores["no_audio"]).argmax(1) == keys
    free = answer_freely(listener, rows, real, batch_size)
    right["free_generation"] = np.array([ok for ok, _ in free])
    data_dir = meta["user_config"].get("data_dir", "")
    has_data = all(os.path.isdir(part.partition("*")[0]) for part in data_dir.split(","))
    probed = probe(data_dir, meta["audio"], rows, features) if has_data else {}
    result = summarize(rows, right, probed) | {
        "bench": folder, "mcnemar_p": mcnemar(right["real"].tolist(), right["shuffled"].tolist()),
        "chosen_places": places["real"], "step": meta["step"]}
    choices = [{"id": row["id"], "chosen": row["options"][int(each.argmax())], "right": bool(ok), "said": text,
                "log_probability": [round(float(x), 3) for x in each]}
               for row, each, ok, (_, text) in zip(rows, scores["real"], right["real"], free)]
    return result, choices


def summarize(rows, right, probed=()):
    """Scores with intervals, of all questions and by cell: right is {name: bool (n,)}."""
    def figures(members):
        known, n_right = [probed[i] for i in members if i in probed], int(right["real"][members].sum())
        scores = {"score" if name == "real" else name: mean(each[members]) for name, each in right.items()}
        return scores | {"right": n_right, "of": len(members), "interval": wilson(n_right, len(members)),
                         "probe": mean(known) if known else None, "probed": len(known)}

    mean = lambda each: round(float(np.mean(each)), 4)
    by = lambda key: {name: figures([i for i, row in enumerate(rows) if row[key] == name])
                      for name in dict.fromkeys(row[key] for row in rows)}
    result = figures(list(range(len(rows)))) | {"questions": len(rows), "cells": by("cell")}
    result["tasks"] = {task: [own["right"], own["of"], round(own["probe"] * own["probed"]) if own["probed"] else None]
                       for task, own in by("task").items()}
    if "shuffled" in right:
        result["intervals"] = {name: wilson(int(each.sum()), len(rows)) for name, each in right.items()}
    return result


def score_answers_file(folder, path):
    """Score any model's answers: a jsonl of {"id", "answer": the option's text, or A to D} -> (result, choices)."""
    rows, said = read_bench(folder), {}
    for number, line in enumerate(read_lines(path), 1):
        try:
            row = json.loads(line)
            said[str(row["id"])] = str(row["answer"]).strip()
        except (ValueError, KeyError, TypeError):
            raise ValueError(f'{path}:{number}: no JSON object with "id" and "answer"') from None
    unknown = set(said) - {row["id"] for row in rows}
    if unknown:
        raise ValueError(f"{path}: the bench has no question {sorted(unknown)[0]}")
    choices = []
    for row in rows:
        text = said.get(row["id"], "")
        spoken = read_option(text)
        places = [k for k, option in enumerate(row["options"]) if read_option(option) == spoken]
        places = places or [k for k, letter in enumerate(LETTERS) if letter == text.strip(" ().:").upper()]
        choices.append({"id": row["id"], "said": text, "chosen": row["options"][places[0]] if places else "",
                        "right": places[:1] == [row["key"]]})
    right = {"real": np.array([choice["right"] for choice in choices])}
    return summarize(rows, right) | {"bench": folder, "answers": path, "missing": len(rows) - len(said),
                                     "malformed": sum(not choice["chosen"] for choice in choices)}, choices


# ---- what is shown

def table(result):
    """The result as lines of markdown."""
    percent = lambda x: "" if x is None else f"{100 * x:.1f}%"
    lines = ["| cell | right | 95% | shuffled | no audio | probe |", "|---|---|---|---|---|---|"]
    for name, cell in [*result["cells"].items(), ("all", result | {"of": result["questions"]})]:
        low, high = cell["interval"]
        probed = percent(cell["probe"]) + (f" of {cell['probed']}" if 0 < cell["probed"] < cell["of"] else "")
        lines.append(f"| {name} | {percent(cell['score'])} | {100 * low:.0f} - {100 * high:.0f} | "
                     f"{percent(cell.get('shuffled'))} | {percent(cell.get('no_audio'))} | {probed} |")
    if "shuffled" in result:
        lines += ["", f"free generation {percent(result['free_generation'])}, less what text alone says "
                  f"{percent(result['pmi'])}, noise for audio {percent(result['noise'])}; McNemar's p against shuffled "
                  f"{result['mcnemar_p']:.1e}; places chosen {result['chosen_places']}"]
    return lines


def draw_bench(result, path):
    """Write a picture: cells x (score, shuffled, no audio, probe), with intervals and chance."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    cells = {**result["cells"], "all": result | {"of": result["questions"]}}
    fig, ax = plt.subplots(figsize=(12, 4.5))
    kinds = (("score", "the model", "C0"), ("shuffled", "another clip's audio", "C1"),
             ("no_audio", "no audio", "C7"), ("probe", "linear probe", "C2"))
    for k, (kind, label, color) in enumerate(kinds):
        shown = [(at, cell) for at, cell in enumerate(cells.values()) if cell.get(kind) is not None]
        if not shown:
            continue
        shares = np.array([cell[kind] for _, cell in shown])
        counts = [cell["probed" if kind == "probe" else "of"] for _, cell in shown]
        ends = np.array([wilson(round(share * n), n) for share, n in zip(shares, counts)]).T
        ax.bar([at + 0.2 * (k - 1.5) for at, _ in shown], 100 * shares, 0.19, label=label, color=color,
               yerr=100 * abs(ends - shares), capsize=2, error_kw={"lw": 0.8})
    ax.axhline(25, color="black", lw=0.8, ls="--")
    ax.set_xticks(range(len(cells)), [name.replace(" or ", " or\n").replace("different ", "different\n")
                                      for name in cells], fontsize=8)
    ax.set(ylabel="right, % (95% interval)", ylim=(0, 105), title=f"AudioBench-mini, {result['questions']} questions, "
           "chance 25%")
    ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4)
    fig.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(fig)


def page(folder, choices, n, seed):
    """One html page of n random questions, to be checked by ear: player, question, options, key, choice."""
    rows, chosen = read_bench(folder), {choice["id"]: choice for choice in choices}
    parts = []
    for i in sorted(np.random.default_rng(seed).permutation(len(rows))[:n]):
        row, mine = rows[i], chosen.get(rows[i]["id"], {})
        sound = base64.b64encode(Path(row["audio"]).read_bytes()).decode()
        options = "".join(f"<li{' class=key' if k == row['key'] else ''}>{html.escape(option)}"
                          f"{' &larr; chosen' if option == mine.get('chosen') else ''}</li>"
                          for k, option in enumerate(row["options"]))
        kind = Path(row["audio"]).suffix[1:]
        parts.append(f"<section><h2>{html.escape(row['id'])} &middot; {html.escape(row['cell'])}</h2><audio controls "
                     f'src="data:audio/{kind};base64,{sound}"></audio><p>{html.escape(row["question"])}</p><ol type=A>'
                     f"{options}</ol></section>")
    style = ("body{font:16px system-ui;max-width:44rem;margin:2rem auto;padding:0 1rem}h2{font-size:1rem;color:#666}"
             ".key{font-weight:bold;color:#070}section{border-top:1px solid #ccc}")
    return (f"<!doctype html><meta charset=utf-8><title>AudioBench-mini by ear</title><style>{style}</style>"
            f"<h1>{len(parts)} questions by ear</h1><p>Green is the key. A wrong one: mend it where it is made.</p>"
            + "".join(parts))
