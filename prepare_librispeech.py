"""Turn speech into shards of Whisper features: LibriSpeech from the net, any folder in its layout, or a list of clips.

    python prepare_librispeech.py --subset=dev-clean            # data/LibriSpeech, downloaded where it is missing
    python prepare_librispeech.py --subset=train-clean-100,dev-clean
    python prepare_librispeech.py config/cpu_features.py        # what speedrun.sh runs: data/synthetic/features
    torchrun --standalone --nproc_per_node=8 prepare_librispeech.py --subset=train-clean-100      # shards by rank
    python prepare_librispeech.py --source=mine.jsonl           # your own clips
    python prepare_librispeech.py --limit=8 --out_dir=data/toy  # a toy: 8 clips of each subset

Reads  <source>/<subset>/<speaker>/<chapter>/<key>.flac and <speaker>-<chapter>.trans.txt; beside the subsets, where
       they exist, SPEAKERS.TXT (sex) and labels.jsonl ({"key": ..., any label}). Subsets train* are the split train,
       val* and dev* val, test* test. A source that holds speakers directly is one subset, named by its folder.
       A .jsonl has a row {"audio": path from there, "text": ...} a clip, and "split", "speaker", "key", any label; no
       "split": a twentieth is val, by speaker where one is named. With "question" and "answer", or "turns" as
       prepare_instruct.py writes them, a row needs no text. --layout=speechocean reads speechocean762's folder: a
       tenth of the training speakers is val, test is test_adults (18 or more years) and test_children.
Writes <out_dir>/shard-NNNNNN.tar (float16 (T, n_taps, D), 50 frames a second: 184 MB an hour and tap for whisper-base),
       shard-NNNNNN.json (its index rows), <split>.jsonl (its clips), index.json, manifest.json; see data.py.
Works in <out_dir>/.part until all is whole, so the features of an earlier run stay until then; run it again after any
interruption and it goes on shard by shard. On 2 cores and whisper-base it is about 150 times as fast as the speech.
"""
import ctypes
import datetime
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import tarfile
import time
import unicodedata
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import audio
import recordings
from augment import change_speed
from audio import HOP, SAMPLE_RATE, encode, load_encoder, load_encoder_file
from recordings import audio_header, read_audio
from configurator import configure, fail
from data import Features, write_index, write_shard
from download import download
from files import (check_row, find_audio, find_files, find_path, read_jsonl, read_lines,
                   read_pairs, read_row, sha256_file, write_json, write_jsonl)
from device import pick_device
from processes import run_all
from record import code_sum_of
from transcripts import NoSpokenForm, normalize_transcript

# config: every value here can be set from a config file or as --name=value
source = "data/LibriSpeech"  # folder of subset folders, or of speaker folders, or a .jsonl of clips
layout = "librispeech"     # or speechocean
subset = ""                # comma-separated folder names; '': all that are called train*, val*, dev* or test*
out_dir = ""               # '': <source>/features (a .jsonl: beside it, in features)
# LibriSpeech's own subsets (dev-clean ... train-other-500) are downloaded where they are missing
mirrors = ("https://www.openslr.org/resources/12,https://openslr.trmal.net/resources/12,"  # comma-separated, in order
           "https://openslr.elda.org/resources/12,https://openslr.magicdatatech.com/resources/12,"  # EU, China
           "hf:k2-fsa/LibriSpeech")  # a data set of Hugging Face, through HF_ENDPOINT
