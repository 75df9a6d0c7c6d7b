"""
Word error rate of a checkpoint on speech, beside its shuffled control: folders in LibriSpeech's layout, lists of clips.

    python eval_bench.py --ckpt=out/w2_frozen --data=data/LibriSpeech/test-clean   # one folder: the key is `wer`
    python eval_bench.py --ckpt=out/real --data=adults=test_adults.jsonl,children=test_children.jsonl
    python eval_bench.py config/cpu_eval.py                                        # the CPU demo: two named folders
    python eval_bench.py config/cpu_eval.py --report=True --stages=out/cpu_w2/stages.jsonl   # report again
    python eval_bench.py --ckpt=out/cpu_w3 --bench=data/audiobench_mini            # 200 questions, with controls
    python eval_bench.py --bench=data/audiobench_mini --answers=theirs.jsonl --out_dir=out/theirs   # another model's

Writes eval.json (fractions; the last line of stdout too), eval_<name>.jsonl (reference and hypothesis, worst first),
eval.png and report.md into the run's folder. Shuffled control: each clip against what the model hears in another clip
of similar length; its floor is that other clip's reference, what a perfect listener would score on the wrong audio.
"""
import glob
import importlib.metadata
import json
import math
import os
import platform
import re
import sys
import time
from itertools import chain, zip_longest

import numpy as np

from configurator import configure, fail

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
n_shown = 5            # transcripts kept, of all folders in turn; five are printed, more stand in report.md
stages = ""            # a jsonl with "seconds" in each line: `minutes` is their sum; '': this evaluation's own
report = False         # True: no new evaluation; sum `stages` again, rewrite report.md and print the results
config = configure(globals())  # prints each change
# -----------------------------------------------------------------------------
N_RESAMPLES = 2000  # of the bootstrap
KINDS = ("wer", "wer_shuffled", "wer_shuffled_floor")


# ---- what is evaluated

def parse_folders(data):
    """Return [(name, folder)] of the setting `data`; the name is '' for a single folder without one."""
    parts = [part.strip().rpartition("=") for part in data.split(",") if part.strip()]
    last_part = lambda folder: os.path.basename(os.path.normpath(folder)).removesuffix(".jsonl")
    folders = [(name if eq or len(parts) == 1 else last_part(folder), folder) for name, eq, folder in parts]
    names = [name for name, _ in folders]
    if not folders:
        raise ValueError("data is empty: give a folder in LibriSpeech's layout, --data=[name=]folder[,...]")
    for name, folder in folders:
        if names.count(name) > 1 or name.startswith("shuffled") or not re.fullmatch(r"[\w-]*", name):
            raise ValueError(f"data: '{name}' can't name {folder}: give each its own name of letters, digits, - and _")
    return folders


def read_folder(folder):
    """Return the clips of a folder in LibriSpeech's layout or of a .jsonl, by key; ValueError when there are none."""
    lines = []
    if folder.endswith(".jsonl") and os.path.isfile(folder):
        try:
            lines = [(row["audio"], row["text"], folder) for row in read_json(folder)]
        except (KeyError, TypeError):
            raise ValueError(f"data: {folder}: each row is {{\"audio\": path from there, \"text\": ...}}") from None
    for path in glob.glob(os.path.join(glob.escape(folder), "**", "*.trans.txt"), recursive=True):
        with open(path, encoding="utf-8") as f:
            lines += [(*line.strip().partition(" ")[::2], path) for line in f if line.strip()]
    if not lines:
        why = "no *.trans.txt with lines of `key TEXT`" if os.path.isdir(folder) else "no such folder"
        raise ValueError(f"data: {folder} holds no clips in LibriSpeech's layout ({why})")
    lines.sort()
    if 0 < max_clips < len(lines):
        lines = [lines[i] for i in sorted(np.random.default_rng(seed).permutation(len(lines))[:max_clips])]
    return [read_clip(*line) for line in lines]


