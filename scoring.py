"""Word error rates: reading the clips, counting errors, intervals, comparing two systems.

Reference and hypothesis are raw texts. transcripts.py resolves marks of noise, symbols and numbers.
Then Whisper's English normalizer drops hesitations and resolves contractions and titles; its own
rule for numbers is off, because it treats spoken and written digits differently.

A written number stands for each of its readings: 1984 is nineteen eighty four, or one nine eight
four, or one thousand ... The errors are those of the cheapest pair of readings. So a system that
writes 1984 is judged like one that writes words. The number of words is that of the reference's
likeliest reading, the same for all systems.
"""
import functools
import os
import re
import unicodedata
from collections import Counter

import numpy as np

from files import AUDIO_SUFFIXES, find_audio, find_files, find_path, read_jsonl, read_pairs
from recordings import audio_header
from transcripts import NoSpokenForm, name, normalize_transcript, read_aloud

SEED = 0            # of the clips drawn and of the bootstrap
N_RESAMPLES = 2000  # of the bootstrap
MIN_SPEAKERS = 10   # with fewer known speakers, clips are resampled instead of speakers
DIGITS = {name(n) for n in range(10)}
NUMBERS = {name(n) for n in [*range(20), *range(20, 100, 10)]}
POWERS = {"hundred", "thousand", "million", "billion", "trillion"}
# the cost of a path is one int: all errors, insertions, deletions, substitutions in 15 bits each
SUBSTITUTION = (1 << 45) + 1
DELETION = (1 << 45) + (1 << 15)
INSERTION = (1 << 45) + (1 << 30)


# ---- the clips

def read_data(data, max_clips=0):
    """Return [(name, folder, *read_folder(folder))] of a setting `data`, "[name=]folder,...".

    The name of a single folder may be ''.
    """
    parts = [part.strip().rpartition("=") for part in data.split(",") if part.strip()]
    if not parts:
        raise ValueError("data is empty: give --data=[name=]folder[,...]")
    folders = {}
    for label, equals, folder in parts:
        if not equals and len(parts) > 1:
            label = os.path.basename(os.path.normpath(folder)).removesuffix(".jsonl")
        is_word = re.fullmatch(r"[\w-]*", label) and not label.startswith("shuffled")
        if label in folders or not is_word:
            raise ValueError(f"data: '{label}' can't name {folder}: give each its own name, of "
                             "letters, digits, - and _")
        folders[label] = folder
    return [(label, folder, *read_folder(folder, max_clips)) for label, folder in folders.items()]


def read_folder(folder, max_clips=0):
    """Read the clips of a folder in LibriSpeech's layout, or of a .jsonl of {"audio", "text"}.

    max_clips: at most so many, drawn at random; 0: all. Returns (dicts of read_clip(), by key;
    Counter of why clips were left out). ValueError: a clip can't be read, or all are silent.
    """
    left_out = Counter()
    is_list = folder.endswith(".jsonl") and os.path.isfile(folder)
    lines = read_list(folder, left_out) if is_list else []
    for path in find_files(folder, [".trans.txt"]):
        lines += read_transcripts(path)
    if not lines:
        is_folder = os.path.isdir(folder)
        why = "no *.trans.txt with lines of `key TEXT`" if is_folder else "no such folder"
        raise ValueError(f"data: {folder} holds no clips in LibriSpeech's layout ({why})")
    lines.sort()
    if 0 < max_clips < len(lines):
        drawn = np.random.default_rng(SEED).permutation(len(lines))[:max_clips]
        lines = [lines[i] for i in sorted(drawn)]
    clips = []
    for line in lines:
        try:
            clips.append(read_clip(*line))
        except NoSpokenForm as e:
            left_out[e.reason] += 1
    if not any(count_words(spoken_slots(clip["reference"])) for clip in clips):
        reasons = ", ".join(f"{n} {why}" for why, n in left_out.items()) or "all are silence"
        raise ValueError(f"data: {folder}: no reference holds words ({reasons})")
    return clips, left_out


