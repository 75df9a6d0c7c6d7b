"""Speech corpora: which recordings there are, what is said, and what can't be used.

LibriSpeech: <source>/<subset>/<speaker>/<chapter>/<key>.flac and <speaker>-<chapter>.trans.txt,
    perhaps <source>/labels.jsonl ({"key": ..., any label} a line). Subsets train* are the split
    train, val* and dev* val, test* test. A source of speakers' folders is one subset.
    LibriSpeech's own are downloaded when missing.
A list: <source>.jsonl, {"audio": path from the list's folder, "text": ...} a line, perhaps "split"
    (else a twentieth is val), "speaker", "key", "language". With "question" and "answer", or
    "turns" [[task, question, answer], ...], a line needs no text.
speechocean762's folder (arXiv:2104.01378): a tenth of train's speakers is val; its test is
    test_adults (18 years or more) and test_children.
Common Voice: <source>/validated.tsv and clips, of a language (arXiv:1912.06670); a twentieth of
    the speakers is val.
AISHELL-1: <source>/transcript/aishell_transcript_v0.8.txt and wav/<split>/<speaker>/<key>.wav
    (arXiv:1709.05522).
LJSpeech: <source>/metadata.csv (key|text|text with numbers in words) and wavs.
Queen: <source>/queen.1c of Debian's flight-of-the-amazon-queen, a game: actors' lines, which are
    unpacked to <source>/clips. Format: ScummVM's engines/queen.
"""
import csv
import os
import re
import subprocess
import unicodedata
import zlib
from collections import Counter
from pathlib import Path
from struct import error, iter_unpack, unpack_from
from typing import NamedTuple

from tqdm import tqdm

from files import (check_row, find_audio, find_files, find_path, own_file, read_filled, read_jsonl,
                   read_lines, read_pairs, read_row)
from language import ENGLISH, Language
from recordings import audio_header
from transcripts import NoSpokenForm

SPLITS = {"train": "train", "val": "val", "dev": "val", "test": "test",  # by a name's first letters
          "valid": "val", "validation": "val"}                           # by a line's "split"
AISHELL = "transcript/aishell_transcript_v0.8.txt"
SEXES = {"m": "male", "f": "female"}


class Clip(NamedTuple):
    """A clip as its corpus names it."""
    where: str  # the file and line that name it
    key: str
    path: str = ""
    words: str = ""
    labels: dict = {}  # speaker, split and what else the corpus knows
    error: str = ""    # why it can't be used

    def require_recording(self):
        """Raise a ValueError if it can't be used or its recording is not there."""
        if self.error or not self.key:
            raise ValueError(self.error or "its key has no letters")
        if not os.path.exists(self.path):
            raise ValueError(f"no recording ({self.path or self.key + '.flac, .wav ...'})")


def read_corpus(source, subsets="", seen_voices=False, language=ENGLISH):
    """Read the lists of a corpus and the headers of its recordings.

    source: folder or .jsonl; subsets: comma-separated folder names, "": all; seen_voices: val and
    test may hold speakers of train; language: where a clip names none. Returns clips
    [{"path", "info": labels with key, text, seconds}], failures [{"key", "reason"}], counts of
    what was dropped or keeps its digits. ValueError, OSError: the corpus is broken.
    """
    clips, failures, counts = [], [], Counter()
    known, split_of = {}, {}  # {key: where it is named}, {speaker: split}
    for clip in tqdm(find_clips(source, subsets), desc="corpus", unit=" clips"):
        try:
            check_clip(clip, known, {} if seen_voices else split_of)
            clips.append(describe(clip, counts, language))
        except NoSpokenForm as e:
            why = f"dropped: {e.reason}"
            counts[why] += 1
            if counts[why] == 1:
                tqdm.write(f"{clip.where}: dropped, the first of this kind: {e}")
        except (ValueError, OSError) as e:
            failures.append({"key": clip.key, "reason": f"{clip.where}: {e}"})
        known.setdefault(clip.key, clip.where)
    return clips, failures, counts


def check_clip(clip, known, split_of):
    """Raise a ValueError if a clip can't be used; note its speaker's split."""
    clip.require_recording()
    if clip.key in known:
        raise ValueError(f'key there twice, at {known[clip.key]} too: give each row its own "key"')
    speaker, split = clip.labels["speaker"], clip.labels["split"]
    first = split_of.setdefault(speaker, split) if speaker else split
    if split != first and not ("test" in split and "test" in first):
        raise ValueError(f"speaker {speaker} is in {first} too (seen_voices=True allows that)")


def describe(clip, counts, language):
    """Return one of read_corpus()'s clips; ValueError, OSError: it can't be used."""
    own = clip.labels.get("language")
    text = (Language(str(own)) if own else language).normalize(clip.words)
    seconds = round(audio_header(clip.path), 4)
    info = clip.labels | {"key": clip.key, "text": text, "seconds": seconds}
    if any(map(str.isdigit, clip.words)):
        info["written"] = clip.words  # scoring accepts other readings of the numbers too
    if any(map(str.isdigit, text)):
        counts["with digits as written"] += 1
    return {"path": clip.path, "info": info}


