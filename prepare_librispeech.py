"""Turn speech into shards of Whisper features: the demo's, LibriSpeech's, your own.

    python prepare_librispeech.py --seen_voices=True     # the demo's speech: data/synthetic
    python prepare_librispeech.py --source=mine.jsonl    # your own clips
    python prepare_librispeech.py --source=data/LibriSpeech --subset=train-clean-100,dev-clean

Reads a corpus (corpora.py). Writes <out_dir>/shard-NNNNNN.tar (data.py; 184 MB an hour and tap for
whisper-base) and .json, <split>.jsonl (its clips), index.json, manifest.json and, last, meta.json.
Every core, or every GPU, makes shards; a run after an interruption keeps whole ones. Other
settings, corpus or code: all are made anew.
"""
import fcntl
import hashlib
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import current_process
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import sounds
from audio import build_encoder, encode, load_encoder
from configurator import configure, fail, user_input
from corpora import read_corpus
from data import write_index, write_shard
from device import pick_device
from files import sha256_file, write_json, write_jsonl
from language import Language
from processes import run_all
from record import is_made, note_made, provenance
from recordings import read_audio

# config: set by a config file or --name=value
source = "data/synthetic"  # folder of subsets or of speakers, or a .jsonl of clips
subset = ""                # comma-separated folder names; '': all train*, val*, dev* and test*
out_dir = ""               # '': <source>/features (a .jsonl: beside it, in features)
language = "en"            # of clips without their own: its code, as zh or de (language.py)
# clips
min_words = 1              # clips of fewer words are dropped; 0: clips without text are silence
new_sentences = False      # True: held-out clips whose sentence is in train too are dropped
copies = 0                 # of each training clip, in noise, in a room, at another speed ...
seen_voices = False        # True: val and test may hold speakers of train; False: these clips fail
# features
whisper = ""               # encoder: '' the default, a model's name or folder, an encoder.pt
taps = "0,-1"              # encoder layers: -1 the last after ln_post, 0.. that block's output
# work
device = "auto"            # auto, cuda (every GPU), mps, cpu
clips_per_shard = 256      # an interruption costs each worker one shard at most
workers = 0                # CPU: processes; 0: one a core
config = configure(globals())
# ----
BEGUN = "begun.json"  # meta.json of shards that are not all there
MAX_AUDIO_S = 30.0    # Whisper hears no more; longer clips are dropped
SNR_DB = (5, 25)      # of copies: speech over noise or babble
ECHO_S = 0.5          # the longest that sounds.room() adds
MAX_BAD_SHARE = 0.01  # a larger share of failed clips stops the run
BATCH_SIZE = 48       # clips that are encoded at once
HERE = os.path.dirname(source) if source.endswith(".jsonl") else source
FINAL = Path(out_dir or Path(HERE, "features"))
with user_input():
    SPOKEN = Language(language)
WORKER = {}           # of a worker process: encoder, layers, map


# ---- which clips

def find_clips():
    """Return the clips that the settings choose, and their copies; failures; counts."""
    with user_input():
        clips, failures, counts = read_corpus(source, subset, seen_voices, SPOKEN)
    check_failures(failures, len(clips) + len(failures))
    trained = {clip["info"]["text"] for clip in of_split(clips, "train")}
    chosen = []
    for clip in clips:
        clip["audio"] = os.path.relpath(os.path.realpath(clip["path"]), os.path.realpath(FINAL))
        if why := reason_to_drop(clip, trained):
            counts[why] += 1
        else:
            chosen.append(clip)
    if not chosen:
        reasons = "; ".join(f"{n} {why}" for why, n in counts.items())
        fail(f"{source}: no clip can be used: {reasons or 'it names none'}")
    return chosen + plan_copies(chosen, counts), failures, counts


def reason_to_drop(clip, trained):
    """Return why the settings drop a clip, or ''. trained: the sentences of train."""
    info, n_words = clip["info"], len(SPOKEN.words(clip["info"]["text"]))
    if info["seconds"] > MAX_AUDIO_S:
        return "too long"
    if n_words < min_words and "turns" not in info:
        return "too few words" if n_words else "without words (min_words=0 takes them as silence)"
    if new_sentences and info["split"] != "train" and info["text"] in trained:
        return "sentence in train"
    return ""


