"""Make questions and answers about audio: what was said, who speaks and how, where, and what else sounds.

    python prepare_instruct.py config/cpu_practice.py         # data/practice: chats that train_base.py practises with
    python prepare_instruct.py config/cpu_instruct.py         # data/instruct: the mix that train_sft.py learns
    python prepare_instruct.py config/cpu_bench.py            # data/audiobench_mini: 200 questions, none from training
    python prepare_instruct.py --n=400 --out_dir=data/toy     # a toy

Reads  labels.jsonl and the clips of three folders of prepare_synthetic.py: voices (config/cpu_voices.py), spoken
       (config/cpu_spoken.py) and speech (what alignment was trained on); questions.txt (how each task is asked),
       spoken.txt (the answers to what is spoken), <text_dir>/train.txt.
Writes <out_dir>/clips/*.flac, 16 kHz mono; items.jsonl, a clip a line: {"audio", "key", "split", "text", "labels":
       {task: answer}, "turns": [[task, question, answer], ...]}, whose features prepare_librispeech.py makes;
       turns.jsonl, {"key", "turns"} for the clips of speech, whose features are there; text.jsonl, chats without audio;
       meta.json (counts). bench=True: <out_dir>/wavs/*.wav and questions.jsonl {"id", "cell", "task", "audio",
       "question", "options", "key": index of the right one}. practice=...: <out_dir>/chats.jsonl {"split", "text",
       "turns"} about sentences and spoken lines, without audio.
Labels come from how a clip was made, never from a model. The same settings and voices give the same files. 25 s.
"""
import hashlib
import json
import os
import re
import shutil
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

import sounds
import sources as real_sets
from audio import SAMPLE_RATE
from recordings import read_audio
from configurator import configure, fail
from files import own_file, read_jsonl, read_lines, sha256_file, write_json, write_jsonl
from processes import run_all
from record import changed_code, code_sums
from tokenizer import multiple_choice
from transcripts import NoSpokenForm, normalize_transcript, require_distinct

# config: every value here can be set from a config file or as --name=value
voices = "data/voices"     # of many voices, paces, pitches and styles: how it sounds
spoken = "data/spoken"     # of the lines of spoken.txt
speech = "data/synthetic"  # of sentences, clearly: what is said
text_dir = "data/text"     # sentences for chats without audio
out_dir = "data/instruct"
n = 15_000                 # instructions of train on clips made here, about, beside those on the clips of speech
turns = 4                  # questions to a clip, at most
val_share = 0.05           # so many clips more are val, of heard voices, of other sentences but the spoken lines
choice_share = 0.6         # so many of the questions that have options list them; the others are open
two_part_share = 0.08      # so many turns ask two questions at once
text_share = 0.1           # so many chats without audio more
sources = ""               # comma-separated sets of real recordings that you have, name or name=folder: see sources.py
source_share = 0.3         # so many of the clips are from them
non_commercial = False     # True: sets whose licence forbids commercial use too
practice = 0               # so many chats about what is said in sentences of text_dir, in place of the mix
practice_turns = 10       # questions to a sentence, the same task as often as it comes
bench = False              # True: AudioBench-mini in place of the mix
bench_sources = ""         # with bench: the bench is made of real recordings of these sets, their test speakers
bench_items = 25           # questions to a cell
questions_file = "assets/questions.txt"
spoken_file = "assets/spoken.txt"
workers = 0                # processes; 0: one for each core
seed = 0
config = configure(globals())  # prints each change; stored in meta.json
# -----------------------------------------------------------------------------
SHARES = {"voice": 0.46, "spoken": 0.1, "pair": 0.14, "scene": 0.06, "event": 0.11, "music": 0.06, "beeps": 0.03,
          "silence": 0.04}
WEIGHTS = {"kind": 0.2, "sex": 0.5, "n_words": 0.5, "first": 0.5, "last": 0.5, "style": 4, "voice": 2, "pitch": 2,
           "rate": 2, "word": 2, "digit": 4, "command": 4, "answer": 4, "sentence": 1.5}  # how often asked; else 1