def clean_key(name):
    """Return a key without '.', '/' and '\\', at which WebDataset would split it."""
    return re.sub(r"[./\\]+", "-", name).strip("-")


# ---- the kinds: each read_* yields the Clips of a source

def find_clips(source, subsets):
    readers = {"train/wav.scp": read_speechocean, "validated.tsv": read_common_voice,
               AISHELL: read_aishell, "metadata.csv": read_ljspeech, "queen.1c": read_queen}
    if source.endswith(".jsonl"):
        return read_list(source)
    for name, reader in readers.items():
        if Path(source, name).exists():
            return reader(source)
    return read_librispeech(source, subsets)


def read_librispeech(source, subsets):
    labels, sexes = {}, {}
    if os.path.exists(path := f"{source}/labels.jsonl"):
        labels = {row["key"]: row for _, row in read_jsonl(path, key=str)}
    path = Path(source, "SPEAKERS.TXT")
    for line in read_lines(path) if path.exists() else ():
        speaker, sex, *_ = map(str.strip, f"{line}|".split("|"))
        sexes[speaker] = SEXES.get(sex.lower(), "")
    for folder in find_subsets(Path(source), subsets):
        name = folder.resolve().name
        split = next((SPLITS[start] for start in SPLITS if name.startswith(start)), "train")
        for transcripts in find_chapters(folder):
            chapter = os.path.dirname(transcripts)
            unsaid = {path: key for key, path in find_audio(chapter).items()}
            for clip in read_transcripts(transcripts):
                unsaid.pop(clip.path, None)
                own = {"sex": sexes.get(clip.labels["speaker"], ""), **labels.get(clip.key, {}),
                       "split": split, **clip.labels}
                yield clip._replace(key=clean_key(clip.key), labels=own)
            for path, key in unsaid.items():
                yield Clip(chapter, key, error=f"{path} has no transcript")


def find_subsets(root, names):
    """Return the folders of subsets, LibriSpeech's own downloaded. OSError: one is missing."""
    folders = [root / name.strip() for name in names.split(",") if names]
    for folder in folders:
        if not folder.is_dir():
            subprocess.run(["bash", own_file("runs/librispeech.sh"), str(root), folder.name])
    for folder in [root, *folders]:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
    found = sorted(f for f in root.iterdir() if f.is_dir() and f.name.startswith(tuple(SPLITS)))
    return folders or found or [root]


def find_chapters(folder):
    """Return the transcripts of a subset; ValueError: there are none where they belong."""
    found = find_files(folder, (".trans.txt",))
    chapters = [path for path in found if len(Path(path).relative_to(folder).parts) == 3]
    if not chapters:
        hint = f", but {found[0]}: point --source at the folder of the subsets" if found else ""
        raise ValueError(f"{folder}: no <speaker>/<chapter>/<...>.trans.txt here{hint}")
    return chapters


def read_transcripts(path):
    """Yield the Clips of a .trans.txt, whose recordings lie beside it."""
    speaker = os.path.abspath(path).split(os.sep)[-3]
    recordings = find_audio(os.path.dirname(path))
    for where, key, words in read_pairs(path):
        recording = recordings.get(unicodedata.normalize("NFC", key), "")
        yield Clip(where, key, recording, words, {"speaker": speaker})


def read_list(source):
    for where, line in read_filled(source):
        try:
            yield read_list_row(where, line)
        except ValueError as e:
            yield Clip(where, "", error=str(e))


def draw_split(name):
    """Return "val" for a twentieth of the names of speakers or clips, else "train"."""
    return "train" if zlib.crc32(name.encode()) % 20 else "val"


def read_list_row(where, line):
    """Return the Clip of a line of a list; ValueError: it names none."""
    row = read_row(line, audio=str)
    if "question" in row:
        check_row(row, answer=(str, int, float))
        row["turns"] = [["own", str(row.pop("question")), str(row.pop("answer"))]]
    row.setdefault("text", "" if "turns" in row else None)
    check_row(row, text=str)
    audio, words, speaker = row.pop("audio"), row.pop("text"), str(row.get("speaker") or "")
    key = clean_key(str(row.get("key") or os.path.splitext(audio)[0]))
    split = str(row.get("split") or draw_split(speaker or key))
    labels = row | {"split": SPLITS.get(split.lower(), split), "speaker": speaker}
    return Clip(where, key, find_path(os.path.dirname(where), audio), words.strip(), labels)


def read_speechocean(source):
    for part in ("train", "test"):
        names = ("wav.scp", "text", "utt2spk", "spk2gender", "spk2age")
        wavs, texts, speakers, sexes, ages = (
            {key: rest for _, key, rest in read_pairs(Path(source, part, name))} for name in names)
        held_out = sorted(ages)[::10]
        for key, words in texts.items():
            speaker, path = speakers.get(key, ""), find_path(source, wavs.get(key, "missing"))
            age, sex = int(ages.get(speaker, 0)), SEXES.get(sexes.get(speaker), "")
            if part == "train":
                split = "val" if speaker in held_out else "train"
            else:
                split = "test_adults" if age >= 18 else "test_children"
            labels = {"split": split, "speaker": speaker, "sex": sex, "age": age}
            yield Clip(f"{source}/{part}/text", key, path, words, labels)


