"""
Word error rate of a checkpoint on speech, beside its shuffled control: folders in LibriSpeech's layout, lists of clips.

    python eval_bench.py --ckpt=out/w2_frozen --data=data/LibriSpeech/test-clean   # one folder: the key is `wer`
    python eval_bench.py --ckpt=out/real --data=adults=test_adults.jsonl,children=test_children.jsonl
    python eval_bench.py config/cpu_eval.py                                        # the CPU demo: two named folders
    python eval_bench.py --data=test_adults.jsonl --beside=out/whisper/eval_whisper.jsonl
    python eval_bench.py --ckpt=out/cpu_w3 --bench=data/audiobench_mini            # 200 questions, with controls
    python eval_bench.py --bench=data/audiobench_mini --answers=theirs.jsonl --out_dir=out/theirs   # another model's

Writes eval.json (fractions; the last line of stdout too), eval_<name>.jsonl (raw reference and
hypothesis, worst first), eval.png and report.md into the run's folder. scoring.py says how errors
are counted and which clips are left out. A clip of silence counts: what is heard there is an error.
Shuffled control: each clip with words against what the model hears in another one of similar
length. Its floor is that other clip's reference: what a perfect listener would score. --beside puts
another system's transcripts of the same clips beside ours (eval_whisper.py).
"""
import hashlib
import importlib.metadata
import json
import math
import os
import re
import sys
import time
from collections import Counter
from itertools import chain, zip_longest

import numpy as np

from configurator import configure, fail
from files import AUDIO_SUFFIXES, find_files, find_path, read_jsonl, sha256_file
from record import changed_code, need, provenance
from scoring import (compare, count_edits, error_rate, groups_of, parse_folders, read_beside,
                     read_folder)

# config: every value here can be set from a config file or as --name=value
ckpt = "out/cpu_w2"    # the run's folder
step = -1              # which checkpoint of it; -1: the last, -2: the best
data = ""              # [name=]folder[,[name=]folder...]: in LibriSpeech's layout, or a .jsonl of {"audio", "text"}
out_dir = ""           # where the results go; '': the run's folder
batch_size = 32        # recordings encoded and decoded together; the value to lower on out-of-memory
beams = 5              # hypotheses kept a recording, as Whisper keeps; 1: greedy
max_clips = 0          # at most so many clips of each folder, drawn by seed; 0: all
device = "auto"        # auto, cuda, mps, cpu
bench = ""             # a folder of questions.jsonl and recordings: these are asked, in place of word error rates
answers = ""           # with bench: a .jsonl of {"id", "answer": an option or A to D} to score in place of a run's own
page = False           # with bench: page.html too, 20 random questions to be checked by ear
question = ""          # of a run that answers: asked for the transcript, '': written down as in alignment
seed = 0               # of the bootstrap, max_clips and the transcripts shown
n_shown = 5            # transcripts kept, of all folders in turn; five are printed
beside = ""            # comma-separated .jsonl of eval_whisper.py, to stand beside ours
config = configure(globals())  # prints each change
# -----------------------------------------------------------------------------
KINDS = ("wer", "wer_shuffled", "wer_shuffled_floor")


def load_listener():
    """Return (model, meta, tok, encoder, projector) of the setting `ckpt`; ValueError for a run that takes no audio."""
    from audio import load_ears
    from model import load_checkpoint, pick_device, read_meta
    from tokenizer import load_tokenizer
    prompt = (read_meta(ckpt, step).get("audio") or {}).get("prompt")
    if not prompt or prompt != "chat" and (bench or question):
        raise ValueError(f"{ckpt} " + ("transcribes and answers no questions: give a run of train_sft.py" if prompt else
                                       "takes no audio: give a run of train_align.py or train_sft.py"))
    model, meta = load_checkpoint(ckpt, step, pick_device(device))
    tok = load_tokenizer(ckpt, model.config.vocab_size)
    return (model, meta, tok, *load_ears(ckpt, meta, model.cos.device))


# ---- listening

