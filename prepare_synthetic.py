"""Speak sentences with installed voices, into LibriSpeech's layout, with exact labels of the sound.

    python prepare_synthetic.py                       # the CPU demo's speech for alignment
    python prepare_synthetic.py --corpus=many --out_dir=data/voices --n_train=3200 --n_test=600

Reads  <text_dir>/{train,val,test}.txt, a sentence a line, or assets/spoken.txt.
Writes <out_dir>/<split>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac (16 kHz mono PCM16)
       and .trans.txt; labels.jsonl (of each clip, see make_clip()); meta.json.

A clip depends on corpus, split, number and sentence alone.
"""
import shutil
from pathlib import Path

import numpy as np
from tqdm import tqdm

import sounds
import voices
from configurator import configure
from files import own_file, read_lines, read_sentences, read_toml, write_jsonl, write_text
from processes import run_all
from record import make_folder, sums
from voices import VOICES

# config: set by a config file or --name=value
corpus = "plain"         # or many, spoken, flite, piper: assets/synthetic.toml
text_dir = "data/text"
out_dir = "data/synthetic"
n_train = 5000           # clips; beyond the sentences, they come again in other voices
n_val = 200              # heard voices, new sentences (spoken: the same lines)
n_test = 200             # new voices, new sentences
test_engine = ""         # '': as there
config = configure(globals())
# ----
SEED = 1337
SAMPLE_RATE = 16000
SIZES = {"train": n_train, "val": n_val, "test": n_test}
SPLITS = list(SIZES)
SPOKEN = own_file("assets/spoken.txt")  # a line on each line, perhaps ` | ` and its answer
CLIPS_PER_CHAPTER = 25
CORPORA, RANGES, STYLES = read_toml("assets/synthetic.toml").values()
SNR_DB = (15.0, 35.0)    # RMS of the speech over the noise's
LOUDNESS_DB = (-34, -18)  # RMS of the speech, dB of full scale
NOISES = {"white": 0, "pink": 0.5, "brown": 1}  # sounds.colored()'s slope


# ---- one clip

def plan_clip(split, i, engine, text):
    """Draw how clip i of a split is spoken -> dict; the engine's voices take turns."""
    _, _, style_share, noise_share, ranges = CORPORA[corpus]
    rng = np.random.default_rng([SEED, SPLITS.index(split), i])
    turn, at = divmod(i, len(VOICES[engine]))
    speaker = 1000 * (1 + list(VOICES).index(engine)) + 1 + at
    chapter, number = divmod(turn, CLIPS_PER_CHAPTER)
    key = f"{speaker}-{10000 * (1 + SPLITS.index(split)) + chapter}-{number:04d}"
    clip = {"key": key, "split": split, "text": text, "engine": engine,
            **dict(zip(("voice", "accent", "sex", "quality"), VOICES[engine][at])),
            "clip_seed": int(rng.integers(1, 2**31)), "loudness": rng.uniform(*LOUDNESS_DB),
            "silence_s": rng.uniform(0.05, 0.25, 2).round(3).tolist(), "noise": ""}
    if rng.uniform() < noise_share:
        clip["noise"] = list(NOISES)[rng.integers(3)]
        clip["snr_db"] = round(rng.uniform(*SNR_DB), 1)
    if not engine.startswith("espeak"):
        ends = RANGES[engine]
        return clip | {name: round(rng.uniform(*ends[name]), 3) for name in ends}
    ranges = RANGES["espeak"] | ranges
    if style_share:
        has_style = rng.uniform() < style_share
        clip["style"] = list(STYLES)[rng.integers(len(STYLES))] if has_style else ""
        ranges |= STYLES.get(clip["style"], {})
    return clip | {name: int(rng.integers(low, high + 1)) for name, (low, high) in ranges.items()}


def make_clip(clip):
    """Speak a planned clip -> (int16 (n,) at 16 kHz, its labels, dict); ValueError: it is silent.

    Labels: what plan_clip() drew (rate_set in words a minute, pitch and pitch_range 0-99, word_gap
    in 10 ms, other RANGES as shares of the normal); seconds; measured: pitch_hz (median; None for a
    whisper), rate (words a minute), loudness and noise_db (RMS, dB of full scale).
    """
    import soxr
    wav, rate = voices.speak(clip["engine"], clip["text"], clip)
    loud = np.flatnonzero(np.abs(wav) > 0.01 * np.abs(wav).max(initial=0.0))
    if len(loud) < rate // 50:
        raise ValueError(f"{clip['split']}.txt: {clip['engine']} says nothing to '{clip['text']}'")
    rate *= clip.get("playback_speed", 1)
    wav = soxr.resample(wav[loud[0]:loud[-1] + 1], rate, SAMPLE_RATE, quality="HQ")
    gain = 10 ** (clip["loudness"] / 20) / np.sqrt(np.mean(wav**2))
    wav *= min(gain, 0.9 / np.abs(wav).max())  # a peaky voice stays softer: no clipping
    loudness = 10 * np.log10(np.mean(wav**2))
    out = np.pad(wav, [round(s * SAMPLE_RATE) for s in clip["silence_s"]])
    labels = clip | {
        "seconds": round(len(out) / SAMPLE_RATE, 3), "loudness": round(float(loudness), 1),
        "rate": round(60 * len(clip["text"].split()) * SAMPLE_RATE / len(wav)),
        "pitch_hz": None if clip["quality"] == "whisper" else measure_pitch(wav)}
    if clip["noise"]:
        labels["noise_db"] = round(float(loudness) - clip["snr_db"], 1)
        rng = np.random.default_rng(clip["clip_seed"])
        noise = sounds.colored(len(out), rng, NOISES[clip["noise"]])
        out += 10 ** (labels["noise_db"] / 20) * noise
    return (np.clip(out, -1.0, 1.0) * 32767).round().astype(np.int16), labels