PRACTICE = {"word": 0.8, "first": 0.05, "last": 0.05, "sentence": 0.05, "n_words": 0.05}  # how often asked
CLEAR = {"rate_set": 205, "pitch": 65}  # espeak's; of faster and higher voices nobody is asked what they said
PITCH_HZ = {"very low": (0, 85), "low": (105, 132), "high": (158, 190), "very high": (220, 500)}
VOICE_HZ = {"male": {"low": (0, 90), "high": (133, 200)}, "female": {"low": (100, 150), "high": (215, 400)}}
RATE = {"very slow": (0, 105), "slow": (130, 150), "fast": (185, 205), "very fast": (242, 999)}  # words a minute, set
LOUDNESS_DB = {"very quiet": (-52, -48), "quiet": (-41, -37), "loud": (-30, -26), "very loud": (-19, -16)}
QUALITY = {"plain": "clear", "whisper": "whispering", "croak": "creaky", "klatt": "buzzing"}
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
NOBODY = "nobody is speaking"
BENCH = {"emotion or style": {"style": 25}, "speaker traits": {"voice": 13, "accent": 12},
         "same or different speaker": {"pair": 25}, "pitch, loudness or rate": {"pitch": 9, "loudness": 8, "rate": 8},
         "voice quality": {"quality": 25}, "sound event or scene": {"event": 13, "scene": 12},
         "room, noise or channel": {"room": 9, "noise": 8, "channel": 8},
         "spoken content": {"sentence": 10, "word": 10, "digit": 5}}  # cell: {task: questions of 25}


# ---- what is asked

def read_questions():
    """-> {task: {"cell", "ask": [str], "bench": [str], "labels": [str]}} of questions.txt; ValueError names a line."""
    tasks, task = {}, None
    for number, line in enumerate(read_lines(own_file(questions_file)), 1):
        mark, _, rest = line.strip().partition(" ")
        if named := re.fullmatch(r"\[(\w+)\](.*)", line.strip()):
            task = tasks[named[1]] = {"cell": named[2].strip(), "ask": [], "bench": [], "labels": []}
        elif task and mark in "?!" and rest:
            task["ask" if mark == "?" else "bench"].append(rest)
        elif task and mark == "=" and rest:
            task["labels"] += [label.strip() for label in rest.split("|")]
        elif mark and mark[0] != "#":
            raise ValueError(f"{questions_file}:{number}: a line starts with [task], ?, !, = or #")
    return tasks


def read_spoken():
    """-> {spoken line: answer} of spoken.txt."""
    return dict(line.split(" | ", 1) for line in read_lines(own_file(spoken_file)) if " | " in line)


def band(bands, value):
    """The name of the band (low, high) that value lies in, or '' between bands."""
    return next((name for name, (low, high) in bands.items() if value is not None and low <= value <= high), "")


def voice_labels(clip):
    """What can be asked about who speaks and how, of a clip's labels: {task: answer}."""
    found, plain = {"style": clip.get("style")}, clip["quality"] == "plain" and clip["sex"]
    if clip["quality"] == "whisper":
        del found["style"]  # it has no pitch, which tells bored from calm
    if not clip.get("style") and (plain or clip["quality"] != "plain"):
        found["quality"] = QUALITY[clip["quality"]]
    if clip["quality"] in ("plain", "klatt"):
        found["pitch"] = band(PITCH_HZ, clip["pitch_hz"])
    if plain:
        found |= {"accent": clip["accent"], "sex": {"male": "a man", "female": "a woman"}[clip["sex"]]}
        height = band(VOICE_HZ[clip["sex"]], clip["pitch_hz"])
        found["voice"] = height and f"{found['sex']} with a {height} voice"
    found["rate"] = band(RATE, clip.get("rate_set"))
    return {task: answer for task, answer in found.items() if answer}


def is_clear(clip):
    """True where a clip's words can be heard by a model that was aligned on such speech."""
    return (clip["quality"] == "plain" and clip["accent"] in ("american", "british")
            and all(clip.get(name, 0) <= most for name, most in CLEAR.items()))


def content_labels(clip, rng):
    """What can be asked about the words: {task: answer}."""
    words = clip["text"].split()
    if not is_clear(clip):
        return {}
    found = {"sentence": clip["text"], "first": words[0], "last": words[-1]}
    long = [word for word in words if len(word) > 3 and words.count(word) == 1]
    if long:
        found["word"] = long[rng.integers(len(long))]
    return found | ({"n_words": NUMBERS[len(words)]} if 3 <= len(words) <= 12 else {})


# ---- clips: each maker returns (float32 wav, {task: answer}, transcript or '')

def read_voice(clip):
    """The recording of a clip of the voices."""
    speaker, chapter, _ = clip["key"].split("-")
    return read_audio(os.path.join(clip["root"], clip["split"], speaker, chapter, clip["key"] + ".flac"))