def hear(listener, clips):
    """Return what the model hears in each clip (list of str), and how many pieces were cut off in a loop.

    Batches are of similar length, the longest first.
    """
    from tqdm import tqdm
    from audio import encode, read_audio, split_at_pauses
    from decode import transcribe
    model, meta, tok, encoder, projector = listener
    ears, heard, asks, cut = meta["audio"], [[] for _ in clips], {}, []
    if question:
        from tokenizer import chat_prompt
        from transcripts import plain_text
        asks = {"prompt": chat_prompt(tok, [], plain_text(question) if ears["plain"] else question)}
    order = sorted(range(len(clips)), key=lambda i: -clips[i]["seconds"])
    with tqdm(total=len(clips), unit="clip", desc="listening") as bar:
        for start in range(0, len(order), batch_size):
            rows, pieces = order[start:start + batch_size], []
            for i in rows:
                wav = read_audio(clips[i]["audio"])
                spans = split_at_pauses(wav, ears.get("piece_s", 15.0))  # training's clips' length
                pieces += [(i, wav[begin:end]) for begin, end in spans]
            for first in range(0, len(pieces), batch_size):
                owners, wavs = zip(*pieces[first:first + batch_size])
                features = encode(encoder, wavs, tuple(ears["taps"]))
                texts = transcribe(model, projector, tok, features, ears["audio_at"], beams, **asks, cut=cut)
                for i, text in zip(owners, texts):
                    heard[i].append(text)
            bar.update(len(rows))
    return [" ".join(filter(None, texts)) for texts in heard], len(cut)


def lm_nats(model, tok, texts):
    """Return the nats of all texts without audio: their tokens and the closing bos, each text after a bos."""
    import torch
    rows, nats = sorted((tok.encode(text) for text in texts), key=len), 0.0
    for start in range(0, len(rows), batch_size):
        batch = [torch.tensor([tok.bos_id, *row, tok.bos_id]) for row in rows[start:start + batch_size]]
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=-1).to(model.cos.device)
        with torch.inference_mode():
            nats += model(ids[:, :-1].clamp(min=0), ids[:, 1:], loss_reduction="sum").item()
    return nats


# ---- scoring

def shuffle(seconds, texts):
    """Return for each clip the index of the clip whose audio it gets, int (n,): a permutation, never the same text.

    A cycle up the even ranks of the length-sorted order and down the odd ones: lengths are two ranks apart at most.
    Where it pairs the same text, the nearest clip that fits swaps. ValueError when one text is over half of the clips.
    """
    order = np.argsort(seconds, kind="stable")
    cycle = np.concatenate([order[0::2], order[1::2][::-1]])
    partner = np.empty(len(order), dtype=np.int64)
    partner[cycle] = np.roll(cycle, -1)
    for at, i in enumerate(order):
        if texts[i] == texts[partner[i]]:
            fits = [k for k, j in enumerate(order) if texts[i] not in (texts[j], texts[partner[j]])]
            if not fits:
                raise ValueError(f"data: of {len(texts)} clips too many say '{texts[i]}' for the shuffled control: "
                                 "give two clips or more, of different texts")
            j = order[min(fits, key=lambda k: abs(k - at))]
            partner[i], partner[j] = partner[j], partner[i]
    return partner


def count_kinds(clips, heard, partner):
    """Return {kind: counts (n, 4)} of KINDS; the shuffled ones are of the clips with words.

    partner: of each clip with words, the index among them of the clip whose audio it gets.
    """
    references = [clip["reference"] for clip in clips]
    counts = {"wer": count_edits(references, heard)}
    spoken = [i for i, clip in enumerate(clips) if clip["text"]]
    others = [spoken[j] for j in partner]
    for kind, texts in (("wer_shuffled", heard), ("wer_shuffled_floor", references)):
        counts[kind] = count_edits([references[i] for i in spoken], [texts[i] for i in others])
    return counts


def figures(parts):
    """Return the figures of evaluate_folder()'s parts, pooled; rates are fractions."""
    clips = [clip for part in parts for clip in part["clips"]]
    groups = [f"{part['name']} {group}" for part in parts for group in part["groups"]]
    spoken = [group for group, clip in zip(groups, clips) if clip["text"]]
    rates, ends = {}, {}
    for kind in KINDS:
        counts = np.concatenate([part["counts"][kind] for part in parts])
        rates[kind], ends[kind] = error_rate(counts, groups if kind == "wer" else spoken, seed)
    words, *edits = sum(part["counts"]["wer"].sum(axis=0) for part in parts).tolist()
    names = ("substitutions", "deletions", "insertions")
    trained = sum(len(clip["text"].split()) for clip in clips)  # words as the LM was trained on them
    return {**rates, **{name: round(n / words, 5) for name, n in zip(names, edits)},
            "cut_off": sum(part["cut_off"] for part in parts),
            "clips": len(clips), "silent_clips": len(clips) - len(spoken), "words": words,
            "resampled": sorted({group.split()[0] for part in parts for group in part["groups"]}),
            "lm_ppl_word": round(math.exp(sum(part["nats"] for part in parts) / trained), 2),
            "intervals": ends}