md5 = ""                   # of <subset>.tar.gz, for a subset that is not LibriSpeech's; '': as OpenSLR publishes it
keep_archive = False       # True: stays when it is unpacked
# clips
limit = 0                  # clips of each subset, evenly spread over it; 0: all
max_audio_s = 30.0         # longer clips are dropped and counted
min_words = 1              # clips of fewer words are dropped and counted; 0: clips without text are silence
max_words = 0              # of more; 0: any number
new_sentences = False      # True: held-out clips whose sentence is in train too are dropped and counted
speeds = ""                # comma-separated: training clips are there at these speeds too; 0.9,1.1 is usual
seen_voices = False        # True: val and test may hold speakers of train; False: such a clip counts as failed
max_bad_share = 0.01       # more clips than this share that cannot be used stop the run
# features
whisper = ""               # encoder: '' for the default, a model's name, an encoder.pt or a model folder
taps = "-1"                # encoder layers, comma-separated: -1 the last after ln_post, 0.. the output of that block
index_only = False         # True: no features, only the index that train_align.py --online=True reads
# work
device = "auto"            # auto, cuda, mps, cpu; a rank of torchrun takes the GPU of its number, or a core
clips_per_shard = 256      # what an interruption loses at most, per worker; a rank holds so many in memory
batch_size = 48            # clips of similar length handed to the encoder, which cuts them to a batch that fits
workers = 0                # on a CPU processes, of a rank or beside a GPU threads that read audio; 0: one for each core
config = configure(globals())  # prints each change; stored in manifest.json
# -----------------------------------------------------------------------------
SPLITS = {"train": "train", "val": "val", "dev": "val", "test": "test",  # by the beginning of a subset's name
          "valid": "val", "validation": "val"}  # and of a row's "split"
ARCHIVES = {  # bytes and MD5 of https://www.openslr.org/12
    "dev-clean": (337_926_286, "42e2234ba48799c1f50f24a7926300a1"),
    "dev-other": (314_305_928, "c8d0bcc9cca99d4f8b62fcc847357931"),
    "test-clean": (346_663_984, "32fa31d27d2e1cad72775fee3f4849a9"),
    "test-other": (328_757_843, "fb5a50374b501bb3bac4815ee91d3135"),
    "train-clean-100": (6_387_309_499, "2a93770f6d5c6c964bc36631d331a522"),
    "train-clean-360": (23_049_477_885, "c0e676e450a7ff2f54aeade5171606fa"),
    "train-other-500": (30_593_501_606, "d1a0fd59409feb2c614ce4d30c387708")}
FINAL = Path(out_dir or os.path.join(os.path.dirname(source) if source.endswith(".jsonl") else source, "features"))
SHARED = ()  # what all shards of a worker process share: arguments of make_shard


# ---- LibriSpeech from the net

def fetch_subset(root, name):
    """Download <name>.tar.gz from the first mirror that works, verify it, unpack it into the folder root."""
    size, published = (0, md5) if md5 else ARCHIVES[name]
    archive, part = root / f"{name}.tar.gz", root / f"{name}.tar.gz.part"
    root.mkdir(parents=True, exist_ok=True)
    have = sum(path.stat().st_size for path in (archive, part) if path.exists())
    needed, free = max(size - have, 0) + size, shutil.disk_usage(root).free  # flac packs no further
    if needed > free:
        raise OSError(f"{root}: {name} needs {needed / 1e9:.1f} GB to download and unpack, {free / 1e9:.1f} GB are "
                      "free: make room or choose another source")
    hub = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    bases = [f"{hub}/datasets/{base[3:]}/resolve/main" if base.startswith("hf:") else base.rstrip("/")
             for base in mirrors.replace(" ", "").split(",") if base]
    print(f"{name}: from {download([f'{base}/{name}.tar.gz' for base in bases], str(archive), md5=published)}")
    unpack(archive, root, name)
    if not keep_archive:
        archive.unlink()