def read_clip(key, text, trans_path):
    """Return {key, text (as the LM was trained), audio (path), seconds} of a line of a transcript file.

    Only the recording's header is read; ValueError when it is missing or unreadable.
    """
    from audio import audio_header
    from tokenizer import normalize_transcript
    stem = os.path.join(os.path.dirname(trans_path), key)
    audio = next((stem + end for end in ("", ".flac", ".wav", ".ogg", ".mp3") if os.path.isfile(stem + end)), None)
    if audio is None:
        raise ValueError(f"{trans_path}: there is no recording of {key} beside it (.flac, .wav, .ogg or .mp3)")
    seconds, _, _ = audio_header(audio)
    return {"key": key, "text": normalize_transcript(text), "audio": audio, "seconds": round(seconds, 3)}


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
    """Return what the model hears in each clip (list of str): batches of similar length, the longest first."""
    from tqdm import tqdm
    from audio import encode, read_audio, split_at_pauses
    from decode import transcribe
    model, meta, tok, encoder, projector = listener
    ears, heard, asks = meta["audio"], [[] for _ in clips], {}
    if question:
        from tokenizer import chat_prompt, plain_text
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
                texts = transcribe(model, projector, tok, features, ears["audio_at"], beams, **asks)
                for i, text in zip(owners, texts):
                    heard[i].append(text)
            bar.update(len(rows))
    return [" ".join(filter(None, texts)) for texts in heard]


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


def count_edits(references, hypotheses):
    """Return int (n, 4): the reference's words, substitutions, deletions and insertions of each pair of texts."""
    import jiwer
    pairs = [(r, jiwer.process_words(r, h)) for r, h in zip(references, hypotheses)]
    return np.array([(len(r.split()), o.substitutions, o.deletions, o.insertions) for r, o in pairs])


def error_rate(counts):
    """Return the word error rate of counts (n, 4), pooled over clips, and its 95% bootstrap interval over clips."""
    words, errors = counts[:, 0], counts[:, 1:].sum(axis=1)
    if not words.sum():
        raise ValueError("data: the references hold no words, so there is no word error rate")
    rng, n = np.random.default_rng(seed), len(counts)
    times = rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES)  # (resamples, n): how often each clip is drawn
    ends = np.percentile((times @ errors) / np.maximum(times @ words, 1), [2.5, 97.5])
    return round(float(errors.sum() / words.sum()), 5), [round(float(x), 5) for x in ends]


