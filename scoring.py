"""Word and character error rates: reading clips, counting errors, intervals, comparing systems.

Reference and hypothesis are raw texts. In English, transcripts.py resolves marks of noise, symbols
and numbers, Whisper's English normalizer then hesitations, contractions and titles; elsewhere
language.py says what the words are. Spaces are no characters.

A written number stands for each of its readings: 1984 is nineteen eighty four, or one nine eight
four, or one thousand ... The cheapest pair of readings counts. The number of words is that of the
reference's likeliest reading.
"""
import functools
import os
import re
from collections import Counter
from itertools import chain, groupby
from pathlib import Path

import numpy as np

from corpora import read_list, read_transcripts
from files import find_files, read_jsonl
from language import ENGLISH
from recordings import audio_header
from transcripts import NoSpokenForm, name, read_aloud

SEED = 0            # of the clips drawn and of the bootstrap
N_RESAMPLES = 2000  # of the bootstrap
MIN_SPEAKERS = 10   # with fewer known speakers, clips are resampled instead of speakers
LENGTHS = {"1-5": 5, "6-10": 10, "11-20": 20, "more": np.inf}  # words of a clip
TIMES_SPOKEN = {"0": 0, "1-3": 3, "4-15": 15, "more": np.inf}  # in training
DIGITS = {name(n) for n in range(10)}
NUMBERS = {name(n) for n in [*range(20), *range(20, 100, 10)]}
POWERS = {"hundred", "thousand", "million", "billion", "trillion"}


# ---- the clips

def read_data(data, *more):
    """Return [(name, folder, *read_folder(folder, *more))] of a setting `data`.

    It is "[name=]folder,..."; a single folder needs no name.
    """
    parts = [part.strip().rpartition("=") for part in data.split(",") if part.strip()]
    if not parts:
        raise ValueError("data is empty: give --data=[name=]folder[,...]")
    folders = {}
    for label, equals, folder in parts:
        if not equals and len(parts) > 1:
            label = Path(folder).name.removesuffix(".jsonl")
        if label in folders or not re.fullmatch(r"[\w-]*", label):
            raise ValueError(f"data: '{label}' can't name {folder}: give its own name, a word")
        folders[label] = folder
    return [(label, folder, *read_folder(folder, *more)) for label, folder in folders.items()]


def read_folder(folder, max_clips=0, language=ENGLISH):
    """Read the clips of a list or of a folder in LibriSpeech's layout (corpora.py).

    max_clips: at most this many, drawn at random; 0: all. Returns ([{key, reference: raw text,
    text: its transcript, speaker, audio: path, seconds}], by key; Counter of why clips were left
    out). ValueError: a clip's header can't be read, or all are silent.
    """
    if folder.endswith(".jsonl"):
        found = list(read_list(folder))
    else:
        paths = find_files(folder, [".trans.txt"])
        found = list(chain.from_iterable(map(read_transcripts, paths)))
    if not found:
        raise ValueError(f"data: {folder}: no *.trans.txt or line with a clip")
    # something may be spoken in a clip with questions and no transcript
    known = [clip for clip in found if clip.words or "turns" not in clip.labels]
    left_out = +Counter({"questions without a transcript": len(found) - len(known)})
    known.sort(key=lambda clip: (clip.key, clip.words))
    if 0 < max_clips < len(known):
        drawn = np.random.default_rng(SEED).permutation(len(known))[:max_clips]
        known = [known[i] for i in sorted(drawn)]
    clips = []
    for clip in known:
        try:
            clip.require_recording()
            reference = str(clip.labels.get("written", clip.words)).strip()
            text, seconds = language.normalize(reference), audio_header(clip.path)
            clips.append({"key": clip.key, "reference": reference, "text": text,
                          "speaker": clip.labels["speaker"], "audio": clip.path,
                          "seconds": round(seconds, 3)})
        except NoSpokenForm as e:
            left_out[e.reason] += 1
        except ValueError as e:
            raise ValueError(f"{clip.where}: {e}") from None
    if not any(count_words(spoken_slots(clip["reference"], language)) for clip in clips):
        reasons = ", ".join(f"{n} {why}" for why, n in left_out.items()) or "all are silence"
        raise ValueError(f"data: {folder}: no reference holds words ({reasons})")
    return clips, left_out


# ---- errors