def unpack(archive, root, name):
    """Unpack LibriSpeech/<name> of an archive to root/<name>, which is there when all of it is. Nothing gets outside:
    tarfile's data filter refuses absolute paths, '..', devices, and links that lead out."""
    shutil.rmtree(tmp := root / f".{name}.part", ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            for member in tqdm(tar, desc=f"unpacking {archive.name}", unit=" files"):
                tar.extract(member, tmp, filter="data")
        for path in (tmp / "LibriSpeech").glob("*.TXT"):  # of the whole corpus: speakers, licence, chapters
            os.replace(path, root / path.name)
        os.replace(tmp / "LibriSpeech" / name, root / name)
    except (tarfile.TarError, EOFError, zlib.error, FileNotFoundError) as e:
        raise ValueError(f"{archive} holds no LibriSpeech/{name} that can be unpacked ({type(e).__name__}: {e}): "
                         "delete it and run again") from None
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


# ---- the clips of a corpus: generators of (where, key, path or '', words, labels), labels with subset, split, speaker;
# of a row that is none of a clip: (where, '', what is wrong with it, '', {})

def find_subsets():
    """-> [(folder, split)] of the source; OSError when it or a subset is missing and is not LibriSpeech's."""
    root = Path(source)
    folders = [root / name.strip() for name in subset.split(",") if subset]
    for folder in folders:
        if not folder.is_dir() and (folder.name in ARCHIVES or md5):
            fetch_subset(root, folder.name)
    for folder in [root, *folders]:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder (source={source}, subset={subset or 'all'}); --subset "
                                    f"downloads LibriSpeech's own: {', '.join(ARCHIVES)}")
    folders = folders or sorted(f for f in root.iterdir() if f.is_dir() and f.name.startswith(tuple(SPLITS)))
    return [(folder, next((SPLITS[s] for s in SPLITS if folder.resolve().name.startswith(s)), "train"))
            for folder in folders or [root]]


def read_labels():
    """-> ({key: labels} of labels.jsonl, {speaker: sex} of SPEAKERS.TXT), each empty where there is no such file."""
    path, sexes = os.path.join(source, "labels.jsonl"), {}
    labels = {row["key"]: row for _, row in read_jsonl(path, key=str)} if os.path.exists(path) else {}
    for path in (Path(source, "SPEAKERS.TXT"), Path(os.path.realpath(source)).parent / "SPEAKERS.TXT"):
        for line in read_lines(path, "replace") if path.exists() else ():  # of a name in Latin-1 only accents are lost
            speaker, sex = [*(field.strip() for field in line.split("|")), ""][:2]
            sexes.setdefault(speaker, {"M": "male", "F": "female"}.get(sex, ""))
    return labels, sexes


def list_librispeech():
    """The clips of folders in LibriSpeech's layout."""
    subsets, (labels, sexes) = find_subsets(), read_labels()
    for folder, split in subsets:
        found = [Path(path) for path in find_files(folder, (".trans.txt",))]
        chapters = [path for path in found if len(path.relative_to(folder).parts) == 3]
        if not chapters:
            raise ValueError(f"{folder}: no <speaker>/<chapter>/<speaker>-<chapter>.trans.txt here"
                             + (f", but {found[0]}: point --source at the folder of the subsets" if found else ""))
        for transcripts in chapters:
            chapter, speaker = transcripts.parent, transcripts.parent.parent.name
            paths = find_audio(chapter)
            for where, key, words in read_pairs(transcripts):
                own = {"sex": sexes.get(speaker, "")} | labels.get(key, {})
                yield (where, clean_key(key), paths.pop(unicodedata.normalize("NFC", key), ""), words,
                       own | {"subset": folder.name, "split": split, "speaker": speaker})
            for key, path in paths.items():
                yield str(chapter), key, path, None, {}