def read_list(path, left_out):
    """Return [(key, text, path, speaker)] of a .jsonl; adds to the Counter left_out."""
    lines = []
    for _, row in read_jsonl(path, audio=str, text=str):
        text = str(row.get("written", row["text"])).strip()
        if text or "turns" not in row:
            lines.append((row["audio"], text, path, str(row.get("speaker") or "")))
        else:  # a clip with questions and no transcript: something may be spoken there
            left_out["questions without a transcript"] += 1
    return lines


def read_transcripts(path):
    """Return [(key, text, path, speaker)] of a .trans.txt; '' for an unknown speaker."""
    speaker, chapter = os.path.abspath(path).split(os.sep)[-3:-1]
    if os.path.basename(path) != f"{speaker}-{chapter}.trans.txt":
        speaker = ""
    return [(key, text, path, speaker) for _, key, text in read_pairs(path)]


def read_clip(key, reference, source, speaker):
    """Return a clip: {key, reference, text, speaker, audio, seconds}.

    reference: raw text of a line of the file `source`; text: its transcript; audio: path. Only the
    recording's header is read. ValueError: no recording, or unreadable. NoSpokenForm: no text.
    """
    text = normalize_transcript(reference)
    audio = find_path(os.path.dirname(source), key)
    folder, stem = os.path.split(audio)
    if not os.path.isfile(audio):  # a key of LibriSpeech has no suffix
        beside = find_audio(folder) if os.path.isdir(folder) else {}
        audio = beside.get(unicodedata.normalize("NFC", stem))
    if not audio:
        raise ValueError(f"{source}: there is no recording of {key} beside it "
                         f"({', '.join(AUDIO_SUFFIXES)})")
    return {"key": key, "reference": reference, "text": text, "speaker": speaker, "audio": audio,
            "seconds": round(audio_header(audio)[0], 3)}


# ---- errors

