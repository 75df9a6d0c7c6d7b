"""Clips with exact labels: voices of prepare_synthetic.py in rooms, noise and channels; sounds.

A maker takes (clip, rng, task, label): a row of read_clips(), numpy's Generator, the bench's task
and the answer to show, or "". It returns (wav float32 (n,) at 16 kHz, {task: answer}). The bench's
rng is a Beyond: rooms, places and sounds are none of training.
"""
import numpy as np

import sounds
from files import read_jsonl
from questions import NOBODY, NUMBERS, pick, read_tasks, spoken_labels, word_labels
from recordings import SAMPLE_RATE, read_audio

PITCH_HZ, VOICE_HZ, RATE_WPM, LOUDNESS_DB, QUALITIES, PAIRS, *_ = sounds.LABELS.values()
CLEAR_WPM, CLEAR_PITCH = 205, 65  # espeak's; no words of faster or higher voices are asked
PEOPLE = {"male": "a man", "female": "a woman"}
WAYS = ("room", "noise", "channel")  # between speaker and microphone
REACH = 0.3     # of a range of training, beyond which the bench draws
MATCHED = 0.12  # octaves between pitches, and rates, of the bench's two voices


def read_clips(folder, split, texts=(), **fields):
    """Return the rows of a split in <folder>/labels.jsonl; "root" is the folder.

    texts: all that a clip may say, if not empty; fields: as in check_row(). ValueError: a wrong
    row, or no clip of the split.
    """
    path, clips = f"{folder}/labels.jsonl", []
    for where, row in read_jsonl(path, key=str, text=str, split=str, **fields):
        if texts and row["text"] not in texts:
            raise ValueError(f"{where}: {row['text']!r} is no line of assets/spoken.txt")
        if row["split"] == split:
            chapter = "/".join(row["key"].split("-")[:2])
            recording = f"{folder}/{split}/{chapter}/{row['key']}.flac"
            clips.append(row | {"root": folder, "path": recording, "labels": voice_labels(row)})
    if not clips:
        raise ValueError(f"{path}: no clips of {split} there")
    return clips


def write_clip(path, wav):
    """wav: (n,), written as 16 bits at 16 kHz."""
    import soundfile
    soundfile.write(path, np.clip(wav, -1, 1), SAMPLE_RATE, subtype="PCM_16")


# ---- labels of a voice

def band(bands, value):
    """Return the name of the band that value (None: unknown) lies in, or ""."""
    return next((name for name, (low, high) in bands.items() if low <= (value or -1) <= high), "")


def voice_labels(clip):
    """Return {task: answer}: who speaks, and how."""
    quality, sex, style = clip["quality"], clip["sex"], clip.get("style")
    labels = {}
    if quality != "whisper":  # it has no pitch, which tells bored from calm
        labels["style"] = style
    if not style and (quality != "plain" or sex):
        labels["quality"] = QUALITIES[quality]
    if quality in ("plain", "klatt"):
        labels["pitch"] = band(PITCH_HZ, clip["pitch_hz"])
    if quality == "plain" and sex:
        labels |= {"accent": clip["accent"], "sex": PEOPLE[sex], "person": PEOPLE[sex]}
        height = band(VOICE_HZ[sex], clip["pitch_hz"])
        labels["voice"] = height and f"{PEOPLE[sex]} with a {height} voice"
    labels["rate"] = band(RATE_WPM, clip.get("rate_set"))
    return {task: answer for task, answer in labels.items() if answer}


def is_clear(clip):
    """Can a model that was aligned on plain speech hear the words?"""
    return (clip["quality"] == "plain" and clip["accent"] in ("american", "british")
            and clip.get("rate_set", 0) <= CLEAR_WPM and clip.get("pitch", 0) <= CLEAR_PITCH)


def is_plain(clip):
    return clip["quality"] == "plain" and not clip.get("style")


# ---- makers

class Beyond(np.random.Generator):
    """A number of uniform(low, high) lies outside, by up to REACH of the range."""

    def uniform(self, low=0.0, high=1.0, size=None):
        if size is not None or (low, high) == (0.0, 1.0):
            return super().uniform(low, high, size)
        step = self.random() * REACH * (high - low)
        return high + step if self.random() < 0.5 else low - step


def inside(ends, rng):
    """Draw a number between two ends, in the bench too."""
    return ends[0] + (ends[1] - ends[0]) * rng.random()


def at_loudness(wav, rng, name=""):
    """Return (wav at a loudness, drawn if not named; its label, {} where peaks forbid it)."""
    name = name or pick(list(LOUDNESS_DB), rng)
    wav = sounds.level(wav, inside(LOUDNESS_DB[name], rng))
    peak = np.abs(wav).max()
    wav = wav * (0.98 / peak) if peak > 0.98 else wav
    return wav, {"loudness": name} if peak < 1.2 else {}


def on_its_way(wav, rng, way, label):
    """Return speech after one of WAYS, as the label of that task says."""
    if way == "channel":
        return sounds.through(wav, rng, label, rng.uniform(0.9, 1.1))
    if way == "room" and sounds.ROOMS[label]:
        return sounds.room(wav, rng, *(rng.uniform(0.85, 1.15) * x for x in sounds.ROOMS[label]))
    if way == "noise" and sounds.SNR_DB[label]:
        noise = sounds.colored(len(wav), rng, rng.uniform(0.1, 0.9))
        return sounds.level(wav) + 10 ** (-inside(sounds.SNR_DB[label], rng) / 20) * noise
    return wav


