"""Word error rates: the clips, a fair count of errors, intervals, and two systems side by side.

Both sides of a comparison are raw texts. Each becomes the same spoken form:
1. transcripts.py resolves entities, marks of noise, symbols and numbers.
2. Whisper's English normalizer drops hesitations and resolves contractions and titles. Its own
   treatment of numbers is off. It writes the spoken "two six four eight" as one word, 2648, and
   leaves the written "2 6 4 8" four words: a right answer counted as several errors.
A written number stands for each of its readings: 1984 for nineteen eighty four, for one thousand
nine hundred (and) eighty four, and for one nine eight four. Nothing tells which one was said. So
the errors are those of the cheapest pair of readings, of the reference's numbers and of the
hypothesis's. A system that writes 1984 is judged like one that writes words.
The number of words is that of the reference's likeliest reading, as training would use it. It does
not depend on the hypothesis, so the rates of two systems have the same denominator.
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

N_RESAMPLES = 2000  # of the bootstrap
MIN_SPEAKERS = 10   # fewer known speakers are no sample of speakers: then clips are resampled
DIGITS = {name(n) for n in range(10)}
NUMBERS = {name(n) for n in [*range(20), *range(20, 100, 10)]}
POWERS = {"hundred", "thousand", "million", "billion", "trillion"}


# ---- the clips

def parse_folders(data):
    """Return [(name, folder)] of the setting `data`; the name of a single folder may be ''."""
    parts = [part.strip().rpartition("=") for part in data.split(",") if part.strip()]
    folders = []
    for label, equals, folder in parts:
        last_part = os.path.basename(os.path.normpath(folder)).removesuffix(".jsonl")
        folders.append((label if equals or len(parts) == 1 else last_part, folder))
    names = [label for label, _ in folders]
    if not folders:
        raise ValueError("data is empty: give a folder in LibriSpeech's layout or a .jsonl, "
                         "--data=[name=]folder[,...]")
    for label, folder in folders:
        is_word = re.fullmatch(r"[\w-]*", label) and not label.startswith("shuffled")
        if names.count(label) > 1 or not is_word:
            raise ValueError(f"data: '{label}' can't name {folder}: give each its own name of "
                             "letters, digits, - and _")
    return folders


def read_folder(folder, max_clips=0, seed=0):
    """Return (clips, left out) of a folder in LibriSpeech's layout, or of a .jsonl.

    clips: dicts of read_clip(), by key; with max_clips above 0 at most so many, drawn by seed.
    left out: Counter of the reasons why a reference has no spoken form. ValueError when a clip
    can't be read, or none is left.
    """
    lines, left_out = [], Counter()
    is_list = folder.endswith(".jsonl") and os.path.isfile(folder)
    for _, row in read_jsonl(folder, audio=str, text=str) if is_list else ():
        text = str(row.get("written", row["text"])).strip()
        if text or "turns" not in row:
            lines.append((row["audio"], text, folder, str(row.get("speaker") or "")))
        else:  # prepare_instruct.py's: something may be spoken there
            left_out["questions without a transcript"] += 1
    for path in find_files(folder, [".trans.txt"]):
        lines += read_transcripts(path)
    if not lines:
        is_folder = os.path.isdir(folder)
        why = "no *.trans.txt with lines of `key TEXT`" if is_folder else "no such folder"
        raise ValueError(f"data: {folder} holds no clips in LibriSpeech's layout ({why})")
    lines.sort()
    if 0 < max_clips < len(lines):
        drawn = np.random.default_rng(seed).permutation(len(lines))[:max_clips]
        lines = [lines[i] for i in sorted(drawn)]
    clips = []
    for line in lines:
        try:
            clips.append(read_clip(*line))
        except NoSpokenForm as e:
            left_out[e.reason] += 1
    if not any(clip["text"] for clip in clips):
        reasons = ", ".join(f"{n} {why}" for why, n in left_out.items()) or "all are silence"
        raise ValueError(f"data: {folder}: no reference holds words, so there is no word error "
                         f"rate ({reasons})")
    return clips, left_out


def read_transcripts(path):
    """Return [(key, text, path, speaker)] of a .trans.txt; '' for an unknown speaker."""
    speaker, chapter = os.path.abspath(path).split(os.sep)[-3:-1]
    is_librispeech = os.path.basename(path) == f"{speaker}-{chapter}.trans.txt"
    return [(key, text, path, speaker if is_librispeech else "") for _, key, text in read_pairs(path)]


def read_clip(key, reference, source, speaker):
    """Return a clip: {key, reference, text, speaker, audio, seconds}.

    reference: str, raw, of a line of the file `source`; text: as the LM was trained; audio: path.
    Only the recording's header is read. ValueError when it is missing or unreadable; NoSpokenForm
    when the reference has none.
    """
    text, audio = normalize_transcript(reference), find_path(os.path.dirname(source), key)
    if not os.path.isfile(audio):  # a key of LibriSpeech has no ending
        beside = find_audio(os.path.dirname(audio)) if os.path.isdir(os.path.dirname(audio)) else {}
        audio = beside.get(unicodedata.normalize("NFC", os.path.basename(audio)), "")
    if not audio:
        raise ValueError(f"{source}: there is no recording of {key} beside it "
                         f"({', '.join(AUDIO_SUFFIXES)})")
    seconds, _, _ = audio_header(audio)
    return {"key": key, "reference": reference, "text": text, "speaker": speaker, "audio": audio,
            "seconds": round(seconds, 3)}


# ---- errors

@functools.cache
def whisper_normalizer():
    """Return Whisper's English normalizer, without its numbers and its table of spellings."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
    normalizer = EnglishTextNormalizer(english_spelling_mapping={})  # the table is in no package
    normalizer.standardize_numbers = str  # leaves the text as it is
    return normalizer