def list_jsonl():
    """The clips of a list {"audio", "text", ...}; paths are from the list's folder."""
    audio_of = {}  # {key: audio} of the rows without a key of their own
    for n, line in enumerate(read_lines(source), 1):
        if not line.strip():
            continue
        try:
            row = read_row(line, audio=str)
            if "question" in row:
                check_row(row, answer=(str, int, float))
                row["turns"] = [["own", str(row.pop("question")), str(row.pop("answer"))]]
            row.setdefault("text", "" if "turns" in row else None)
            check_row(row, text=str)
        except ValueError as e:
            yield f"{source}:{n}", "", str(e), "", {}
            continue
        audio, words, speaker = row.pop("audio"), row.pop("text").strip(), str(row.get("speaker") or "")
        key = clean_key(str(row.get("key") or os.path.splitext(audio)[0]))
        if not row.get("key") and audio_of.setdefault(key, audio) != audio:  # a/b.wav and a-b.wav, take.2 and take-2
            key += f"-{zlib.crc32(audio.encode('utf-8', 'replace')):08x}"
        split = str(row.get("split") or "") or ("val" if zlib.crc32((speaker or key).encode()) % 20 == 0 else "train")
        split = SPLITS.get(split.lower(), split)
        yield (f"{source}:{n}", key, find_path(os.path.dirname(source), audio), words,
               row | {"subset": split, "split": split, "speaker": speaker})


def list_speechocean():
    """The clips of speechocean762's own folder (Zhang et al., arXiv:2104.01378)."""
    for part in ("train", "test"):
        wavs, texts, speakers, sexes, ages = ({key: rest for _, key, rest in read_pairs(Path(source, part, name))}
                                              for name in ("wav.scp", "text", "utt2spk", "spk2gender", "spk2age"))
        held_out = sorted(ages)[::10]
        for key, words in texts.items():
            speaker, path = speakers.get(key, ""), find_path(source, wavs.get(key, "missing").strip())
            age = int(ages.get(speaker, 0))
            split = (("val" if speaker in held_out else "train") if part == "train" else
                     "test_adults" if age >= 18 else "test_children")
            sex = {"m": "male", "f": "female"}.get(sexes.get(speaker, ""), "")
            yield (f"{source}/{part}/text", key, path, words,
                   {"subset": split, "split": split, "speaker": speaker, "sex": sex, "age": age})


def clean_key(name):
    """A key without '.', '/' and '\\', at which WebDataset would split it."""
    return re.sub(r"[./\\]+", "-", name).strip("-")


def check_clip(where, key, path, words, labels, seen, split_of):
    """Why a clip can't be used, or ''; notes where its key stands in seen and its speaker's split in split_of."""
    speaker, split = labels.get("speaker", ""), labels.get("split", "")
    reason = ("audio without transcript" if words is None else path if not key else
              f'key there twice, at {seen[key]} too: rename one, or give each row its own "key"' if key in seen else
              f"transcript without audio (no {path or key + '.flac, .wav ...'})" if not os.path.exists(path) else
              "" if seen_voices or not speaker or split_of.setdefault(speaker, split) == split or
              "test" in split and "test" in split_of[speaker] else
              f"speaker {speaker} is in {split_of[speaker]} too (seen_voices=True allows that)")
    seen.setdefault(key, where)
    return reason


def read_corpus():
    """-> (clips that can be used: dicts of path, bytes, seconds, info; failures; n_found: all; {what: how many})."""
    layouts = {"librispeech": list_librispeech, "speechocean": list_speechocean}
    if layout not in layouts:
        raise ValueError(f"layout={layout}: use one of {', '.join(layouts)}")
    clips, failures, seen, split_of, counts = [], [], {}, {}, Counter()
    for where, key, path, words, labels in tqdm((list_jsonl if source.endswith(".jsonl") else layouts[layout])(),
                                                desc="corpus", unit=" clips"):
        reason = check_clip(where, key, path, words, labels, seen, split_of)
        try:
            text = "" if reason else normalize_transcript(words)
        except NoSpokenForm as e:
            counts[f"dropped: {e.reason}"] += 1
            continue
        try:
            seconds, rate, n_channels = (0.0, 0, 0) if reason else audio_header(path)
        except (ValueError, OSError) as e:
            reason = str(e)
        if reason:
            failures.append({"key": key, "reason": f"{where}: {reason}"})
            continue
        seconds = round(seconds, 4)
        if (rate, n_channels) != (SAMPLE_RATE, 1):
            counts["converted to 16 kHz mono"] += 1
        info = labels | {"key": key, "text": text, "seconds": seconds}
        if any(char.isdigit() for char in words):
            info["written"] = words  # scoring accepts other readings of the numbers too
        clips.append({"path": path, "bytes": os.path.getsize(path), "seconds": seconds, "info": info})
    check_failures(failures, n_found := len(clips) + len(failures))
    chosen = choose(clips, counts)
    n_found += sum("speed" in clip for clip in chosen)  # if its file is broken, it fails too
    return chosen, failures, n_found, counts


