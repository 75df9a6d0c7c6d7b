"""Turn speech in LibriSpeech's layout into shards of Whisper features.

    python prepare_librispeech.py config/cpu_features.py        # what speedrun.sh runs: data/synthetic/features
    python prepare_librispeech.py --source=data/LibriSpeech --subsets=train-clean-100,dev-clean
    python prepare_librispeech.py --limit=8 --out_dir=data/toy  # a toy: 8 clips of each subset

Reads  <source>/<subset>/<speaker>/<chapter>/<key>.flac and <speaker>-<chapter>.trans.txt; beside the subsets, where
       they exist, SPEAKERS.TXT (sex) and labels.jsonl ({"key": ..., any label}). Subsets train* are the split train,
       val* and dev* val, test* test. A source that holds speakers directly is one subset, named by its folder.
Writes <out_dir>/shard-NNNNNN.tar (float16 (T, n_taps, D), 50 frames a second: 184 MB an hour and tap for whisper-base),
       shard-NNNNNN.json (its index rows), index.json, manifest.json; see data.py.
Works in <out_dir>/.part until all is whole, so the features of an earlier run stay until then; run it again after any
interruption and it goes on shard by shard. On 2 cores and whisper-base it is about 150 times as fast as the speech.
"""
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from audio import encode, load_encoder, load_encoder_file, read_audio
from configurator import configure, fail
from data import Features, write_index, write_json, write_shard
from tokenizer import normalize_transcript

# config: every value here can be set from a config file or as --name=value
source = "data/synthetic"  # folder of subset folders, or of speaker folders
out_dir = ""               # '': <source>/features
subsets = ""               # comma-separated folder names; '': all that are called train*, val*, dev* or test*
limit = 0                  # clips of each subset, evenly spread over it; 0: all
max_audio_s = 30.0         # longer clips are dropped and counted
max_bad_share = 0.01       # more clips than this share that cannot be used stop the run
# features
whisper = ""               # encoder: '' for the default, a model's name, an encoder.pt or a model folder
taps = "-1"                # encoder layers, comma-separated: -1 the last after ln_post, 0.. the output of that block
# work
clips_per_shard = 256      # what an interruption loses at most, per worker
batch_size = 48            # clips of similar length handed to the encoder, which cuts them to a batch that fits
workers = 0                # processes; 0: one for each core
config = configure(globals())  # prints each change; stored in manifest.json
# -----------------------------------------------------------------------------
SPLITS = {"train": "train", "val": "val", "dev": "val", "test": "test"}  # by the beginning of a subset's name
VERSION = 1  # part of the plan: raise it when the features change for the same audio and settings


def find_subsets():
    """-> [(folder, split)] of the source; OSError when it or a subset is missing."""
    root = Path(source)
    folders = [root / name.strip() for name in subsets.split(",") if subsets]
    for folder in [root, *folders]:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder (source={source}, subsets={subsets or 'all'})")
    folders = folders or sorted(f for f in root.iterdir() if f.is_dir() and f.name.startswith(tuple(SPLITS)))
    return [(folder, next((SPLITS[s] for s in SPLITS if folder.resolve().name.startswith(s)), "train"))
            for folder in folders or [root]]


def read_labels():
    """-> ({key: labels} of labels.jsonl, {speaker: sex} of SPEAKERS.TXT), each empty where there is no such file."""
    labels, sexes, path = {}, {}, Path(source, "labels.jsonl")
    for n, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), 1):
        try:
            labels.update({row["key"]: row for row in [json.loads(line)]})
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"{path}:{n}: not a JSON object with a 'key' ({e})") from None
    for path in (Path(source, "SPEAKERS.TXT"), Path(os.path.realpath(source)).parent / "SPEAKERS.TXT"):
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            speaker, sex = [*(field.strip() for field in line.split("|")), ""][:2]
            sexes.setdefault(speaker, {"M": "male", "F": "female"}.get(sex, ""))
    return labels, sexes