def score(clips, heard, partner):
    """Return {kind: counts (n, 4)} of KINDS; all texts go through Whisper's English normalizer."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
    normalize = EnglishTextNormalizer(english_spelling_mapping={})  # its British-American table is in no package
    references, hypotheses = [normalize(clip["text"]) for clip in clips], [normalize(text) for text in heard]
    others = hypotheses, [hypotheses[j] for j in partner], [references[j] for j in partner]
    return {kind: count_edits(references, texts) for kind, texts in zip(KINDS, others)}


def figures(counts, nats, clips):
    """Return the figures of one folder, or of all pooled, from {kind: counts (n, 4)}; rates are fractions."""
    rates = {kind: error_rate(c) for kind, c in counts.items()}
    words, *edits = counts["wer"].sum(axis=0).tolist()
    shares = {name: round(n / words, 5) for name, n in zip(("substitutions", "deletions", "insertions"), edits)}
    spoken = sum(len(clip["text"].split()) for clip in clips)  # before the normalizer: what the LM was trained on
    return {**{kind: rate for kind, (rate, _) in rates.items()}, **shares, "clips": len(clips), "words": words,
            "lm_ppl_word": round(math.exp(nats / spoken), 2), "intervals": {k: ends for k, (_, ends) in rates.items()}}


def evaluate_folder(listener, name, clips, partner):
    """Hear and score the clips of one folder, write its jsonl; return what figures() takes, and rows to show."""
    heard = hear(listener, clips)
    counts = score(clips, heard, partner)
    rows = [{"key": clip["key"], "errors": int(c[1:].sum()), "words": int(c[0]), "reference": clip["text"],
             "hypothesis": text, "audio": clip["audio"]} for clip, text, c in zip(clips, heard, counts["wer"])]
    shown = [{"folder": name, **rows[i]} for i in np.random.default_rng(seed).permutation(len(rows))[:n_shown]]
    rows.sort(key=lambda row: (-row["errors"] / max(row["words"], 1), row["key"]))
    write(f"eval_{name}.jsonl" if name else "eval.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return (counts, lm_nats(listener[0], listener[2], [clip["text"] for clip in clips]), clips), shown


def evaluate():
    """Evaluate the checkpoint on every folder and write everything but report.md; return the result (eval.json's)."""
    began, minutes = time.perf_counter(), stage_minutes()  # a wrong setting fails before the work
    folders = [(name, folder, read_folder(folder)) for name, folder in parse_folders(data)]
    partners = [shuffle([c["seconds"] for c in clips], [c["text"] for c in clips]) for _, _, clips in folders]
    listener = load_listener()
    parts, shown = zip(*(evaluate_folder(listener, name, clips, partner)
                         for (name, _, clips), partner in zip(folders, partners)))
    tables = {name: {"folder": folder, **figures(*part)} for (name, folder, _), part in zip(folders, parts)}
    pooled = figures({kind: np.concatenate([counts[kind] for counts, _, _ in parts]) for kind in KINDS},
                     sum(nats for _, nats, _ in parts), [clip for _, _, clips in parts for clip in clips])
    del pooled["wer"], pooled["intervals"]["wer"]  # over folders that have nothing to do with each other
    keys = {name: f"wer_{name}" if name else "wer" for name in tables}
    result = {keys[name]: t["wer"] for name, t in tables.items()} | pooled
    result["intervals"] |= {keys[name]: t["intervals"]["wer"] for name, t in tables.items()}
    seconds = time.perf_counter() - began
    result |= {"seconds": round(seconds, 1), "minutes": round(seconds / 60, 2) if minutes is None else minutes,
               "ckpt": ckpt, "step": listener[1]["step"], "beams": beams, "encoder": listener[1]["audio"]["encoder"],
               **machine(listener[0].cos.device), "seed": seed, "folders": tables,
               "transcripts": [row for row in chain(*zip_longest(*shown)) if row][:n_shown]}
    draw(result)
    write("eval.json", json.dumps(result, indent=1) + "\n")
    return result


def machine(device):
    """Return {date, machine, versions}: what the seconds depend on."""
    import torch
    name = platform.processor() or platform.machine()
    if os.path.isfile("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            name = next((line.partition(": ")[2].strip() for line in f if line.startswith("model name")), name)
    name = (torch.cuda.get_device_name() + ", " if device.type == "cuda" else "") + f"{os.cpu_count()} cores of {name}"
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "jiwer", "numpy")}
    return {"date": time.strftime("%Y-%m-%d"), "machine": name,
            "versions": {"python": platform.python_version(), **versions}}


def read_json(path):
    """Return what a .json holds, or the list of rows of a .jsonl; ValueError names file and line that is none."""
    with open(path, encoding="utf-8") as f:
        text = f.read()
    try:
        return json.loads("[" + ",\n".join(text.splitlines()) + "]" if path.endswith(".jsonl") else text)
    except ValueError as e:
        raise ValueError(f"{path} is damaged: {e}") from None


def stage_minutes():
    """Return the minutes that `seconds` of the jsonl `stages` sum to, or None when the setting is off."""
    return round(sum(row.get("seconds", 0) for row in read_json(stages)) / 60, 2) if stages else None