@functools.cache
def whisper_normalizer():
    """Return Whisper's English normalizer, without its numbers and its table of spellings."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
    normalizer = EnglishTextNormalizer(english_spelling_mapping={})  # the table is in no package
    normalizer.standardize_numbers = str  # leaves the text as it is
    return normalizer


def spoken_slots(text):
    """Return the slots of a raw text: each is a list of readings, a reading is a tuple of words."""
    slots = []
    run = []  # words of one reading each: the normalizer reads them together
    for readings in [*read_aloud(text, strict=False), None]:  # None: the end
        if readings and len(readings) == 1:
            run += readings
            continue
        words = whisper_normalizer()(" ".join(run)).replace("per cent", "percent").split()
        slots += [[(word,)] for word in words]
        run = []
        if readings:
            slots.append([tuple(whisper_normalizer()(reading).split()) for reading in readings])
    for at, slot in enumerate(slots):
        before = slots[at - 1][0][-1:] if at else ()
        after = slots[at + 1][0][:1] if at + 1 < len(slots) else ()
        if slot == [("and",)] and POWERS.intersection(before) and NUMBERS.intersection(after):
            slots[at] = [("and",), ()]  # one hundred (and) five
        elif slot[0] in (("oh",), ("o",)) and DIGITS.intersection(before + after):
            slots[at] = [slot[0], ("zero",)]
    return slots


def count_words(slots):
    """Return the number of words of the likeliest readings."""
    return sum(len(readings[0]) for readings in slots)


def word_graph(slots):
    """Return the graph of slots: for each node, in order, its edges [(earlier node, word)].

    The last node is the end. An empty reading is an edge whose word is None.
    """
    edges = [[]]
    start = 0
    for readings in slots:
        ends = []
        for words in readings:
            node = start
            for word in words[:-1]:
                edges.append([(node, word)])
                node = len(edges) - 1
            ends.append((node, words[-1] if words else None))
        edges.append(ends)
        start = len(edges) - 1
    return edges


def align(reference, hypothesis):
    """Return (substitutions, deletions, insertions) of the cheapest paths through two graphs."""
    cost = {}
    for i, into in enumerate(reference):
        for j, into_other in enumerate(hypothesis):
            steps = [] if i or j else [0]
            for before, word in into:
                steps.append(cost[before, j] + (DELETION if word else 0))
                for other_before, other in into_other:
                    if word and other:
                        wrong = SUBSTITUTION if word != other else 0
                        steps.append(cost[before, other_before] + wrong)
            for before, word in into_other:
                steps.append(cost[i, before] + (INSERTION if word else 0))
            cost[i, j] = min(steps)
    total = cost[len(reference) - 1, len(hypothesis) - 1]
    return total & 0x7fff, total >> 15 & 0x7fff, total >> 30 & 0x7fff


def count_edits(references, hypotheses):
    """Return int64 (n, 4) of n pairs of raw texts: words, substitutions, deletions, insertions."""
    counts = []
    for reference, hypothesis in zip(references, hypotheses):
        slots = spoken_slots(reference)
        edits = align(word_graph(slots), word_graph(spoken_slots(hypothesis)))
        counts.append([count_words(slots), *edits])
    return np.array(counts, dtype=np.int64).reshape(-1, 4)


# ---- rates

def groups_of(clips):
    """Return what the bootstrap resamples, a str for each clip: its speaker, or the clip itself."""
    n_speakers = len({clip["speaker"] for clip in clips} - {""})
    return [f"speaker {clip['speaker']}" if clip["speaker"] and n_speakers >= MIN_SPEAKERS
            else f"clip {clip['key']}" for clip in clips]


def resample(counts, groups):
    """Return the word error rates (N_RESAMPLES,) of counts (n, 4), whole groups drawn anew.

    The draws depend on the groups alone: two systems' rates are paired (Bisani and Ney 2004).
    """
    names, at = np.unique(groups, return_inverse=True)
    n = len(names)
    sums = np.zeros((n, 4))
    np.add.at(sums, at, counts)
    rng = np.random.default_rng(SEED)
    times = rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES)  # (N_RESAMPLES, n)
    return times @ sums[:, 1:].sum(axis=1) / np.maximum(times @ sums[:, 0], 1)


def interval(rates):
    """Return [low, high], the middle 95% of rates (N_RESAMPLES,)."""
    return [round(float(end), 5) for end in np.percentile(rates, [2.5, 97.5])]


def error_rate(counts, groups):
    """Return (the word error rate of counts (n, 4), pooled over clips, and its interval)."""
    rate = round(float(counts[:, 1:].sum() / counts[:, 0].sum()), 5)
    return rate, interval(resample(counts, groups))


def score(counts, groups):
    """Return the figures of counts (n, 4) of n clips as a dict; rates are fractions."""
    rate, ends = error_rate(counts, groups)
    words, *edits = counts.sum(axis=0).tolist()
    names = ("substitutions", "deletions", "insertions")
    return {"wer": rate, "intervals": {"wer": ends}, "clips": len(counts), "words": words,
            **{kind: round(n / words, 5) for kind, n in zip(names, edits)},
            "resampled": sorted({group.split()[0] for group in groups})}


def compare(counts, others, groups):
    """Compare our counts (n, 4) with another system's: a dict of its wer and interval.

    And the difference with its interval: ours minus theirs, below 0 where ours is better.
    """
    theirs, ends = error_rate(others, groups)
    difference = round(error_rate(counts, groups)[0] - theirs, 5)
    rates = resample(counts, groups) - resample(others, groups)
    return {"wer": theirs, "interval": ends, "difference": difference,
            "difference_interval": interval(rates)}


def read_beside(paths, clips):
    """Add "theirs" to each clip: another system's hypothesis (str).

    paths: comma-separated .jsonl of {"audio": the recording's path, "reference", "hypothesis"}, as
    eval_whisper.py writes. ValueError names a clip that they lack.
    """
    heard = {}
    for path in paths.split(","):
        for _, row in read_jsonl(path.strip(), audio=str, reference=str, hypothesis=str):
            heard[os.path.abspath(row["audio"]), row["reference"]] = row["hypothesis"]
    for clip in clips:
        clip["theirs"] = heard.get((os.path.abspath(clip["audio"]), clip["reference"]))
    missing = [clip["audio"] for clip in clips if clip["theirs"] is None]
    if missing:
        raise ValueError(f"beside={paths}: it lacks {len(missing)} of {len(clips)} clips, "
                         f"{missing[0]} first: run eval_whisper.py on the same data")