def at_loudness(wav, rng, name=""):
    """wav at a loudness, a random one unless it is named -> (wav, the name, or '' where peaks don't let it be so)."""
    name = name or list(LOUDNESS_DB)[rng.integers(4)]
    wanted = rng.uniform(*LOUDNESS_DB[name])
    wav = sounds.level(wav, wanted)
    peak = np.abs(wav).max()
    return (wav, name) if peak <= 0.98 else (wav * (0.98 / peak), name if peak < 1.2 else "")


def on_its_way(wav, rng, task, label):
    """Speech in a room, in noise or through a channel, as one of their labels says."""
    if task == "room" and sounds.ROOMS[label]:
        return sounds.room(wav, rng, *sounds.ROOMS[label])
    if task == "noise" and sounds.SNR_DB[label]:
        noise = sounds.colored(len(wav), rng, rng.uniform(0, 1))
        return sounds.level(wav) + 10 ** (-rng.uniform(*sounds.SNR_DB[label]) / 20) * noise
    return sounds.through(wav, rng, label) if task == "channel" else wav


def make_voice(clip, rng, task="", label=""):
    """One voice, on its way to the microphone; task and label fix what the bench asks."""
    way = task if task in ("room", "noise", "channel") else ("room", "noise", "channel")[rng.integers(3)]
    labels = tasks[way]["labels"]
    how = label if task == way else labels[0] if task else labels[rng.integers(4)]
    wav = on_its_way(read_voice(clip), rng, way, how)
    wav, loudness = at_loudness(wav, rng, label if task == "loudness" else "loud" if task else "")
    if how == "more noise than speech":
        return wav, {way: how}, ""
    found = voice_labels(clip) | {way: how, "kind": "speech"} | ({"loudness": loudness} if loudness else {})
    if not is_clear(clip) or how not in (labels[0], "a little noise", "a telephone"):
        return wav, found, ""
    return wav, found | content_labels(clip, rng), clip["text"]


def spoken_task(text):
    """What is asked about a line of spoken.txt."""
    return "digit" if text in NUMBERS else "command" if text in tasks["command"]["labels"] else "answer"


def make_spoken(clip, rng, *_):
    """A line of spoken.txt: a number, an order or a question."""
    text = clip["text"]
    task = spoken_task(text)
    wav, loudness = at_loudness(read_voice(clip), rng, ("loud", "very loud")[rng.integers(2)])
    return wav, {task: answers[text], "sentence": text} | ({"loudness": loudness} if loudness else {}), text


def make_pair(clips, rng, *_):
    """Two sentences, of one voice or of two."""
    sexes = [clip["sex"] for clip in clips]
    one = clips[0]["voice"] == clips[1]["voice"]
    who = {"male": "man", "female": "woman"}[sexes[0]]
    answer = "a man and a woman" if len(set(sexes)) > 1 else f"one {who}" if one else f"two {who[:-2]}en"
    wavs = [sounds.level(read_voice(clip), -26) for clip in clips]
    wav = np.concatenate([wavs[0], np.zeros(int(rng.uniform(0.1, 0.3) * SAMPLE_RATE), np.float32), wavs[1]])
    return wav, {"pair": answer}, ""


def make_scene(clip, rng, task="", label=""):
    """Speech with a place around it."""
    label = label or list(sounds.SCENES)[rng.integers(len(sounds.SCENES))]
    wav = sounds.level(read_voice(clip))
    wav = wav + 10 ** (-rng.uniform(3, 9) / 20) * sounds.SCENES[label](len(wav), rng)
    return at_loudness(wav, rng, "loud")[0], {"scene": label} | ({} if task else voice_labels(clip)), ""


def make_event(_, rng, task="", label=""):
    """One sound event of 2 to 3 s."""
    label = label or list(sounds.EVENTS)[rng.integers(len(sounds.EVENTS))]
    wav = sounds.EVENTS[label](int(rng.uniform(2, 3) * SAMPLE_RATE), rng)
    found = {"event": label, "sentence": NOBODY} | ({"kind": "noise"} if label in ("rain", "wind", "waves") else {})
    return at_loudness(wav, rng, "loud")[0], found, ""


def make_music(_, rng, *__):
    """A melody of three notes."""
    instrument, way = (list(names)[rng.integers(4)] for names in (sounds.INSTRUMENTS, sounds.MELODIES))
    wav = sounds.melody(int(rng.uniform(1.5, 2.5) * SAMPLE_RATE), rng, instrument, sounds.MELODIES[way])
    found = {"instrument": instrument, "melody": way, "kind": "music", "sentence": NOBODY}
    return at_loudness(wav, rng, "loud")[0], found, ""