def stage_table():
    """Return lines that say what each stage of the jsonl `stages` took."""
    took = {}
    for row in read_json(stages) if stages else []:
        took[row["stage"]] = took.get(row["stage"], 0) + row["seconds"]
    return ["seconds: " + ", ".join(f"{name} {seconds}" for name, seconds in took.items()), ""] if took else []


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
    rates = [("word error rate" + (f", {name}" if name else ""), t["wer"], t["intervals"]["wer"])
             for name, t in result["folders"].items()]
    rates += [("with another clip's audio", result["wer_shuffled"], result["intervals"]["wer_shuffled"]),
              ("floor: another clip's text", result["wer_shuffled_floor"], result["intervals"]["wer_shuffled_floor"])]
    rows = [(what, f"{100 * rate:.1f}%", f"{100 * low:.1f} - {100 * high:.1f}") for what, rate, (low, high) in rates]
    rows += [("LM's perplexity a word, no audio", f"{result['lm_ppl_word']:.1f}", ""),
             ("clips", str(result["clips"]), ""), ("minutes", f"{result['minutes']:.1f}", "")]
    rows = [("result", "figure", "95%"), ("-" * 38, "-" * 8, "-" * 15), *rows]
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
    meta = read_json(os.path.join(ckpt, f"meta_{result['step']:06d}.json"))
    seen, log = {}, os.path.join(ckpt, "log.jsonl")
    for row in read_json(log) if os.path.isfile(log) else []:
        for name in [name for name in row if re.search("loss|wer|gap", name) and isinstance(row[name], float)]:
            at = f"{row[name]:.4f} (step {row.get('step', '-')})"
            seen[name] = seen.get(name, (at,))[0], at
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    span = "all stages" if stages else "this evaluation"
    lines = [f"# {ckpt}, step {result['step']}", "", f"{result['date']}, {result['machine']}; {result['minutes']} "
             f"minutes ({span}); encoder {result['encoder']}, {result.get('beams', 1)} beams; {versions}.", ""]
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
    began, minutes = time.perf_counter(), stage_minutes()
    audiobench.read_bench(bench)  # a wrong folder fails before the work
    if report:
        result, choices = read_json(os.path.join(out_dir or ckpt, "bench.json")), None  # asked before, without --report
    elif answers:
        result, choices = audiobench.score_answers_file(bench, answers)
    else:
        result, choices = audiobench.run_bench(load_listener(), bench, batch_size, seed)
    old = os.path.join(out_dir or ckpt, "bench.json")
    if minutes is None and not answers and os.path.isfile(old) and read_json(old).get("bench") == bench:
        minutes = read_json(old).get("minutes")  # of all stages, where this only asks again
    seconds = result["seconds"] if report else round(time.perf_counter() - began, 1)
    result |= {"seconds": seconds, "minutes": round(seconds / 60, 2) if minutes is None else minutes,
               "ckpt": "" if answers else ckpt, "seed": seed, "date": result.get("date", time.strftime("%Y-%m-%d"))}
    write("bench.json", json.dumps(result, indent=1) + "\n")
    if report:
        return print("\n".join([*stage_table(), *audiobench.table(result), f"{result['minutes']:.1f} minutes in all"]))
    write("bench.jsonl", "".join(json.dumps(choice) + "\n" for choice in choices))
    audiobench.draw_bench(result, os.path.join(out_dir or ckpt, "bench.png"))
    if page:
        write("page.html", audiobench.page(bench, choices, 20, seed))
    print("\n".join([*audiobench.table(result), "", f"{result['minutes']:.1f} minutes; {out_dir or ckpt}/bench.json"]))


def main():
    if min(batch_size, beams, n_shown) < 1:
        raise ValueError(f"{batch_size=}, {beams=}, {n_shown=}: give 1 or more")
    if answers and not (bench and out_dir):
        raise ValueError("answers needs bench, the folder of the questions, and out_dir, where the results go")
    if bench:
        return evaluate_bench()
    if report:
        result = read_json(os.path.join(out_dir or ckpt, "eval.json"))  # of an evaluation before, without --report
        result["minutes"] = result["minutes"] if stage_minutes() is None else stage_minutes()
        write("eval.json", json.dumps(result, indent=1) + "\n")
    else:
        result = evaluate()
    write_report(result)
    print(closing_text(result))
    if not report:
        print(json.dumps(result))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        fail(e)