def choose(clips, counts):
    """-> the clips that the settings leave, `limit` of each subset; counts the others."""
    trained = {clip["info"]["text"] for clip in clips if clip["info"]["split"] == "train"}
    by_subset = {}
    for clip in clips:
        n_words, is_train = len(clip["info"]["text"].split()), clip["info"]["split"] == "train"
        why = ("too long" if clip["seconds"] > max_audio_s else
               "without words (min_words=0 takes them as silence)" if not n_words and min_words and
               "turns" not in clip["info"] else
               "too few words" if n_words < min_words and "turns" not in clip["info"] else
               "too many words" if n_words > (max_words or n_words) else
               "sentence in train" if new_sentences and not is_train and clip["info"]["text"] in trained else "")
        if why:
            counts[why] += 1
        else:
            by_subset.setdefault(clip["info"].pop("subset"), []).append(clip)
    chosen = [found[:: max(1, len(found) // limit)][:limit] if limit else found for found in by_subset.values()]
    if not chosen:
        raise ValueError(f"{source}: no clip of at most {max_audio_s:g} s and so many words, {len(clips)} others")
    chosen, percents = sum(chosen, []), read_percents()
    return chosen + [at_speed(clip, percent) for clip in chosen if clip["info"]["split"] == "train"
                     for percent in percents if 100 * clip["seconds"] <= percent * max_audio_s]


def read_percents():
    """The setting speeds as percent, int."""
    found = [round(100 * float(speed)) if re.fullmatch(r"\s*\d(\.\d\d?)?\s*", speed) else 0
             for speed in speeds.split(",") if speeds]
    if not all(50 <= percent <= 200 for percent in found) or len({100, *found}) <= len(found):
        raise ValueError(f"speeds={speeds} is no list of different speeds from 0.5 to 2, not 1 itself, like 0.9,1.1")
    return found


def at_speed(clip, percent):
    """A clip as it is at a speed, under a key of its own."""
    seconds = round(100 * clip["seconds"] / percent, 4)
    info = {"key": f"{clip['info']['key']}-speed{percent}", "seconds": seconds, "at_speed": percent / 100}
    return clip | {"seconds": seconds, "speed": percent / 100, "info": clip["info"] | info}


def check_failures(failures, n_found):
    """ValueError when more than max_bad_share of the clips failed."""
    if len(failures) > max_bad_share * n_found:
        first = "; ".join(f"{f['key']}: {f['reason']}".removeprefix(": ") for f in failures[:3])
        first += " ..." if len(failures) > 3 else ""
        raise ValueError(f"{len(failures)} of {n_found} clips failed, over max_bad_share={max_bad_share}: {first}")


def name_audio(clip):
    """The path of a clip's audio from FINAL."""
    return os.path.relpath(os.path.realpath(clip["path"]), os.path.realpath(FINAL))


def plan_shards(clips, encoder, layers):
    """-> ({shard name: clips of one split, by length}, plan: a hash of all that decides what the shards hold)."""
    shards = {}
    for split in sorted({clip["info"]["split"] for clip in clips} if not index_only else ()):
        ordered = sorted((clip for clip in clips if clip["info"]["split"] == split), key=lambda clip: clip["seconds"])
        for i in range(0, len(ordered), clips_per_shard):
            shards[f"shard-{len(shards):06d}.tar"] = ordered[i : i + clips_per_shard]
    contents = [[name, [[clip["bytes"], clip["info"]] for clip in group]] for name, group in shards.items()]
    makers = [audio.log_mel, audio.mel_filters, audio.Block, audio.WhisperEncoder, encode]
    makers += [recordings, change_speed, try_read]
    what = [code_sum_of(*makers), encoder.sha256, layers, contents]
    what += [[name_audio(clip), clip["bytes"], clip["info"]] for clip in clips] if index_only else []
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


def try_read(clip):
    """-> float32 (n,) at 16 kHz, or the reason (str) why a clip can't be read."""
    try:
        wav = read_audio(clip["path"], max_audio_s + 1)
        return change_speed(wav, clip["speed"]) if "speed" in clip else wav
    except (ValueError, OSError) as e:
        return str(e)


def try_all(clips):
    """Decode every clip once -> (index rows of those that can be read, failures)."""
    good, bad = [], []
    with thread_pool() as pool:
        lengths = pool.map(lambda clip: wav if isinstance(wav := try_read(clip), str) else len(wav), clips)
        for clip, n in tqdm(zip(clips, lengths), total=len(clips), desc="decoding", unit=" clips"):
            if isinstance(n, str):
                bad.append({"key": clip["info"]["key"], "reason": n})
            else:
                good.append({"frames": max(1, -(-n // HOP) // 2), "info": clip["info"]})
    return good, bad


def features_of(clips, encoder, layers, failures, read):
    """Yield (key, float16 (T, n_taps, D), info) for write_shard; failures are appended.

    read: map, or the map of a pool of threads, which reads ahead while the encoder works.
    """
    wavs = read(try_read, clips)
    for batch in (clips[i : i + batch_size] for i in range(0, len(clips), batch_size)):
        tried = [(clip["info"], wav) for clip, wav in zip(batch, wavs)]
        failures += [{"key": info["key"], "reason": wav} for info, wav in tried if isinstance(wav, str)]
        good = [(info, wav) for info, wav in tried if not isinstance(wav, str)]
        for (info, _), x in zip(good, encode(encoder, [wav for _, wav in good], layers)):
            yield info["key"], x, info


def make_shard(name, clips, read, folder, plan, encoder, layers):
    """Write a shard, then its state (rows, failures, sha256, plan), and give the memory back that it took."""
    path, failures = folder / name, []
    rows = write_shard(str(path), features_of(clips, encoder, layers, failures, read))
    state = {"plan": plan, "rows": rows, "failures": failures, "bytes": path.stat().st_size,
             "sha256": sha256_file(path)}
    write_json(str(path.with_suffix(".json")), state)
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc's
        libc.malloc_trim(0)


def begin_work(*shared):
    """Begin a worker process: it keeps the encoder and what else all its shards share."""
    global SHARED
    SHARED = shared
    torch.set_num_threads(1)


def work(name, clips):
    """Make a shard in a worker process; OSError names it."""
    try:
        make_shard(name, clips, map, *SHARED)
    except (ValueError, OSError) as e:
        raise OSError(f"{name}: {e}") from None


def made_by_processes(jobs, shared):
    """Make shards on the cores of a CPU, each process its own; yield None for each that is whole."""
    return run_all(work, jobs, workers, begin_work, shared)  # forked: torch has run on one thread only until here


def thread_pool():
    """Threads that read audio, this rank's share of the cores."""
    return ThreadPoolExecutor(workers or max(1, os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def made_by_this_process(jobs, shared):
    """Make shards on a GPU or as a rank; threads read audio ahead (libsndfile lets them run); as made_by_processes."""
    parent = os.getppid()
    with thread_pool() as pool:
        for name, clips in jobs:
            yield make_shard(name, clips, pool.map, *shared)
            if dist.is_initialized() and os.getppid() != parent:  # torchrun was killed: don't go on alone
                os._exit(1)


def make_shards(names, failures, n_found, folder, shards, plan, encoder, layers):
    """Make the shards called names, longest clips first; stops when too many of the clips fail here or did before."""
    is_alone, failures = encoder.conv1.weight.device.type != "cpu" or dist.is_initialized(), list(failures)
    made, jobs = made_by_this_process if is_alone else made_by_processes, [(name, shards[name]) for name in names[::-1]]
    seconds = {name: round(sum(clip["seconds"] for clip in clips)) for name, clips in jobs}
    with tqdm(total=sum(seconds.values()), desc="features", unit=" s of sound", miniters=1,
              disable=int(os.environ.get("RANK", 0)) > 0) as bar:
        for _, (name, _) in zip(made(jobs, (folder, plan, encoder, layers)), jobs):
            bar.update(seconds[name])
            failures += json.loads((folder / name).with_suffix(".json").read_bytes())["failures"]
            check_failures(failures, n_found)


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
    """Make the folder and lock it against a second run, for as long as this process or one it forked lives."""
    for _ in range(20):  # workers of a killed run need a moment to notice
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY)
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            time.sleep(0.5)
    raise OSError(f"{folder}: another prepare_librispeech.py works there: wait for its end")


def is_made(plan, n_clips):
    """True when out_dir holds the features asked for, whole; ValueError when what it holds must not be replaced."""
    for path in FINAL.glob("shard-*.tar"):
        if not path.with_suffix(".json").exists():
            raise ValueError(f"{path} is not of this script: choose another out_dir")
    try:
        old = json.loads((FINAL / "manifest.json").read_bytes())
        n_old, is_same = sum(old["clips"].values()), old.get("plan") == plan
    except (OSError, ValueError, KeyError):
        return False  # none, or damaged: whole shards are kept
    if (limit or subset) and n_old > n_clips:
        raise ValueError(f"{FINAL} holds {n_old:,} clips: for {limit=} and {subset=} choose another out_dir")
    if index_only and old["shards"]:
        raise ValueError(f"{FINAL} holds features, whose index serves online=True too: choose another out_dir")
    try:
        Features(str(FINAL), online=True)
    except ValueError:
        return False  # a shard is cut short, or the index is of before it named the audio
    print(f"{FINAL}: {n_old:,} clips, encoder {old['encoder']} {old['encoder_sha256'][:16]}, taps {old['taps']}: "
          + ("is up to date" if is_same else "not what is asked for; they stay until the new ones are whole"))
    return is_same


def replace_features(part, shards):
    """Delete old shards from out_dir and move there what is in .part, manifest.json last."""
    (FINAL / "manifest.json").unlink(missing_ok=True)  # interrupted from here on, a rerun moves the rest
    for path in FINAL.glob("*.jsonl"):
        path.unlink()
    for path in sorted(FINAL.glob("shard-*"), reverse=True):  # a tar before its json: they must never be of two plans
        if f"{path.stem}.tar" not in shards or (part / path.name).exists():
            path.unlink()
    for path in sorted(part.iterdir(), key=lambda path: (path.name == "manifest.json", path.name)):
        os.replace(path, FINAL / path.name)
    part.rmdir()


def join_ranks():
    """-> (rank, n_ranks) of torchrun, in one group on the CPU, and the device of this rank."""
    rank, n_ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    own = pick_device(device)
    if own.type == "cuda" and int(os.environ.get("LOCAL_RANK", 0)) >= torch.cuda.device_count():
        raise ValueError(f"more ranks than the {torch.cuda.device_count()} GPUs: lower --nproc_per_node")
    if n_ranks > 1:
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if own.type == "cuda" else own
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=7))  # a rank may wait for the corpus so long
    return rank, n_ranks, own


def prepare(encoder, layers):
    """Read the corpus, make room -> (clips, failures, n_found, counts, shards, plan, todo); todo None: all is made."""
    if max(layers) >= encoder.n_layer:
        raise ValueError(f"taps={taps}: {encoder.name} has layers 0 to {encoder.n_layer - 1}")
    clips, failures, n_found, counts = read_corpus()
    shards, plan = plan_shards(clips, encoder, layers)
    todo = None
    if not is_made(plan, len(clips)):
        lock(part := FINAL / ".part")
        states = read_states(part, shards, plan)
        for path in part.iterdir():
            if f"{path.stem}.tar" not in states:
                path.unlink()  # of another plan, or half-written
        states |= read_states(FINAL, shards, plan)
        todo = [name for name in shards if name not in states]
        check_disk(part, todo, shards, 2 * len(layers) * encoder.n_embd)
    return clips, failures, n_found, counts, shards, plan, todo


def finish(clips, failures, n_found, counts, shards, plan, encoder, layers):
    """Write lists, index and manifest of all shards and put them in place -> (manifest, failures)."""
    part = FINAL / ".part"
    states = read_states(FINAL, shards, plan) | read_states(part, shards, plan)
    good, bad = try_all(clips) if index_only else ([], [])
    failures = failures + bad + [failure for state in states.values() for failure in state["failures"]]
    check_failures(failures, n_found)
    manifest = {"encoder": encoder.name, "encoder_sha256": encoder.sha256, "taps": layers, "D": encoder.n_embd,
                "plan": plan, "counts": counts, "failures": failures, "settings": config,
                "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}}
    sizes = {name: {"bytes": states[name]["bytes"], "sha256": states[name]["sha256"]} for name in shards}
    paths = {clip["info"]["key"]: name_audio(clip) for clip in clips}
    rows = [row for name in shards for row in states[name]["rows"]] or good
    rows = [row | {"audio": paths[row["info"]["key"]]} for row in rows]
    manifest = write_index(str(part), rows, sizes, manifest)
    for split in manifest["clips"]:
        rows = [{"audio": paths[clip["info"]["key"]], **clip["info"]} for clip in clips
                if clip["info"]["split"] == split and "speed" not in clip]
        write_jsonl(part / f"{split}.jsonl", rows)
    replace_features(part, shards)
    return manifest, failures


def main():
    torch.set_num_threads(1)
    if not re.fullmatch(r"(-1|\d+)(,(-1|\d+))*", taps):
        raise ValueError(f"taps={taps} is no comma-separated list of layers, like -1 or 1,3,-1")
    if min(clips_per_shard, batch_size) < 1 or min(workers, limit, max_bad_share) < 0:
        raise ValueError("clips_per_shard and batch_size start at 1, workers, limit and max_bad_share at 0")
    (rank, n_ranks, own), layers = join_ranks(), [int(tap) for tap in taps.split(",")]
    find_encoder = load_encoder_file if os.path.isfile(whisper) else load_encoder
    encoder, shared = None, [None]
    if rank == 0:
        encoder = find_encoder(whisper, own)
        shared = [prepare(encoder, layers)]
    if n_ranks > 1:
        dist.broadcast_object_list(shared)
    clips, failures, n_found, counts, shards, plan, todo = shared[0]
    if todo is None:
        return
    encoder = encoder or find_encoder(whisper, own)  # after the first rank, which may have downloaded it
    start, mine = time.time(), todo[rank::n_ranks]
    if mine:
        make_shards(mine, failures, n_found, FINAL / ".part", shards, plan, encoder, layers)
    if n_ranks > 1:
        dist.barrier()
    if rank > 0:
        return
    took_s, n_new = time.time() - start + 1e-9, sum(len(shards[name]) for name in todo)
    manifest, failures = finish(clips, failures, n_found, counts, shards, plan, encoder, layers)
    print(f"{FINAL}: " + ", ".join(f"{split} {n:,} clips {manifest['seconds'][split] / 3600:.2f} h"
                                   for split, n in manifest["clips"].items()))
    n_bytes = sum(shard["bytes"] for shard in manifest["shards"].values())
    print(f"{len(shards)} shards, {n_bytes / 1e6:,.1f} MB; {len(failures)} failed (see manifest.json); {n_new:,} in "
          f"{took_s:.1f} s, {n_new / took_s:.1f} clips/s")
    print("; ".join(f"{n:,} {why}" for why, n in counts.items()))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        fail(e)