def make_beeps(_, rng, *__):
    """One to four tones."""
    count = int(rng.integers(1, 5))
    wav = sounds.beeps(SAMPLE_RATE, rng, count)
    return at_loudness(wav, rng, "loud")[0], {"beeps": NUMBERS[count], "sentence": NOBODY}, ""


def make_silence(_, rng, *__):
    """Almost nothing, or noise: nobody speaks."""
    wav, is_noise = sounds.colored(int(rng.uniform(1, 3) * SAMPLE_RATE), rng, rng.uniform(0, 1)), rng.uniform() < 0.5
    wav = sounds.level(wav, rng.uniform(-45, -20) if is_noise else rng.uniform(-85, -70))
    return wav, {"kind": "noise" if is_noise else "silence", "sentence": NOBODY}, ""


def make_real(clip, rng, *_):
    """A recording of a real set, of at most 10 s, as it is."""
    wav = read_audio(clip["path"])[:10 * SAMPLE_RATE]
    is_whole = len(wav) < 10 * SAMPLE_RATE
    said = {"sentence": clip["text"]} if clip["text"] and is_whole else {}
    return wav, clip["labels"] | said, said.get("sentence", "")


MAKERS = {name: globals()["make_" + name] for name in [*SHARES, "real"]}


# ---- from a clip's labels to turns

def options_for(task, answer, rng, said):
    """Four options with the answer among them, in random order; None where there are none to offer."""
    labels = tasks[task]["labels"]
    if task in ("word", "first", "last"):  # a short answer among longer words would give itself away
        labels = [word for word in said["words"] if word not in said["own"]] if len(answer) > 3 else []
    elif task == "sentence":
        labels = list(answers) if answer in answers else said["sentences"]
    others = [label for label in dict.fromkeys(labels) if label != answer]
    if len(others) < 3 or answer == NOBODY:
        return None
    chosen = [answer, *(others[i] for i in rng.choice(len(others), 3, replace=False))]
    return [chosen[i] for i in rng.permutation(4)]


def ask(task, answer, rng, said):
    """-> [task, question, answer], with options or open."""
    question = tasks[task]["ask"][rng.integers(len(tasks[task]["ask"]))]
    options = options_for(task, answer, rng, said)
    must = task == "word"
    if options and (must or rng.uniform() < choice_share):
        require_distinct(question, options)
        question = multiple_choice(question, options)
    return None if must and not options else [task, question, answer]


def make_turns(found, rng, said):
    """Choose up to `turns` of a clip's {task: answer} and ask them."""
    if found.get("quality") == "clear" and rng.uniform() < 0.6:  # or most answers would be it
        del found["quality"]
    if not found:
        return []
    weights = np.array([WEIGHTS.get(name, 1.0) for name in found])
    names = [list(found)[i] for i in rng.choice(len(found), min(turns, len(found)), False, weights / weights.sum())]
    rows = [row for row in (ask(name, found[name], rng, said) for name in names) if row]
    for i in range(len(rows) - 1, 0, -2):
        a, b = rows[i - 1], rows[i]
        is_short = all("\n" not in row[1] and tasks[row[0]]["labels"] for row in (a, b))
        if is_short and rng.uniform() < 2 * two_part_share:
            rows[i - 1:i + 1] = [["two", f"{a[1]} and {b[1]}", f"{a[2]} and {b[2]}"]]
    return rows


def begin_work(*made_before):
    """Begin a worker process: it knows the tasks and answers that the script has read."""
    global tasks, answers
    tasks, answers = made_before


def make_item(key, kind, clip, split, said, clip_seed):
    """Make a planned clip and write it; returns its row of items.jsonl."""
    import soundfile
    rng = np.random.default_rng(clip_seed)
    wav, found, text = MAKERS[kind](clip, rng)
    path = f"clips/{key}.flac"
    soundfile.write(os.path.join(out_dir, ".part", path), np.clip(wav, -1, 1), SAMPLE_RATE, subtype="PCM_16")
    return {"audio": path, "key": key, "split": split, "text": text, "kind": kind, "labels": found,
            "turns": make_turns(found.copy(), rng, said)}