def read_common_voice(source):
    path = Path(source, "validated.tsv")
    rows = csv.DictReader(read_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE)
    for n, row in enumerate(rows, 2):
        where = f"{path}:{n}"
        if not all(row.get(name) for name in ("client_id", "path", "sentence")):
            yield Clip(where, "", error="it has no client_id, path or sentence")
            continue
        speaker, name = row["client_id"][:16], row["path"]
        labels = {"split": draw_split(speaker), "speaker": speaker, "sex": row.get("gender", "")}
        recording = find_path(f"{source}/clips", name)
        yield Clip(where, clean_key(Path(name).stem), recording, row["sentence"], labels)


def read_aishell(source):
    said = {key: words for _, key, words in read_pairs(Path(source, AISHELL))}
    for path in sorted(Path(source, "wav").glob("*/*/*.wav")):
        split, speaker = path.parts[-3:-1]
        words = said.get(path.stem, "")
        labels = {"split": SPLITS.get(split, split), "speaker": speaker}
        error = "" if words else f"{AISHELL} has no line for it"  # a few have none
        yield Clip(str(path), path.stem, str(path), words, labels, error)


def read_ljspeech(source):
    path = Path(source, "metadata.csv")
    for n, line in enumerate(read_lines(path), 1):
        key, *texts = line.split("|")
        recording = find_path(f"{source}/wavs", f"{key}.wav")
        labels = {"split": draw_split(key), "speaker": ""}
        text = next(filter(None, reversed(texts)), "")
        yield Clip(f"{path}:{n}", clean_key(key), recording, text, labels)


# ---- a game

def read_queen(source):
    game = Path(source, "queen.1c")
    try:
        files, lines = queen_lines(game.read_bytes())
    except (LookupError, ValueError, error):
        raise ValueError(f"{game} is cut short or not Debian's") from None
    folder, labels = Path(source, "clips"), {"split": "train", "speaker": ""}
    folder.mkdir(exist_ok=True)
    for stem, line in lines:
        for i, text in enumerate(re.split(r"\*..", line), 1):  # '*' and a code end a clip
            key = f"{stem}{i:X}"
            if sound := files.pop(f"{key}.SB", b""):
                path = folder / f"{key}.mp3"
                path.write_bytes(sound)
                yield Clip(str(game), key, str(path), text.strip(), labels)


def queen_lines(data):
    """Return ({file name: bytes}, [(key, text), ...]) of the archive."""
    files = {}
    for name, at, size in iter_unpack(">12sxII", data[15:15 + 21 * unpack_from(">H", data, 13)[0]]):
        files[name.decode().strip("\0")] = data[at:at + size]
    jas = files["QUEEN.JAS"][20:]
    n_rooms, n_things, n, n_notes = unpack_from(">4H", jas)
    kinds = [kind for *_, kind in iter_unpack(">8h", jas[8:8 + 16 * n])]
    kinds = [-3, *kinds, 0, 0, 0, -3]  # hero, things and people, narrators, hero
    texts = files["QUEEN2.JAS"].decode("cp437").splitlines()
    texts = texts[n_notes + n_things + n_rooms + 12:][:40] + texts[:n_notes]
    lines = [(f"JOE{i:04}", text) for i, text in enumerate(texts, 1)]
    for name, file in files.items():
        if name.endswith(".CUT"):
            lines += queen_scene(name[:-4], file[20:], kinds)
        elif name.endswith(".DOG"):
            lines += queen_dialogue(file[20:])
    return files, lines


def queen_string(data, at, align=2):
    """Return the string at a place, and the place after it."""
    end = at + 1 + data[at]
    return data[at + 1:end].decode("cp437"), end + (data[at] and -end % align)


def queen_scene(stem, data, kinds):
    """Yield (key, text) of a .CUT file."""
    count, _, _, texts = unpack_from(">4h", data, 2)
    texts, at = queen_string(data, texts)[1], 12
    for i in range(abs(count)):
        which, *how, people = unpack_from(">18h", data, at)
        at += 36 + 2 * people
        text, texts = queen_string(data, texts)
        yield f"{stem:_<5}{i + 1:02}", text
        if how[11] < 1 and how[4] and (how[3] or kinds[which] not in (-3, -4)):
            while unpack_from(">h", data, at)[0] != -2:  # moves
                at += 20
            at += 2


def queen_dialogue(data):
    """Yield (key, text) of a .DOG file."""
    levels, _, talk, n_joe, n = unpack_from(">5h", data)
    at, _, again = unpack_from(">3H", data, 22)
    joe = 32 + abs(levels) * 96
    yield f"{talk:02}SSSSJ", queen_string(data, joe + 4)[0]
    for side, at, n in ("P", at, n), ("J", joe, n_joe):
        text, again = queen_string(data, again)
        yield f"{talk:02}XXXX{side}", text
        for _ in range(n):
            key = unpack_from(">H", data, at + 2)[0]
            text, at = queen_string(data, at + 4, 4)
            yield f"{talk:02}{key:04X}{side}", text