def spoken_slots(text):
    """Return the slots of a raw text: lists of readings, each a tuple of words."""
    slots, run = [], []
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


def word_graph(slots):
    """Return the graph of slots: of each node, in order, its edges [(earlier node, word)].

    The last node is the end. An empty reading is an edge whose word is None.
    """
    edges, start = [[]], 0
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
    # a path's cost is one int: errors, then insertions, deletions, substitutions in 15 bits each
    substitution, deletion, insertion = (1 << 45) + 1, (1 << 45) + (1 << 15), (1 << 45) + (1 << 30)
    cost = {}
    for i, into in enumerate(reference):
        for j, into_other in enumerate(hypothesis):
            steps = [] if i or j else [0]
            for before, word in into:
                steps.append(cost[before, j] + (deletion if word else 0))
                for other_before, other in into_other:
                    if word and other:
                        wrong = substitution if word != other else 0
                        steps.append(cost[before, other_before] + wrong)
            for before, word in into_other:
                steps.append(cost[i, before] + (insertion if word else 0))
            cost[i, j] = min(steps)
    total = cost[len(reference) - 1, len(hypothesis) - 1]
    return total & 0x7fff, total >> 15 & 0x7fff, total >> 30 & 0x7fff


def count_edits(references, hypotheses):
    """Return int (n, 4) of raw texts: words, substitutions, deletions, insertions of each pair."""
    counts = []
    for reference, hypothesis in zip(references, hypotheses):
        slots = spoken_slots(reference)
        n_words = sum(len(readings[0]) for readings in slots)
        edits = align(word_graph(slots), word_graph(spoken_slots(hypothesis)))
        counts.append([n_words, *edits])
    return np.array(counts, dtype=np.int64).reshape(-1, 4)


# ---- rates

def groups_of(clips):
    """Return what the bootstrap resamples, a str a clip: speakers, or clips if few are known."""
    n_speakers = len({clip["speaker"] for clip in clips} - {""})
    return [f"speaker {clip['speaker']}" if clip["speaker"] and n_speakers >= MIN_SPEAKERS
            else f"clip {clip['key']}" for clip in clips]


def resample(counts, groups, seed):
    """Return word error rates (N_RESAMPLES,) of counts (n, 4), whole groups drawn anew.

    The same groups and seed draw the same groups: the difference of two systems' rates is paired
    (Bisani and Ney 2004).
    """
    names, at = np.unique(groups, return_inverse=True)
    n, sums = len(names), np.zeros((len(names), 4))
    np.add.at(sums, at, counts)
    rng = np.random.default_rng(seed)
    times = rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES)  # (N_RESAMPLES, n)
    return times @ sums[:, 1:].sum(axis=1) / np.maximum(times @ sums[:, 0], 1)


def interval(rates):
    """Return [low, high], the middle 95% of rates (N_RESAMPLES,)."""
    return [round(float(end), 5) for end in np.percentile(rates, [2.5, 97.5])]


def error_rate(counts, groups, seed):
    """Return (the word error rate of counts (n, 4), pooled over clips, and its interval)."""
    n_words, n_errors = counts[:, 0].sum(), counts[:, 1:].sum()
    if not n_words:
        raise ValueError("data: the references hold no words, so there is no word error rate")
    return round(float(n_errors / n_words), 5), interval(resample(counts, groups, seed))


def compare(counts, others, groups, seed):
    """Return how another system's counts stand beside counts (n, 4) of the same clips.

    {wer, interval} are the other system's. {difference, difference_interval} are ours minus
    theirs, below 0 where ours is better.
    """
    theirs, their_interval = error_rate(others, groups, seed)
    rates = resample(counts, groups, seed) - resample(others, groups, seed)
    difference = error_rate(counts, groups, seed)[0] - theirs
    return {"wer": theirs, "interval": their_interval, "difference": round(difference, 5),
            "difference_interval": interval(rates)}


def read_beside(paths, clips):
    """Return another system's hypotheses (list of str) of clips.

    paths: comma-separated .jsonl of {"key", "reference", "hypothesis"}, as eval_whisper.py writes.
    ValueError names a clip that they do not hold with this key and reference.
    """
    heard = {}
    for path in paths.split(","):
        for _, row in read_jsonl(path.strip(), key=str, reference=str, hypothesis=str):
            heard[row["key"], row["reference"]] = row["hypothesis"]
    missing = [clip["key"] for clip in clips if (clip["key"], clip["reference"]) not in heard]
    if missing:
        raise ValueError(f"beside={paths}: it lacks {len(missing)} of {len(clips)} clips, "
                         f"{missing[0]} first: run eval_whisper.py on the same data")
    return [heard[clip["key"], clip["reference"]] for clip in clips]