def pair_up(clips, rng, label=""):
    """-> two clips of plain voices with other texts, whose speakers are as label, an answer of the task pair, says.

    Without a label it is drawn, and another one serves where no two clips fit.
    """
    plain = [clip for clip in clips if clip["quality"] == "plain" and not clip["style"] and clip["seconds"] < 4
             and clip["pitch_hz"]]
    labels = tasks["pair"]["labels"]
    first = label or labels[rng.integers(5)]
    wanted = [first, *(name for name in labels if not label and name != first)]
    for number, who in (name.split()[:2] for name in wanted):
        sex = {"man": "male", "men": "male", "woman": "female", "women": "female"}[who]
        a = [clip for clip in plain if number == "a" or clip["sex"] == sex]
        for i in rng.permutation(len(a)):
            near = [b for b in plain if b["text"] != a[i]["text"] and (
                b["sex"] != a[i]["sex"] if number == "a" else
                b["voice"] == a[i]["voice"] and abs(b["pitch"] - a[i]["pitch"]) <= 4 if number == "one" else
                b["sex"] == a[i]["sex"] and b["voice"] != a[i]["voice"]
                and abs(np.log2(b["pitch_hz"] / a[i]["pitch_hz"])) > 0.35)]
            if near:
                return [a[i], near[rng.integers(len(near))]]
    raise ValueError(f"{voices}: no two clips of {first}: raise n_train and n_test there")


def ask_speech(clips, said, salt):
    """Turns for the clips of speech: {"key", "turns"} each."""
    rows = []
    for i, clip in enumerate(clips):
        rng = np.random.default_rng([seed, 50 + salt, i])
        found = voice_labels(clip) | content_labels(clip, rng)
        rows.append({"key": clip["key"], "turns": make_turns(found, rng, some_of(said, rng, clip["text"]))})
    return rows


def some_of(said, rng, own=""):
    """Some sentences and words to be wrong options, and the words that were said."""
    return {name: [said[name][k] for k in rng.integers(len(said[name]), size=size)]
            for name, size in (("sentences", 6), ("words", 24))} | {"own": own.split()}


def plan(clips, lines, count, split, said, salt):
    """Choose what each of `count` clips is: jobs for make_item."""
    rng, jobs, others = np.random.default_rng([seed, salt]), [], real.get(split)
    for i in range(count):
        kind = list(SHARES)[rng.choice(len(SHARES), p=list(SHARES.values()))]
        kind = "real" if others and rng.uniform() < source_share else kind
        pool = {"spoken": lines, "real": others}.get(kind, clips)
        clip = pair_up(clips, rng) if kind == "pair" else pool[rng.integers(len(pool))]
        wrong = some_of(said, rng, clip["text"] if kind in ("voice", "spoken", "real") else "")
        jobs.append((f"{split}-{i:06d}", kind, clip, split, wrong, [seed, salt, i]))
    return jobs


def read_clips(root, split):
    """-> the labels of a folder's clips of a split, with the folder as "root"."""
    path = Path(root, "labels.jsonl")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run prepare_synthetic.py config/cpu_{os.path.basename(root)}.py")
    clips = [clip | {"root": root} for _, clip in read_jsonl(path, key=str, text=str, split=str)
             if clip["split"] == split]
    wrong = next((clip["key"] for clip in clips if root == voices and not {"style", "pitch"} <= set(clip)
                  or root == spoken and clip["text"] not in answers), "")
    if wrong:
        raise ValueError(f"{path}: {wrong} is not of espeak with style_share above 0, or not of {spoken_file}")
    if not clips:
        raise ValueError(f"{path}: no clips of {split} there")
    return clips


def read_sources(names, split):
    """-> clips of sets of real recordings, labelled by our tasks; ValueError where a licence is in the way."""
    clips, dropped = [], Counter()
    for name, _, folder in (part.strip().partition("=") for part in names.split(",") if part.strip()):
        known = real_sets.SOURCES.get(name)
        if known and not known["is_free"]:
            print(f"{name}: {known['licence']} forbids commercial use ({known['address']})")
            if not non_commercial:
                raise ValueError(f"{name} is for non-commercial use alone: say so with --non_commercial=True")
        for clip in real_sets.list_clips(name, folder or (known or {"folder": ""})["folder"]):
            labels = {"thing" if task == "event" else task: answer for task, answer in clip["labels"].items()}
            if clip["split"] != split or not (labels or clip["text"]):  # what a cut leaves without a turn
                continue
            try:
                clips.append(clip | {"labels": labels, "text": normalize_transcript(clip["text"])})
            except NoSpokenForm as e:
                dropped[e.reason] += 1
    if dropped:
        reasons = ", ".join(f"{n} clips, {why}" for why, n in dropped.items())
        print(f"sources of {split}: left out {reasons}")
    for clip in clips:  # an open set of sounds: what these sets hold
        if "thing" in clip["labels"] and clip["labels"]["thing"] not in tasks["thing"]["labels"]:
            tasks["thing"]["labels"].append(clip["labels"]["thing"])
    if names and not clips:
        raise ValueError(f"sources={names}: no clip of {split} there")
    return clips