def evaluate_folder(listener, name, clips, partner, theirs):
    """Hear and score the clips of one folder, write its jsonl; return what figures() takes.

    theirs: another system's transcripts of the clips, or None.
    """
    (heard, n_cut), groups = hear(listener, clips), groups_of(clips)
    counts, rows = count_kinds(clips, heard, partner), []
    for clip, text, (words, *edits) in zip(clips, heard, counts["wer"].tolist()):
        rows.append({"key": clip["key"], "errors": sum(edits), "words": words,
                     "reference": clip["reference"], "hypothesis": text, "audio": clip["audio"]})
    drawn = np.random.default_rng(seed).permutation(len(rows))[:n_shown]
    shown = [{"folder": name, **rows[i]} for i in drawn]
    rows.sort(key=lambda row: (-row["errors"] / max(row["words"], 1), row["key"]))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write(f"eval_{name}.jsonl" if name else "eval.jsonl", lines)
    texts = [clip["text"] for clip in clips if clip["text"]]
    part = {"name": name, "clips": clips, "groups": groups, "counts": counts, "shown": shown,
            "cut_off": n_cut,
            "nats": lm_nats(listener[0], listener[2], texts)}
    if theirs:
        others = count_edits([clip["reference"] for clip in clips], theirs)
        part["beside"] = {"file": beside, **compare(counts["wer"], others, groups, seed)}
    return part


def evaluate():
    """Evaluate the checkpoint on every folder, write all but report.md; return eval.json's dict."""
    began = time.perf_counter()
    folders = parse_folders(data)  # a wrong setting fails before the work
    found = [read_folder(folder, max_clips, seed) for _, folder in folders]
    theirs = [read_beside(beside, clips) if beside else None for clips, _ in found]
    partners = []
    for clips, _ in found:
        spoken = [clip for clip in clips if clip["text"]]
        partners.append(shuffle([c["seconds"] for c in spoken], [c["text"] for c in spoken]))
    listener = load_listener()
    parts, tables, left_out = [], {}, Counter()
    for (name, folder), (clips, missing), partner, others in zip(folders, found, partners, theirs):
        parts.append(evaluate_folder(listener, name, clips, partner, others))
        tables[name] = {"folder": folder, **figures(parts[-1:]), "left_out": dict(missing)}
        tables[name] |= {"beside": parts[-1]["beside"]} if beside else {}
        left_out += missing
    result = figures(parts)
    del result["wer"], result["intervals"]["wer"]  # over folders that have nothing to do with each other
    for name, table in tables.items():
        key = f"wer_{name}" if name else "wer"
        result[key], result["intervals"][key] = table["wer"], table["intervals"]["wer"]
    shown = [row for row in chain(*zip_longest(*(part["shown"] for part in parts))) if row]
    result |= {"folders": tables, "left_out": left_out, "transcripts": shown[:n_shown]}
    result |= origin(began, listener)
    draw(result)
    write("eval.json", json.dumps(result, indent=1) + "\n")
    return result


def origin(began, listener=None):
    """Return what a result comes from: inputs, checkpoint, seconds since `began`, code, machine."""
    seconds = time.perf_counter() - began
    found = {"ckpt": ckpt if listener else "", "seed": seed, "date": time.strftime("%Y-%m-%d"),
             "seconds": round(seconds, 1), "minutes": round(seconds / 60, 2), "inputs": inputs()}
    device = "cpu"
    if listener:
        model, meta = listener[:2]
        found |= {"step": meta["step"], "beams": beams, "encoder": meta["audio"]["encoder"]}
        device = model.cos.device
    packages = ("transformers", "num2words", "numpy")
    return found | provenance(device) | {name: importlib.metadata.version(name) for name in packages}


def inputs():
    """Return what a result depends on beside the code: settings, and checksums of checkpoint and data."""
    from model import read_meta
    settings = {name: value for name, value in config.items() if name != "device"}
    paths = [bench, answers] if bench else [folder for _, folder in parse_folders(data)]
    paths += beside.split(",")
    sums = {path.strip(): data_sum(path.strip()) for path in paths if path.strip()}
    checkpoint = {} if answers else read_meta(ckpt, step).get("sha256", {})
    return {"settings": settings, "data": sums, "checkpoint": checkpoint,
            "dtype": os.environ.get("NANOCHAT_DTYPE", "")}