def read_chapter(transcripts, split, labels, sexes, seen, clips, failures):
    """Add a .trans.txt to seen (keys), clips (dicts of path, bytes, seconds, info), failures (dicts of key, reason)."""
    import soundfile
    folder = transcripts.parent
    files = {Path(entry.name).stem: entry for entry in os.scandir(folder) if entry.name.endswith((".flac", ".wav"))}
    for n, line in enumerate(transcripts.read_text(encoding="utf-8").splitlines(), 1):
        key, _, words = line.strip().partition(" ")
        file, text = files.pop(key, None), normalize_transcript(words)
        reason = ("key there twice" if key in seen else "transcript without audio" if file is None else
                  "no words in the transcript" if not text else "'.' in the key" if "." in key else "")
        try:
            header = None if reason else soundfile.info(file.path)
        except (RuntimeError, OSError) as e:
            reason = str(e)
        if reason:
            failures.append({"key": key, "reason": f"{transcripts}:{n}: {reason}"})
            continue
        seen.add(key)
        info = {"key": key, "text": text, "seconds": round(header.frames / header.samplerate, 4), "split": split,
                "speaker": folder.parent.name}
        info = {"sex": sexes.get(info["speaker"], "")} | labels.get(key, {}) | info
        clips.append({"path": file.path, "bytes": file.stat().st_size, "seconds": info["seconds"], "info": info})
    failures += [{"key": key, "reason": f"{folder}: audio without transcript"} for key in files]