def make_voice(clip, rng, task, label):
    """One voice on its way to the microphone; in the bench only what `task` asks is not clean."""
    way = task if task in WAYS else pick(WAYS, rng)
    labels = read_tasks()[way].labels  # the first one is clean
    if task:
        how = label if task == way else labels[0]
        wanted = label if task == "loudness" else "loud"
    else:
        how, wanted = pick(labels, rng), ""
    wav = on_its_way(read_audio(clip["path"]), rng, way, how)
    wav, loudness = at_loudness(wav, rng, wanted)
    if how == "more noise than speech":
        return wav, {way: how}
    found = clip["labels"] | {way: how, "kind": "speech"} | loudness
    if is_clear(clip) and how in (labels[0], "a little noise", "a telephone"):
        found |= word_labels(clip["text"], rng)
    return wav, found


def make_spoken(clip, rng, *_):
    wanted = pick(("loud", "very loud"), rng)
    wav, loudness = at_loudness(read_audio(clip["path"]), rng, wanted)
    return wav, spoken_labels(clip["text"]) | loudness


def make_pair(clips, rng, *_):
    answer = next(name for name, speakers in PAIRS.items() if speakers == compare(*clips))
    first, second = (sounds.level(read_audio(clip["path"]), -26) for clip in clips)
    pause = np.zeros(sounds.samples(rng.uniform(0.1, 0.3)), np.float32)
    return np.concatenate([first, pause, second]), {"pair": answer}


def make_scene(clip, rng, _, label):
    label = label or pick(list(sounds.SCENES), rng)
    wav = sounds.level(read_audio(clip["path"]))
    wav = wav + 10 ** (-inside((3, 9), rng) / 20) * sounds.SCENES[label](len(wav), rng)
    return at_loudness(wav, rng, "loud")[0], {"scene": label} | clip["labels"]


def make_event(_, rng, task, label):
    label = label or pick(list(sounds.EVENTS), rng)
    wav = sounds.EVENTS[label](sounds.samples(rng.uniform(2, 3)), rng)
    found = {"event": label, "sentence": NOBODY}
    if label in ("rain", "wind", "waves"):
        found["kind"] = "noise"
    return at_loudness(wav, rng, "loud")[0], found


def make_music(_, rng, *__):
    instrument = pick(list(sounds.INSTRUMENTS), rng)
    way = pick(list(sounds.MELODIES), rng)
    n = sounds.samples(rng.uniform(1.5, 2.5))
    wav = sounds.melody(n, rng, instrument, sounds.MELODIES[way])
    found = {"instrument": instrument, "melody": way, "kind": "music", "sentence": NOBODY}
    return at_loudness(wav, rng, "loud")[0], found


def make_beeps(_, rng, *__):
    count = int(rng.integers(1, 5))
    wav, _ = at_loudness(sounds.beeps(rng, count), rng, "loud")
    return wav, {"beeps": NUMBERS[count], "sentence": NOBODY}


def make_silence(_, rng, *__):
    wav = sounds.colored(sounds.samples(rng.uniform(1, 3)), rng, rng.uniform(0, 1))
    kind, ends_db = ("noise", (-45, -20)) if rng.uniform() < 0.5 else ("silence", (-85, -70))
    return sounds.level(wav, inside(ends_db, rng)), {"kind": kind, "sentence": NOBODY}


def make_real(clip, *_):
    return read_audio(clip["path"]), clip["labels"]


MAKERS = {"voice": make_voice, "spoken": make_spoken, "digit": make_spoken, "pair": make_pair,
          "scene": make_scene, "event": make_event, "music": make_music, "beeps": make_beeps,
          "silence": make_silence, "real": make_real}


# ---- two clips of one voice or of two

def compare(a, b):
    """Return the speakers of two clips as in PAIRS."""
    return [a["sex"] if a["sex"] == b["sex"] else "", a["voice"] == b["voice"]]


def pair_up(clips, rng, label=""):
    """Return two plain clips of other texts, whose speakers are as a label of PAIRS says.

    Without a label one is drawn; with one, for the bench, pitch and rate are as alike as can be.
    """
    plain = [clip for clip in clips if is_plain(clip) and clip["sex"] in PEOPLE
             and clip["seconds"] < 4 and clip.get("pitch_hz", 1)]
    wanted = label or pick(list(PAIRS), rng)
    for name in dict.fromkeys([wanted, *([] if label else PAIRS)]):
        firsts = [clip for clip in plain if PAIRS[name][0] in ("", clip["sex"])]
        best = np.inf,  # how unlike, and the two clips
        for i in rng.permutation(len(firsts)):
            a = firsts[i]
            seconds = [b for b in plain if b["text"] != a["text"] and compare(a, b) == PAIRS[name]]
            if seconds and not label:
                return [a, pick(seconds, rng)]
            pairs = [(unlike(a, b), a, b) for b in seconds]
            best = min([best, *pairs], key=lambda pair: pair[0])
            if best[0] < MATCHED:
                break
        if best[1:]:
            return best[1:]
    raise ValueError(f"{clips[0].get('root', 'sources')}: no two clips of {wanted}: add some")


def unlike(a, b):
    """Return how far pitches or rates are apart, octaves."""
    return max(abs(np.log2(a[name] / b[name])) for name in ("pitch_hz", "rate"))