def said_in(clips):
    """-> {"sentences": texts of clips, "words": their longer words, as often as they occur}.

    So that a wrong option is as frequent a word as a right one, and text alone can't tell them.
    """
    sentences = sorted({clip["text"] for clip in clips})
    words = [word for text in sentences for word in text.split() if len(word) > 3]
    return {"sentences": sentences, "words": words}


def practice_chat(text, rng, said):
    """Questions about a sentence, or a line of spoken.txt, imitated as a recording: [[task, question, answer]]."""
    rows = []
    while len(rows) < (practice_turns if text not in answers else min(practice_turns, 3)):
        if text in answers:
            found = {spoken_task(text): answers[text], "sentence": text}
        else:
            found = content_labels({"text": text, "quality": "plain", "accent": "american"}, rng)
        weights = np.array([PRACTICE.get(task, 0.4) for task in found])
        task = list(found)[rng.choice(len(found), p=weights / weights.sum())]
        if row := ask(task, found[task], rng, some_of(said, rng, text)):
            if rng.uniform() < 0.7:  # shorter, so that more of them fit a step
                row[1] = row[1].removesuffix("\nanswer with one of the options")
            rows.append(row)
    return rows


def make_practice(part):
    """Write the chats of the base model's listening practice; returns counts."""
    counts, rows = {"train": practice, "val": max(8, round(val_share * practice))}, []
    for salt, (split, count) in enumerate(counts.items()):
        rng, texts = np.random.default_rng([seed, 60 + salt]), read_sentences(split)
        said = said_in([{"text": text} for text in texts])
        for _ in range(count):
            is_spoken = split == "train" and rng.uniform() < SHARES["spoken"]  # val asks about new sentences alone
            pool = list(answers) if is_spoken else texts
            text = pool[rng.integers(len(pool))]
            rows.append({"split": split, "text": text, "turns": practice_chat(text, rng, said)})
    write_jsonl(part / "chats.jsonl", rows)
    return counts


def read_sentences(split):
    """-> sentences of <text_dir>/<split>.txt."""
    path = Path(text_dir, split + ".txt")
    lines = [line.strip() for line in read_lines(path) if line.strip()]
    if not lines:
        raise ValueError(f"{path} holds no sentence: run prepare_text.py again")
    return lines


def text_chats(count):
    """Chats without audio, so that text stays known: say it again, its first or last word, and spoken.txt's answers."""
    lines, rng, rows = read_sentences("train"), np.random.default_rng([seed, 9]), []
    for _ in range(count):
        line = lines[rng.integers(len(lines))]
        question, answer = list(answers.items())[rng.integers(len(answers))]
        rows.append([(f"say this\n{line}", line), (f"what is the last word\n{line}", line.split()[-1]),
                     (f"what is the first word\n{line}", line.split()[0]), (question, answer)][rng.integers(4)])
    return rows


def make_mix(part):
    """Write the mix below `part`; returns counts."""
    (part / "clips").mkdir()
    count = max(8, round(n / (0.75 * turns)))
    jobs, overlay = [], []
    for clip in read_sources(sources, "train"):  # val: a twentieth of the speakers
        real.setdefault("val" if zlib.crc32(clip["speaker"].encode()) % 20 == 1 else "train", []).append(clip)
    for salt, (split, size) in enumerate({"train": count, "val": max(8, round(val_share * count))}.items()):
        said = said_in(read_clips(speech, split))
        jobs += plan(read_clips(voices, split), read_clips(spoken, split), size, split, said, salt)
        overlay += ask_speech(read_clips(speech, split), said, salt)
    made = run_all(make_item, jobs, workers, begin_work, (tasks, answers), chunksize=32)
    rows = list(tqdm(made, total=len(jobs), unit=" clips", desc="instructions"))
    rows = [row for row in rows if row["turns"] or row["text"]]  # a long real recording may have no question left
    asked = Counter(turn[0] for row in rows + overlay for turn in row["turns"])
    write_jsonl(part / "turns.jsonl", overlay)
    write_jsonl(part / "items.jsonl", rows)
    chats = [{"question": q, "answer": a} for q, a in text_chats(max(8, round(text_share * n)))]
    write_jsonl(part / "text.jsonl", chats)
    return {"clips": len(rows), "clips of speech": len(overlay), "instructions": sum(asked.values()),
            "chats": len(chats), "tasks": dict(asked)}