@functools.cache
def whisper_normalizer():
    """Return Whisper's English normalizer, without its numbers and its spellings."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
    normalizer = EnglishTextNormalizer(english_spelling_mapping={})  # the table is in no package
    normalizer.standardize_numbers = str  # leaves the text as it is
    return normalizer


@functools.cache
def spoken_slots(text, language=ENGLISH):
    """Return the slots of a raw text: lists of readings, each a tuple of words."""
    if language.code != "en":
        return [[(word,)] for word in language.words(language.normalize(text, strict=False))]
    slots, plain = [], whisper_normalizer()
    for n_readings, some in groupby(read_aloud(text, strict=False), len):
        if n_readings == 1:  # the normalizer reads a run of words together
            words = plain(" ".join(chain(*some))).replace("per cent", "percent").split()
            slots += [[(word,)] for word in words]
        else:
            slots += [[tuple(plain(each).split()) for each in readings] for readings in some]
    for at, slot in enumerate(slots):
        before = slots[at - 1][0][-1:] if at else ()
        after = slots[at + 1][0][:1] if at + 1 < len(slots) else ()
        if slot == [("and",)] and POWERS.intersection(before) and NUMBERS.intersection(after):
            slots[at] = [("and",), ()]  # one hundred (and) five
        elif slot[0] in (("oh",), ("o",)) and DIGITS.intersection(before + after):
            slots[at] = [slot[0], ("zero",)]
    return slots


def count_words(slots):
    return sum(len(readings[0]) for readings in slots)


def word_graph(slots):
    """Return the edges into each node of a graph: [[(earlier node, word or None), ...], ...]."""
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
    """Return the errors, insertions too, of the cheapest paths through two graphs."""
    cost = {}
    for i, into in enumerate(reference):
        for j, into_other in enumerate(hypothesis):
            steps = [] if i or j else [0]
            for before, word in into:
                steps.append(cost[before, j] + bool(word))
                for other_before, other in into_other:
                    if word and other:
                        steps.append(cost[before, other_before] + (word != other))
            for before, word in into_other:
                steps.append(cost[i, before] + bool(word))
            cost[i, j] = min(steps)
    return cost[i, j]


def count_errors(references, hypotheses, language=ENGLISH):
    """Return int64 (n, 2) of n pairs of raw texts: words, errors."""
    counts = []
    for pair in zip(references, hypotheses):
        slots, heard = (spoken_slots(text, language) for text in pair)
        counts.append([count_words(slots), align(word_graph(slots), word_graph(heard))])
    return np.array(counts, dtype=np.int64).reshape(-1, 2)


def count_characters(references, hypotheses, language=ENGLISH):
    """Return int64 (n, 2) of pairs of raw texts in their first readings: characters, errors."""
    from rapidfuzz.distance import Levenshtein  # which jiwer needs

    def letters(text):
        return "".join(chain(*(readings[0] for readings in spoken_slots(text, language))))

    return np.array([[len(letters(said)), Levenshtein.distance(letters(said), letters(heard))]
                     for said, heard in zip(references, hypotheses)])


# ---- rates

def groups_of(clips):
    """Return what the bootstrap resamples for each clip (str)."""
    n_speakers = len({clip["speaker"] for clip in clips} - {""})
    return [f"speaker {clip['speaker']}" if clip["speaker"] and n_speakers >= MIN_SPEAKERS
            else f"clip {clip['key']}" for clip in clips]


def resample(counts, groups):
    """Return the error rates (N_RESAMPLES,) of counts (n, 2), whole groups drawn anew.

    The draws depend on the groups alone: two systems are paired (Bisani and Ney 2004).
    """
    names, at = np.unique(groups, return_inverse=True)
    n = len(names)
    sums = np.zeros((n, 2))
    np.add.at(sums, at, counts)
    times = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES)
    return times @ sums[:, 1] / np.maximum(times @ sums[:, 0], 1)


def interval(rates):
    """Return [low, high], the middle 95% of rates (N_RESAMPLES,)."""
    return [round(float(end), 5) for end in np.percentile(rates, [2.5, 97.5])]


def error_rate(counts, groups):
    """Return the error rate of counts (n, 2), pooled over clips, and its interval."""
    rate = round(float(counts[:, 1].sum() / counts[:, 0].sum()), 5)
    return rate, interval(resample(counts, groups))


def compare(counts, others, groups):
    """Return another system's wer, and ours (counts) minus theirs (others), as a dict."""
    theirs, ends = error_rate(others, groups)
    difference = round(error_rate(counts, groups)[0] - theirs, 5)
    rates = resample(counts, groups) - resample(others, groups)
    return {"wer": theirs, "interval": ends, "difference": difference,
            "difference_interval": interval(rates)}


def by_length(counts):
    """Return {band: [errors, words]} of counts (n, 2) by the words of a clip."""
    words, errors = counts.T
    return in_bands(words, LENGTHS, errors, words)


def by_times_spoken(texts, heard, spoken):
    """Return {band: [wrong, words]} of the words of texts by how often training clips say them.

    texts, heard: n transcripts each; spoken: {word: times}. Inserted words don't count.
    """
    from rapidfuzz.distance import Levenshtein
    words, is_wrong = [], []
    for own, other in zip(map(str.split, texts), map(str.split, heard)):
        for chunk in Levenshtein.opcodes(own, other):
            some = own[chunk.src_start:chunk.src_end]
            words += some
            is_wrong += [chunk.tag != "equal"] * len(some)
    times = [spoken.get(word, 0) for word in words]
    return in_bands(times, TIMES_SPOKEN, np.array(is_wrong), np.ones(len(words)))


def in_bands(values, bands, wrong, total):
    """Return {band: [wrong, total]}, summed where values (n,) are in a band {name: its end}."""
    places = np.searchsorted(list(bands.values()), values)
    return {name: [int(wrong[places == i].sum()), int(total[places == i].sum())]
            for i, name in enumerate(bands)}


def read_beside(paths, clips):
    """Add "theirs" to each clip: another system's hypothesis (str).

    paths: comma-separated eval*.jsonl of eval_bench.py. ValueError names a clip that they lack.
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
                         f"{missing[0]} first: evaluate the other run on the same data")