def read_corpus():
    """-> (clips short enough, failures, n_found: all before limit and max_audio_s, n_long: dropped)."""
    (labels, sexes), clips, failures, seen, n_found = read_labels(), [], [], set(), 0
    for folder, split in find_subsets():
        chapters, found = sorted(folder.glob("*/*/*.trans.txt")), []
        if not chapters:
            raise ValueError(f"{folder}: no <speaker>/<chapter>/<speaker>-<chapter>.trans.txt here")
        for transcripts in tqdm(chapters, desc=folder.name, unit=" chapters"):
            read_chapter(transcripts, split, labels, sexes, seen, found, failures)
        n_found += len(found)
        clips += found[:: max(1, len(found) // limit)][:limit] if limit else found
    check_failures(failures, n_found := n_found + len(failures))
    short = [clip for clip in clips if clip["seconds"] <= max_audio_s]
    if not short:
        raise ValueError(f"{source}: no clip of at most {max_audio_s:g} s here, {len(clips)} longer ones")
    return short, failures, n_found, len(clips) - len(short)


def check_failures(failures, n_found):
    """ValueError when more than max_bad_share of the clips failed."""
    if len(failures) > max_bad_share * n_found:
        first = "; ".join(f"{f['key']}: {f['reason']}" for f in failures[:3]) + (" ..." if len(failures) > 3 else "")
        raise ValueError(f"{len(failures)} of {n_found} clips failed, over max_bad_share={max_bad_share}: {first}")


def plan_shards(clips, encoder, layers):
    """-> ({shard name: clips of one split, by length}, plan: a hash of all that decides what the shards hold)."""
    shards = {}
    for split in sorted({clip["info"]["split"] for clip in clips}):
        ordered = sorted((clip for clip in clips if clip["info"]["split"] == split), key=lambda clip: clip["seconds"])
        for i in range(0, len(ordered), clips_per_shard):
            shards[f"shard-{len(shards):06d}.tar"] = ordered[i : i + clips_per_shard]
    contents = [[name, [[clip["bytes"], clip["info"]] for clip in group]] for name, group in shards.items()]
    what = VERSION, encoder.sha256, layers, contents
    return shards, hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def read_states(folder, shards, plan):
    """-> {shard name: state} of the shards of this plan that are whole in a folder."""
    states = {}
    for name in shards:
        path = folder / name
        try:
            state = json.loads(path.with_suffix(".json").read_bytes())
            if state["plan"] == plan and path.stat().st_size == state["bytes"]:
                states[name] = state
        except (OSError, ValueError, KeyError):
            pass  # not there, or cut short: made again
    return states


def features_of(clips, encoder, layers, failures, tick):
    """Yield (key, float16 (T, n_taps, D), info) for write_shard; failures are appended; tick(n) after each batch."""
    for batch in (clips[i : i + batch_size] for i in range(0, len(clips), batch_size)):
        infos, wavs = [], []
        for clip in batch:
            try:
                wavs.append(read_audio(clip["path"], max_audio_s + 1))
                infos.append(clip["info"])
            except (ValueError, OSError) as e:
                failures.append({"key": clip["info"]["key"], "reason": str(e)})
        for info, x in zip(infos, encode(encoder, wavs, layers)):
            yield info["key"], x, info
        tick(len(batch))


def work(rank, names, n_done, finished, parent, folder, shards, plan, encoder, layers):
    """A worker process: make the shards called names, each a tar and then its state (rows, failures, sha256, plan)."""
    def tick(n):
        n_done[rank] += n
        if os.getppid() != parent:  # the parent was killed: don't go on alone
            os._exit(1)

    torch.set_num_threads(1)
    try:
        for name in names:
            path, failures = folder / name, []
            rows = write_shard(str(path), features_of(shards[name], encoder, layers, failures, tick))
            with open(path, "rb") as f:
                sha256 = hashlib.file_digest(f, "sha256").hexdigest()
            state = {"plan": plan, "rows": rows, "failures": failures, "bytes": path.stat().st_size, "sha256": sha256}
            write_json(str(path.with_suffix(".json")), state)
            finished.put((name, ""))
    except (ValueError, OSError) as e:
        finished.put((name, str(e)))


def make_shards(todo, states, failures, n_found, folder, shards, *shared):
    """Make the shards called todo on all cores, adding to states and failures; stops when too many clips fail."""
    ctx = get_context("fork")  # shares the encoder's memory; safe, for torch has run on one thread only until here
    n_workers = min(len(todo), workers or os.cpu_count())
    n_done, finished = ctx.RawArray("q", n_workers), ctx.SimpleQueue()
    todo, shared = todo[::-1], (n_done, finished, os.getpid(), folder, shards, *shared)  # long clips first
    pool = [ctx.Process(target=work, args=(i, todo[i::n_workers], *shared)) for i in range(n_workers)]
    bar = tqdm(total=sum(len(shards[name]) for name in todo), desc="features", unit=" clips", miniters=1)
    try:
        for process in pool:
            process.start()
        while len(states) < len(shards):
            time.sleep(0.1)
            was_killed = any(process.exitcode for process in pool)  # asked before its last shard is taken
            bar.update(sum(n_done) - bar.n)
            while not finished.empty():
                name, error = finished.get()
                if error:
                    raise OSError(f"{name}: {error}")
                states[name] = json.loads((folder / name).with_suffix(".json").read_bytes())
                failures += states[name]["failures"]
                check_failures(failures, n_found)
            if was_killed:
                raise OSError("a worker was killed (out of memory?): lower batch_size or workers and run again")
    finally:
        bar.close()
        for process in pool:
            process.kill()


def check_disk(folder, todo, shards, row_bytes):
    """Print what the shards to do will take; OSError when the disk has less, while the old features still stand."""
    clips = [clip for name in todo for clip in shards[name]]
    seconds = sum(clip["seconds"] for clip in clips)
    n_bytes = int(seconds * 50 * row_bytes) + 5000 * len(clips)  # 50 frames a second; tar and json
    free = shutil.disk_usage(folder).free
    print(f"to do: {len(todo)} of {len(shards)} shards, {len(clips):,} clips, {seconds / 3600:.2f} h, "
          f"{n_bytes / 1e6:,.0f} MB ({free / 1e6:,.0f} MB are free)")
    if n_bytes > free:
        raise OSError(f"{folder}: no space for {n_bytes / 1e6:,.0f} MB: make room or choose another out_dir")


def lock(folder):
    """Make the folder and lock it against a second run, for as long as this process or a worker of it lives."""
    for _ in range(20):  # workers of a killed run need a moment to notice
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY)
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            time.sleep(0.5)
    raise OSError(f"{folder}: another prepare_librispeech.py works there: wait for its end")


def is_made(final, plan, n_clips):
    """True when out_dir holds the features asked for, whole; ValueError when what it holds must not be replaced."""
    for path in final.glob("shard-*.tar"):
        if not path.with_suffix(".json").exists():
            raise ValueError(f"{path} is not of this script: choose another out_dir")
    try:
        old = Features(str(final)).manifest
    except ValueError:
        return False  # none, or damaged: whole shards are kept
    n_old, is_same = sum(old["clips"].values()), old.get("plan") == plan
    if limit and n_old > n_clips:
        raise ValueError(f"{final} holds {n_old:,} clips: for limit={limit} choose another out_dir")
    print(f"{final}: {n_old:,} clips, encoder {old['encoder']} {old['encoder_sha256'][:16]}, taps {old['taps']}: "
          + ("up to date" if is_same else "not what is asked for; they stay until the new ones are whole"))
    return is_same


def replace_features(final, part, shards):
    """Delete old shards from out_dir and move there what is in .part, manifest.json last."""
    (final / "manifest.json").unlink(missing_ok=True)  # interrupted from here on, a rerun moves the rest
    for path in sorted(final.glob("shard-*"), reverse=True):  # a tar before its json: they must never be of two plans
        if f"{path.stem}.tar" not in shards or (part / path.name).exists():
            path.unlink()
    for path in sorted(part.iterdir(), key=lambda path: (path.name == "manifest.json", path.name)):
        os.replace(path, final / path.name)
    part.rmdir()


def main():
    torch.set_num_threads(1)
    if not re.fullmatch(r"(-1|\d+)(,(-1|\d+))*", taps):
        raise ValueError(f"taps={taps} is no comma-separated list of layers, like -1 or 1,3,-1")
    if min(clips_per_shard, batch_size) < 1 or min(workers, limit, max_bad_share) < 0:
        raise ValueError("clips_per_shard and batch_size start at 1, workers, limit and max_bad_share at 0")
    (clips, failures, n_found, n_long), layers = read_corpus(), [int(tap) for tap in taps.split(",")]
    encoder = load_encoder_file(whisper) if os.path.isfile(whisper) else load_encoder(whisper)
    if max(layers) >= encoder.n_layer:
        raise ValueError(f"taps={taps}: {encoder.name} has layers 0 to {encoder.n_layer - 1}")
    shards, plan = plan_shards(clips, encoder, layers)
    final = Path(out_dir) if out_dir else Path(source, "features")
    if is_made(final, plan, len(clips)):
        return
    lock(part := final / ".part")
    states = read_states(part, shards, plan)
    for path in part.iterdir():
        if f"{path.stem}.tar" not in states:
            path.unlink()  # of another plan, or half-written
    states = read_states(final, shards, plan) | states
    failures += [failure for state in states.values() for failure in state["failures"]]
    todo = [name for name in shards if name not in states]
    check_disk(part, todo, shards, 2 * len(layers) * encoder.n_embd)
    start = time.time()
    if todo:
        make_shards(todo, states, failures, n_found, part, shards, plan, encoder, layers)
    took_s, n_new = time.time() - start + 1e-9, sum(len(shards[name]) for name in todo)
    manifest = {"encoder": encoder.name, "encoder_sha256": encoder.sha256, "taps": layers, "D": encoder.n_embd,
                "plan": plan, "too_long": n_long, "failures": failures, "settings": config,
                "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}}
    sizes = {name: {"bytes": states[name]["bytes"], "sha256": states[name]["sha256"]} for name in shards}
    manifest = write_index(str(part), [row for name in shards for row in states[name]["rows"]], sizes, manifest)
    replace_features(final, part, shards)
    print(f"{final}: " + ", ".join(f"{split} {n:,} clips {manifest['seconds'][split] / 3600:.2f} h"
                                   for split, n in manifest["clips"].items()))
    print(f"{len(shards)} shards, {sum(s['bytes'] for s in sizes.values()) / 1e6:,.1f} MB; {len(failures)} failed "
          f"(see manifest.json), {n_long} too long; {n_new:,} in {took_s:.1f} s, {n_new / took_s:.1f} clips/s")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        fail(e)