# ---- the bench

def bench_sets(task, count, clips, rng):
    """-> [(clip, answer, options)] of a task: answers in turn, each about a third as often the key as a distractor."""
    if task in ("sentence", "word"):
        return content_sets(task, count, clips, rng)
    labels = tasks[task]["labels"]
    keys = [labels[i] for i in rng.permutation(np.arange(count) % len(labels))]
    left_out, rows = Counter(), []
    for key in keys:
        others = sorted((label for label in labels if label != key), key=lambda o: (left_out[o], rng.uniform()))
        for label in others[:len(others) - 3]:
            left_out[label] += 1
        clip = bench_clip(task, key, clips, rng)
        rows.append((clip, key, [key, *others[len(others) - 3:]]))
    return rows


def bench_clip(task, key, clips, rng):
    """A clip of the held-out voices that shows the answer `key`."""
    if task == "event":
        return None
    if task == "pair":
        return pair_up(clips, rng, key)
    if "path" in clips[0]:  # real recordings
        fits = [clip for clip in clips if clip["labels"].get(task) == key]
        return fits[rng.integers(len(fits))]
    on_plain = task in ("room", "noise", "channel", "loudness", "scene")
    fits = [clip for clip in clips if (clip["quality"] == "plain" and not clip["style"] if on_plain else
                                       clip["text"] == key if task == "digit" else voice_labels(clip).get(task) == key)]
    if not fits:
        raise ValueError(f"{clips[0]['root']}: no clip of test shows {task} = {key}: raise n_test there")
    return fits[rng.integers(len(fits))]


def content_sets(task, count, clips, rng):
    """Sentences of about one length, or a word of each: the options of each are those of the next three."""
    clear = [clip for clip in clips if 5 <= len(clip["text"].split()) <= 8 and ("path" in clip or is_clear(clip))]
    chosen, keys, texts, n_sets = [], [], set(), max(count, 4)
    for i in rng.permutation(len(clear)):
        words = clear[i]["text"].split()
        long = [w for w in words if 5 <= len(w) <= 7 and not any(w in text.split() for text in texts)]
        if long and not set(words) & set(keys) and len(chosen) < n_sets:
            chosen.append(clear[i])
            keys.append(long[rng.integers(len(long))])
            texts.add(clear[i]["text"])
    if len(chosen) < n_sets:
        raise ValueError(f"{speech}: {len(chosen)} clear sentences of test for {n_sets} questions: raise n_test there")
    keys = keys if task == "word" else [clip["text"] for clip in chosen]
    return [(clip, keys[i], [keys[(i + k) % n_sets] for k in range(4)])
            for i, clip in enumerate(chosen[:count])]


def real_cells(found):
    """-> {cell: {task: share}} of what four-choice questions can ask about real recordings."""
    cells = {}
    for task in ("emotion", "thing", "digit", "command"):
        known = {clip["labels"][task] for clip in found if task in clip["labels"]}
        tasks[task]["labels"] = sorted(known)
        if len(known) >= 4:
            cells.setdefault(tasks[task]["cell"] or "spoken content", {})[task] = 1
    n_sentences = sum(5 <= len(clip["text"].split()) <= 8 for clip in found)
    cells |= {"what was said": {"sentence": 1, "word": 1}} if n_sentences >= 4 * bench_items else {}
    if not cells:
        raise ValueError(f"bench_sources={bench_sources}: no task has four answers or more there")
    return cells


def make_right(kind, clip, task, key, number):
    """The wav of a question; ValueError where what was made is not what the key says."""
    for attempt in range(20):  # a peaky voice may not get as loud as it should
        rng = np.random.default_rng([seed, 80, number, attempt])
        wav, found, _ = MAKERS[kind](clip, rng, task, key)
        if task == "word" or found.get(task) == key:
            return wav
    raise ValueError(f"question {number}: its recording shows {task} = {found.get(task)}, not {key}")