def data_sum(path):
    """Return a checksum of a list or of a folder: its texts, and the names and sizes of its recordings."""
    digest, texts = hashlib.sha256(), (".txt", ".jsonl")
    names = find_files(path, (*texts, *AUDIO_SUFFIXES)) if os.path.isdir(path) else [path]
    if path.endswith(".jsonl"):
        named = [find_path(os.path.dirname(path), str(row["audio"])) for _, row in read_jsonl(path) if "audio" in row]
        names += sorted(name for name in named if os.path.isfile(name))
    for name in names:
        digest.update(f"{os.path.relpath(name, path)} {os.path.getsize(name)}\n".encode())
        if name.lower().endswith(texts):
            digest.update(sha256_file(name).encode())
    return digest.hexdigest()


def earlier(name):
    """Return the result in the file `name`, if it is of the same inputs and code, else None."""
    try:
        with open(os.path.join(out_dir or ckpt, name), encoding="utf-8") as f:
            result = json.load(f)
        is_same = result["inputs"] == json.loads(json.dumps(inputs())) and not changed_code(result["code"])
        return result if is_same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ---- what is left behind

def write(name, content):
    """Write a file of results (str or bytes) under a temporary name, then rename it."""
    path = os.path.join(out_dir or ckpt, name)
    os.makedirs(out_dir or ckpt, exist_ok=True)
    with open(path + ".tmp", "wb") as f:
        f.write(content.encode() if isinstance(content, str) else content)
    os.replace(path + ".tmp", path)


def draw(result):
    """Write eval.png: each folder's word error rate and interval, beside shuffled audio and its floor."""
    import io
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    tables, png = list(result["folders"].values()), io.BytesIO()
    fig, ax = plt.subplots(figsize=(3 + 2 * len(tables), 4))
    labels = ("its own audio", "another clip's audio", "floor: another clip's text")
    for k, (kind, label) in enumerate(zip(KINDS, labels)):
        x, rates = np.arange(len(tables)) + 0.27 * (k - 1), np.array([100 * t[kind] for t in tables])
        ends = 100 * np.array([t["intervals"][kind] for t in tables]).T  # (2, folders)
        ax.bar_label(ax.bar(x, rates, 0.25, yerr=abs(ends - rates), capsize=3, label=label), fmt="%.1f")
    ax.set_xticks(range(len(tables)), [f"{name or t['folder']}\n{t['clips']} clips"
                                       for name, t in result["folders"].items()])
    ax.margins(y=0.1)
    ax.set(ylabel="word error rate, % (95% interval)", title=f"{result['ckpt']}, step {result['step']}")
    ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3)
    fig.savefig(png, format="png", dpi=120, bbox_inches="tight")
    plt.close(fig)
    write("eval.png", png.getvalue())


def closing_text(result):
    """Return the table of results, transcripts and the command that talks to the model: markdown that prints well."""
    rates = []
    for name, table in result["folders"].items():
        suffix = f", {name}" if name else ""
        rates.append(("word error rate" + suffix, table["wer"], table["intervals"]["wer"]))
        if other := table.get("beside"):
            rates.append(("beside" + suffix, other["wer"], other["interval"]))
            rates.append(("  difference, paired", other["difference"], other["difference_interval"]))
    rates += [("with another clip's audio", result["wer_shuffled"], result["intervals"]["wer_shuffled"]),
              ("floor: another clip's text", result["wer_shuffled_floor"], result["intervals"]["wer_shuffled_floor"])]
    rows = [(what, f"{100 * rate:.1f}%", f"{100 * low:.1f} - {100 * high:.1f}") for what, rate, (low, high) in rates]
    rows += [("LM's perplexity a word, no audio", f"{result['lm_ppl_word']:.1f}", ""),
             ("clips", str(result["clips"]), ""), ("minutes", f"{result['minutes']:.1f}", "")]
    rows += [("cut off: written in a loop", str(result["cut_off"]), "")] if result["cut_off"] else []
    rows += [(f"left out: {why}", str(n), "") for why, n in result["left_out"].items()]
    head = ("result", "figure", f"95% by {' or '.join(result['resampled'])}")
    rows = [head, ("-" * 38, "-" * 8, "-" * 15), *rows]
    lines = [f"| {what:<38} | {figure:>8} | {ends:<15} |" for what, figure, ends in rows]
    shown = result["transcripts"][:5]
    lines += ["", f"{len(shown)} held-out transcripts, drawn at random:", ""]
    for row in shown:
        lines += [f"    reference  {row['reference']}", f"    heard      {row['hypothesis']}", ""]
    own = os.path.relpath(sys.executable)
    command = (f"{'python' if own.startswith('..') else own} chat.py --ckpt={ckpt} "
               f"--audio={result['transcripts'][0]['audio']}")
    return "\n".join([*lines, "Talk to it:", "", f"    {command}", ""])