def measure_pitch(wav):
    """Return the median pitch of wav, float32 (n,) at 16 kHz, by autocorrelation: 60 to 400 Hz.

    None: under five frames of 64 ms are voiced.
    """
    window = np.hanning(1024).astype(np.float32)
    lags = np.arange(SAMPLE_RATE // 400, SAMPLE_RATE // 60)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wav, (0, 1024)), 1024)[::640]
    spectrum = np.fft.rfft(np.vstack([window, frames * window]), 1296)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)  # (1 + n_frames, 1296)
    energy = correlation[1:, :1]
    of_window = correlation[0, lags] / correlation[0, 0]
    likeness = correlation[1:, lags] / (energy + 1e-9) / of_window
    best = (likeness - 0.03 * np.log2(lags)).argmax(1)  # of equal peaks the highest pitch
    voiced = (likeness.max(1) > 0.6) & (energy[:, 0] > 0.01 * energy.max())
    if voiced.sum() < 5:
        return None
    return round(float(np.median(SAMPLE_RATE / lags[best[voiced]])), 1)


# ---- the corpus

def find_inputs():
    if corpus not in CORPORA or test_engine not in ("", *VOICES):
        raise ValueError(f"{corpus=} is one of {', '.join(CORPORA)}, {test_engine=} '' or one of "
                         f"{', '.join(VOICES)}")
    if min(SIZES.values()) < 0:
        raise ValueError("n_train, n_val and n_test are 0 or more")
    inputs = {}
    for split in filter(SIZES.get, SIZES):  # those with clips
        inputs |= sums(SPOKEN if corpus == "spoken" else f"{text_dir}/{split}.txt")
        inputs[engine_of(split)] = voices.version(engine_of(split))
    return inputs


def engine_of(split):
    of_train, of_test, *_ = CORPORA[corpus]
    return test_engine or of_test if split == "test" else of_train


def choose_texts(split):
    """Return the texts of a split's clips; ValueError: too few sentences."""
    key, n = [SEED, SPLITS.index(split)], SIZES[split]
    if corpus == "spoken":
        lines = [line.partition(" | ")[0] for line in read_lines(SPOKEN)]
        rngs = [np.random.default_rng([*key, i, 1]) for i in range(n)]
        for rng in rngs:
            rng.uniform()  # unused: the lines stay those of earlier runs
        return [lines[rng.integers(len(lines))] for rng in rngs]
    lines = [" ".join(line.split()) for line in read_sentences(text_dir, split)]
    if n > len(lines) and split != "train":
        raise ValueError(f"{text_dir}/{split}.txt: {len(lines)} sentences for n_{split}={n}: "
                         "lower it")
    order = np.random.default_rng(key).permutation(len(lines))
    return [lines[order[i % len(lines)]] for i in range(n)]


def plan_chapters():
    """Return {"<split>/<speaker>/<chapter>": [planned clip, ...]}."""
    chapters = {}
    for split in filter(SIZES.get, SIZES):
        for i, text in enumerate(choose_texts(split)):
            clip = plan_clip(split, i, engine_of(split), text)
            speaker, chapter, _ = clip["key"].split("-")
            chapters.setdefault(f"{split}/{speaker}/{chapter}", []).append(clip)
    return chapters


def write_chapter(folder, clips):
    """Speak the clips of a chapter -> their labels, [dict]."""
    import soundfile
    path, rows = Path(out_dir, folder), []
    path.mkdir(parents=True)
    for clip in clips:
        wav, labels = make_clip(clip)
        soundfile.write(path / f"{clip['key']}.flac", wav, SAMPLE_RATE, subtype="PCM_16")
        rows.append(labels)
    lines = [f"{clip['key']} {clip['text'].upper()}\n" for clip in clips]
    write_text(path / f"{path.parent.name}-{path.name}.trans.txt", "".join(lines))
    return rows


def make():
    root, labels, chapters = Path(out_dir), [], plan_chapters()  # a mistake ends it here
    for split in SPLITS:
        shutil.rmtree(root / split, ignore_errors=True)
    made = run_all(write_chapter, list(chapters.items()))
    for rows in tqdm(made, total=len(chapters), unit=" chapters", disable=None):
        labels += rows
    write_jsonl(root / "labels.jsonl", labels)
    names = [path.relative_to(root).as_posix() for path in root.glob("*/*/*/*.trans.txt")]
    hours = round(sum(row["seconds"] for row in labels) / 3600, 2)
    return ["labels.jsonl", *names], {"clips": len(labels), "hours": hours}


if __name__ == "__main__":
    make_folder(out_dir, config, find_inputs, make)