def make_bench(part):
    """Write AudioBench-mini below `part`; returns counts."""
    import soundfile
    (part / "wavs").mkdir()
    rows, found = [], read_sources(bench_sources, "test")
    clips = {} if found else {root: read_clips(root, "test") for root in (voices, spoken, speech)}
    for cell, shares in (real_cells(found) if found else BENCH).items():
        scale = bench_items / sum(shares.values())
        sizes = {task: round(scale * share) for task, share in shares.items()}
        sizes[next(iter(sizes))] += bench_items - sum(sizes.values())
        for k, (task, size) in enumerate(sizes.items()):
            rng = np.random.default_rng([seed, 77, len(rows), k])
            phrase = np.random.default_rng([seed, 81, len(rows), k])  # not moved by what the clips' draws take
            pool = found or clips[{"sentence": speech, "word": speech, "digit": spoken}.get(task, voices)]
            for clip, key, options in bench_sets(task, size, pool, rng) if size else ():
                kind = "voice" if task not in ("pair", "scene", "event", "digit") else task.replace("digit", "spoken")
                kind = "real" if found else kind
                name, asks = f"{len(rows):03d}", tasks[task]["bench"]
                require_distinct(f"{name} ({task})", options)
                wav = make_right(kind, clip, task, key, len(rows))
                soundfile.write(part / f"wavs/{name}.wav", np.clip(wav, -1, 1), SAMPLE_RATE, subtype="PCM_16")
                rows.append({"id": name, "cell": cell, "task": task, "audio": f"wavs/{name}.wav",
                             "question": asks[phrase.integers(len(asks))], "options": options, "key": key})
    places = np.random.default_rng([seed, 78]).permutation(np.arange(len(rows)) % 4)  # as often first as last
    for row, place in zip(rows, places.tolist()):
        others = [option for option in row["options"] if option != row["key"]]
        rng = np.random.default_rng([seed, 79, int(row["id"])])
        row["options"] = [others[i] for i in rng.permutation(3)]
        row["options"].insert(place, row["key"])
        row["key"] = place
    write_jsonl(part / "questions.jsonl", rows)
    return {"questions": len(rows), "cells": dict(Counter(row["cell"] for row in rows))}


def inputs():
    """Return {path: checksum} of the lists and texts that the items are made of; {} with real recordings."""
    if source_names := sources or bench_sources:
        return {"": source_names}
    paths = [own_file(name) for name in ("assets/questions.txt", "assets/spoken.txt")]
    paths += [os.path.join(folder, "labels.jsonl") for folder in (voices, spoken, speech)]
    paths += [os.path.join(text_dir, f"{split}.txt") for split in ("train", "val", "test")]
    return {path: sha256_file(path) for path in paths if os.path.isfile(path)}


def is_made(final, settings, made_of):
    """True where an earlier run made the same of the same; real recordings are read anew each time."""
    try:
        meta = json.loads((final / "meta.json").read_bytes())
        is_same = (meta["settings"], meta["inputs"]) == (settings, made_of)
        return is_same and not changed_code(meta["code"]) and "" not in made_of
    except (OSError, ValueError, KeyError, TypeError):
        return False


def main():
    if min(n, turns, bench_items, practice_turns) < 1 or min(workers, seed, practice) < 0:
        raise ValueError("n, turns, practice_turns and bench_items are 1 or more, workers, practice and seed 0 or more")
    if not all(0 <= share <= 1 for share in (val_share, choice_share, two_part_share, text_share)):
        raise ValueError("val_share, choice_share, two_part_share and text_share are shares of 0 to 1")
    final, part = Path(out_dir), Path(out_dir, ".part")
    if final.exists() and any(final.iterdir()) and not (final / "meta.json").exists() and not part.exists():
        raise ValueError(f"{final} was not made by this script: set another out_dir, or remove it")
    settings, made_of = {k: v for k, v in config.items() if k != "workers"}, inputs()
    if is_made(final, settings, made_of):
        return print(f"{out_dir} is up to date")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    meta = make_bench(part) if bench else make_practice(part) if practice else make_mix(part)
    meta |= {"settings": settings, "inputs": made_of, "code": code_sums()}
    write_json(part / "meta.json", meta)
    (final / "meta.json").unlink(missing_ok=True)  # it says that all is there: it goes first and comes last
    for path in sorted(part.iterdir(), key=lambda path: path.name == "meta.json"):
        old = final / path.name
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        os.replace(path, old)
    part.rmdir()
    name = "questions.jsonl" if bench else "chats.jsonl" if practice else "items.jsonl"
    digest = hashlib.sha256((final / name).read_bytes()).hexdigest()[:16]
    print(f"{out_dir}: " + ", ".join(f"{k} {v}" for k, v in meta.items()
                                 if k not in ("settings", "inputs", "code")) + f"; sha256 {digest}")


tasks, answers, real = {}, {}, {}
if __name__ == "__main__":
    try:
        tasks, answers = read_questions(), read_spoken()
        main()
    except (ValueError, OSError) as e:
        fail(e)