def plan_copies(clips, counts):
    """Return `copies` changed copies of each training clip; count those left out."""
    found, trained = [], of_split(clips, "train")
    for clip in trained:
        key = clip["info"]["key"]
        for k in range(copies):
            rng = np.random.default_rng([zlib.crc32(key.encode()), k])
            how = {"speed": round(rng.uniform(0.85, 1.15), 3), "way": str(rng.choice(sounds.WAYS)),
                   "seed": int(rng.integers(2**31))}
            seconds = round(seconds_of(clip) / how["speed"], 4)
            others = [trained[i]["path"] for i in rng.integers(len(trained), size=3)]
            if seconds + ECHO_S <= MAX_AUDIO_S:
                own = {"key": f"{key}-copy{k + 1}", "copy": how, "seconds": seconds}
                found.append(clip | {"info": clip["info"] | own, "others": others})
            else:
                counts["copies that are too long"] += 1
    return found


def seconds_of(clip):
    return clip["info"]["seconds"]


def of_split(clips, split):
    return [clip for clip in clips if clip["info"]["split"] == split]


def check_failures(failures, n_clips):
    if len(failures) > MAX_BAD_SHARE * n_clips:
        first = "; ".join(f"{f['key']}: {f['reason']}".removeprefix(": ") for f in failures[:3])
        fail(f"{len(failures)} of {n_clips} clips failed, over {MAX_BAD_SHARE:.0%}: {first}")


# ---- one shard, in a worker process

def begin_work(encoder, layers, kind):
    torch.set_num_threads(1)
    WORKER.update(encoder=encoder, layers=layers, map=map)
    if kind != "cpu":
        number = int(current_process().name.rpartition("-")[2])  # from 1 on
        own = torch.device(kind, number - 1 if kind == "cuda" else None)
        WORKER["encoder"] = build_encoder(encoder.config, encoder.half_weights, own)
        WORKER["map"] = ThreadPoolExecutor().map  # threads read audio while the GPU works


def try_read(clip):
    """Return float32 (n,) at 16 kHz, or the reason (str) why a clip can't be read."""
    try:
        wav = read_audio(clip["path"], MAX_AUDIO_S + 1)
        return change(wav, clip) if "others" in clip else wav
    except (ValueError, OSError) as e:
        return str(e)


def change(wav, clip):
    """Return a copy of wav (n,) as plan_copies() says: faster or slower, then on its way."""
    import soxr
    how = clip["info"]["copy"]
    rng = np.random.default_rng(how["seed"])
    wav = soxr.resample(wav, how["speed"], 1.0)  # pitch and all (Ko et al. 2015)
    paths = clip["others"] if how["way"] == "babble" else ()
    others = [read_audio(path, MAX_AUDIO_S + 1) for path in paths]
    return sounds.on_its_way(wav, rng, how["way"], rng.uniform(*SNR_DB), others)


def features_of(clips, failures):
    """Yield (key, float16 (T, n_taps, D), info) of each clip that can be read; others fail."""
    wavs = WORKER["map"](try_read, clips)
    for first in range(0, len(clips), BATCH_SIZE):
        infos, good = [], []
        for clip, wav in zip(clips[first:first + BATCH_SIZE], wavs):
            info = clip["info"]
            if isinstance(wav, str):
                failures.append({"key": info["key"], "reason": wav})
            else:
                infos.append(info)
                good.append(wav)
        for info, x in zip(infos, encode(WORKER["encoder"], good, WORKER["layers"])):
            yield info["key"], x, info


def rows_file(name):
    return (FINAL / name).with_suffix(".json")


def is_whole(name):
    """Are a shard and its rows there, in the size that was written?"""
    try:
        sums = json.loads(rows_file(name).read_bytes())["sums"]
        return (FINAL / name).stat().st_size == sums["bytes"]
    except (OSError, ValueError):
        return False


def make_shard(name, clips):
    """Write a shard, then rows_file() with its rows of the index and its failures."""
    path, failures = FINAL / name, []
    audio = {clip["info"]["key"]: clip["audio"] for clip in clips}
    try:
        rows = write_shard(str(path), features_of(clips, failures))
        rows = [row | {"audio": audio[row["info"]["key"]]} for row in rows]
        sums = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        write_json(rows_file(name), {"rows": rows, "failures": failures, "sums": sums})
    except OSError as e:
        raise OSError(f"{name}: {e}") from None


# ---- all shards

def plan_shards(clips):
    """Return {shard name: its clips, of one split and similar length}."""
    shards = {}
    for split in sorted({clip["info"]["split"] for clip in clips}):
        ordered = sorted(of_split(clips, split), key=seconds_of)
        for i in range(0, len(ordered), clips_per_shard):
            shards[f"shard-{len(shards):06d}.tar"] = ordered[i:i + clips_per_shard]
    return shards