def write_report(result):
    """Write report.md: figures, transcripts, losses (of log.jsonl), settings (of meta), machine and minutes."""
    from model import read_meta
    meta = read_meta(ckpt, result["step"])
    seen, log = {}, os.path.join(ckpt, "log.jsonl")
    for _, row in read_jsonl(log) if os.path.isfile(log) else []:
        for name in [name for name in row if re.search("loss|wer|gap", name) and isinstance(row[name], float)]:
            at = f"{row[name]:.4f} (step {row.get('step', '-')})"
            seen[name] = seen.get(name, (at,))[0], at
    lines = [f"# {ckpt}, step {result['step']}", "", f"{result['date']}, commit {result['git_commit'] or 'unknown'}; "
             f"{result['device']}, {result['dtype']}, torch {result['torch']}; {result['minutes']} minutes; "
             f"encoder {result['encoder']}, {result['beams']} beams.", ""]
    pictures = [f"![]({name})" for name in ("eval.png", "pca.png")
                if os.path.isfile(os.path.join(out_dir or ckpt, name))]
    lines += [closing_text(result), *pictures, ""]
    for name in result["folders"] if len(result["transcripts"]) > 5 else ():
        rows = [row for row in result["transcripts"] if row["folder"] == name]
        lines += [f"## {name or 'All'}: {len(rows)} transcripts, drawn at random, what was said and what was heard", ""]
        lines += [f"    {row['reference']}\n    {row['hypothesis']}\n" for row in rows]
    lines += ["## Losses: first and last of log.jsonl", ""]
    lines += [f"    {name} = {first} ... {last}" for name, (first, last) in seen.items()]
    lines += ["", "## Settings", ""]
    lines += [f"    {name} = {value!r}" for name, value in meta.get("user_config", {}).items()]
    write("report.md", "\n".join(lines) + "\n")


def evaluate_bench():
    """Ask the questions of the bench, or score the answers given; write bench.json and its jsonl, picture and page."""
    import audiobench
    began, listener = time.perf_counter(), None
    audiobench.read_bench(bench)  # a wrong folder fails before the work
    if result := earlier("bench.json"):
        return print("\n".join([*audiobench.table(result), "", f"{out_dir or ckpt}/bench.json is up to date"]))
    if answers:
        result, choices = audiobench.score_answers_file(bench, answers)
    else:
        listener = load_listener()
        result, choices = audiobench.run_bench(listener, bench, batch_size, seed)
    result |= origin(began, listener)
    write("bench.jsonl", "".join(json.dumps(choice) + "\n" for choice in choices))
    audiobench.draw_bench(result, os.path.join(out_dir or ckpt, "bench.png"))
    if page:
        write("page.html", audiobench.page(bench, choices, 20, seed))
    write("bench.json", json.dumps(result, indent=1) + "\n")  # last: it says that all is there
    print("\n".join([*audiobench.table(result), "", f"{result['minutes']:.1f} minutes; {out_dir or ckpt}/bench.json"]))


def main():
    need("matplotlib", "transformers", "num2words")  # before the listening
    if min(batch_size, beams, n_shown) < 1:
        raise ValueError(f"{batch_size=}, {beams=}, {n_shown=}: give 1 or more")
    if answers and not (bench and out_dir):
        raise ValueError("answers needs bench, the folder of the questions, and out_dir, where the results go")
    if bench:
        return evaluate_bench()
    old = earlier("eval.json")
    result = old or evaluate()
    write_report(result)
    print(closing_text(result))
    if old:
        print(f"{out_dir or ckpt}/eval.json is up to date")
    print(json.dumps(result))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        fail(e)