def clear(n_clips):
    """Remove other features. Stop if they are not of this script, or of more clips."""
    manifest = FINAL / "manifest.json"
    held = json.loads(manifest.read_bytes())["clips"] if subset and manifest.exists() else {}
    foreign = [path for path in FINAL.glob("shard-*.tar") if not rows_file(path).exists()]
    if foreign and not (FINAL / BEGUN).exists():
        fail(f"{FINAL}: {foreign[0].name} is not of this script: choose another out_dir")
    if sum(held.values()) > n_clips:
        fail(f"{FINAL} holds more than this subset's {n_clips:,} clips: choose another out_dir")
    write_json(FINAL / BEGUN, {})  # not whole, but of this script
    for path in [FINAL / "meta.json", *FINAL.glob("shard-*"), *FINAL.glob("*.jsonl"), manifest]:
        path.unlink(missing_ok=True)


def make_shards(shards, encoder, layers, kind):
    jobs = [job for job in reversed(shards.items()) if not is_whole(job[0])]  # long clips first
    print(f"to do: {len(jobs)} of {len(shards)} shards")
    n_gpus = torch.cuda.device_count() if kind == "cuda" else 1
    n_workers, start = (workers, "") if kind == "cpu" else (n_gpus, "spawn")
    made = run_all(make_shard, jobs, n_workers, begin_work, (encoder, layers, kind), start=start)
    seconds = [round(sum(map(seconds_of, clips))) for _, clips in jobs]
    try:
        with tqdm(total=sum(seconds), desc="features", unit=" s of sound", miniters=1) as bar:
            for _, n in zip(made, seconds):
                bar.update(n)
    except OSError as e:  # the disk is full, or a worker was killed
        fail(e)


def finish(clips, shards, failures, manifest):
    """Write the lists of clips, index and manifest; return the whole manifest."""
    made = [json.loads(rows_file(name).read_bytes()) for name in shards]
    n_found = len(clips) + len(failures)
    failures = sum((each["failures"] for each in made), failures)
    check_failures(failures, n_found)
    for split in {clip["info"]["split"] for clip in clips}:
        rows = [{"audio": clip["audio"], **clip["info"]} for clip in of_split(clips, split)
                if "others" not in clip]
        write_jsonl(FINAL / f"{split}.jsonl", rows)
    rows = sum((each["rows"] for each in made), [])
    sums = {name: each["sums"] for name, each in zip(shards, made)}
    return write_index(str(FINAL), rows, sums, manifest | {"failures": failures})


def read_taps(encoder):
    known = [str(layer) for layer in range(-1, encoder.n_layer)]
    if not set(taps.split(",")).issubset(known):
        fail(f"taps={taps}: give layers of {encoder.name}, -1 to {known[-1]}, like 0,-1")
    return list(map(int, taps.split(",")))


def main():
    torch.set_num_threads(1)  # workers are forked from here
    if clips_per_shard < 1 or min(workers, copies) < 0:
        fail("clips_per_shard must be 1 or more, workers and copies 0 or more")
    if source.endswith(".jsonl") and Path(HERE).resolve() == FINAL.resolve():
        fail(f"{source} lies in out_dir, whose lists are replaced: give another out_dir")
    with user_input():
        own = pick_device(device)
        encoder = load_encoder(whisper)
    layers = read_taps(encoder)
    clips, failures, counts = find_clips()
    shards = plan_shards(clips)
    what = [[clip["audio"], os.path.getsize(clip["path"]), clip["info"]] for clip in clips]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    inputs = {"encoder": encoder.sha256, "clips": digest}
    settings = {"taps": layers, "clips_per_shard": clips_per_shard, "language": language}
    with user_input():
        FINAL.mkdir(parents=True, exist_ok=True)
        fcntl.flock(os.open(FINAL, os.O_RDONLY), fcntl.LOCK_EX)  # waits for another run's end
    if is_made(FINAL, settings, inputs):
        print(f"{FINAL} is up to date")
        return
    if not is_made(FINAL, settings, inputs, BEGUN):
        clear(len(clips))
        note_made(FINAL, settings, inputs, [], BEGUN)
    make_shards(shards, encoder, layers, own.type)
    manifest = finish(clips, shards, failures, {
        "encoder": encoder.name, "encoder_sha256": encoder.sha256, "taps": layers,
        "D": encoder.n_embd, "language": language, "counts": counts, "settings": config,
        **provenance(own)})
    lists = [f"{split}.jsonl" for split in manifest["clips"]]
    note_made(FINAL, settings, inputs, [*shards, *lists, "index.json", "manifest.json"])
    for split, n in manifest["clips"].items():
        print(f"{FINAL}: {split} {n:,} clips, {manifest['seconds'][split] / 3600:.2f} h")
    counts["failed (manifest.json says why)"] = len(manifest["failures"])
    print("; ".join(f"{n:,} {why}" for why, n in counts.items()))


if __name__ == "__main__":
    main()
