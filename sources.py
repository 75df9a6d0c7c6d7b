"""Real recordings that questions can be made from: where they are published, under which licence, and their labels.

Nothing is downloaded here: list_clips reads folders that you have, whole or in part, however nested, as wav, flac, ogg,
mp3 or what else is read. Labels come from file names and the publishers' lists alone, in the words of questions.txt.
"""
import csv
import re
import zlib
from pathlib import Path

from files import AUDIO_SUFFIXES, find_files, read_lines, read_pairs

# checksum: of the archive at the address, or what to check out of the git repository there
SOURCES = {
    "ravdess": {"address": "https://zenodo.org/records/1188976/files/Audio_Speech_Actors_01-24.zip",
                "checksum": "md5:bc696df654c87fed845eb13823edef8a",  # speech only: 1,440 clips of 24 actors
                "licence": "CC-BY-NC-SA-4.0", "is_free": False, "folder": "data/RAVDESS"},
    "crema_d": {"address": "https://github.com/CheyneyComputerScience/CREMA-D",  # git lfs brings the audio
                "checksum": "commit:1658cd342dff90010aa843eaeebd53610a08b1dc",  # 7,442 clips of 91 actors
                "licence": "ODbL-1.0 AND LicenseRef-DbCL-1.0", "is_free": True, "folder": "data/CREMA-D"},
    "esc50": {"address": "https://github.com/karolpiczak/ESC-50",
              "checksum": "commit:33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6",  # 2,000 sounds of 5 s
              "licence": "CC-BY-NC-3.0", "is_free": False, "folder": "data/ESC-50"},  # ESC-10, 400 of them: CC-BY-3.0
    "fsdd": {"address": "https://github.com/Jakobovski/free-spoken-digit-dataset",
             "checksum": "tag:v1.0.10",  # 3,000 digits of 6 men
             "licence": "CC-BY-SA-4.0", "is_free": True, "folder": "data/free-spoken-digit-dataset"},
    "speech_commands": {  # version 2 (Warden, arXiv:1804.03209): 105,829 words
        "address": "https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
        "checksum": "sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
        "licence": "CC-BY-4.0", "is_free": True, "folder": "data/speech_commands"},
    "speechocean762": {"address": "https://github.com/jimbozhang/speechocean762",  # arXiv:2104.01378
                       "checksum": "commit:613968e3b0b789fc33936fb5eba1973176ba7d11",  # 5,000 clips of 250 people
                       "licence": "CC-BY-4.0", "is_free": True, "folder": "data/speechocean762"},
    "librispeech": {"address": "https://www.openslr.org/resources/12/dev-clean.tar.gz",
                    "checksum": "md5:42e2234ba48799c1f50f24a7926300a1",  # prepare_librispeech.py has the other subsets'
                    "licence": "CC-BY-4.0", "is_free": True, "folder": "data/LibriSpeech"}}
LAYOUTS = {  # a file's name without its ending, after its folder's where there is a /, and the same in words
    "ravdess": (r"03-01-(0[1-8])-0[12]-(0[12])-0[12]-(0[1-9]|1\d|2[0-4])", "Actor_12/03-01-06-01-02-01-12.wav"),
    "crema_d": (r"(\d{4})_([A-Z]{3})_(ANG|DIS|FEA|HAP|NEU|SAD)_[A-Z]+", "AudioWAV/1001_DFA_ANG_XX.wav"),
    "esc50": (r"([1-5])-(\d+)-[A-Z]+-([1-4]?\d)", "audio/1-100032-A-0.wav"),
    "fsdd": (r"(\d)_([a-zA-Z]+)_\d+", "recordings/7_jackson_32.wav"),
    "speech_commands": (r"([a-z]+)/([0-9a-f]+)_nohash_\d+", "yes/0a7c2a8d_nohash_0.wav"),
    "speechocean762": (r"\d{9}", "WAVE/SPEAKER0001/000010011.WAV, with train/utt2spk and test/utt2spk"),
    "librispeech": (r"(\d+)-\d+-\d+", "dev-clean/84/121123/84-121123-0000.flac, with 84-121123.trans.txt")}
DIGITS = "zero one two three four five six seven eight nine".split()
COMMANDS = "yes no stop go left right up down".split()
EMOTIONS = "neutral calm happy sad angry afraid disgusted surprised".split()  # RAVDESS's 01 to 08
RAVDESS_TEXT = ("kids are talking by the door", "dogs are sitting by the door")
CREMA_D = {"ANG": "angry", "DIS": "disgusted", "FEA": "afraid", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
CREMA_D_TEXT = {  # this and the next line: its README
    "IEO": "it's eleven o'clock", "TIE": "that is exactly what happened", "IOM": "i'm on my way to the meeting",
    "IWW": "i wonder what this is about", "TAI": "the airplane is almost full", "MTI": "maybe tomorrow it will be cold",
    "IWL": "i would like a new alarm clock", "ITH": "i think i have a doctor's appointment",
    "DFA": "don't forget a jacket", "ITS": "i think i've seen this before", "TSI": "the surface is slick",
    "WSI": "we'll stop in a couple of minutes"}
CREMA_D_BAD = ("1076_MTI_NEU_XX", "1076_MTI_SAD_XX", "1064_TIE_SAD_XX", "1064_IEO_DIS_MD")  # empty, or of all emotions
ESC50 = """dog,rooster,pig,cow,frog,cat,hen,insects,sheep,crow,rain,sea waves,crackling fire,crickets,chirping birds,
water drops,wind,pouring water,toilet flush,thunderstorm,crying baby,sneezing,clapping,breathing,coughing,footsteps,
laughing,brushing teeth,snoring,drinking sipping,door wood knock,mouse click,keyboard typing,door wood creaks,
can opening,washing machine,vacuum cleaner,clock alarm,clock tick,glass breaking,helicopter,chainsaw,siren,car horn,
engine,train,church bells,airplane,fireworks,hand saw""".replace("\n", "").split(",")  # in the order of its targets
FSDD_MEN = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")  # its metadata.py


def list_clips(name, folder):
    """The clips of a set below folder -> [{"path", "speaker", "split": train or test, "text": "" where none is known,
    "labels": {task: answer}}], sorted by path, a speaker in one split. ValueError: unknown name, or no clip there."""
    if name not in SOURCES:
        raise ValueError(f"{name} is none of the sets {', '.join(SOURCES)}")
    root, (pattern, layout) = Path(folder), LAYOUTS[name]
    audio, n_pointers = find_audio(root, pattern)
    rows = [{"path": str(path), "speaker": speaker, "split": "test" if is_test else "train", "text": text,
             "labels": labels} for path, speaker, is_test, text, labels in globals()["list_" + name](root, audio)]
    if not rows:
        raise ValueError(f"{folder}: no clip of {name} there: expected {layout}, from {SOURCES[name]['address']}"
                         + (f"; {n_pointers} files are Git LFS pointers: run git lfs pull" if n_pointers else ""))
    held_out = {row["speaker"] for row in rows if row["split"] == "test"}
    for row in rows:  # two recordings of ESC-50 are in fold 4 and in fold 5
        row["split"] = "test" if row["speaker"] in held_out else "train"
    return sorted(rows, key=lambda row: row["path"])


def find_audio(root, pattern):
    """-> ([(Path, re.Match of pattern)] of the audio below root, each clip once, and how many are Git LFS pointers)."""
    clips, n_pointers = {}, 0
    paths = map(Path, find_files(root, AUDIO_SUFFIXES))
    for path in sorted(paths, key=lambda path: (AUDIO_SUFFIXES.index(path.suffix.lower()), str(path))):
        found = re.fullmatch(pattern, f"{path.parent.name}/{path.stem}" if "/" in pattern else path.stem)
        if not found or found[0] in clips or not path.is_file():
            continue
        if 0 < path.stat().st_size < 200 and path.read_bytes().startswith(b"version https://git-lfs"):
            n_pointers += 1
        else:
            clips[found[0]] = path, found
    return list(clips.values()), n_pointers


def read_list(root, name):
    """The lines of the first file called name, in any case, below root or beside it; [] where there is none."""
    found = [path for path in map(Path, find_files(root, (name.lower(),))) if path.name.lower() == name.lower()]
    path = next(iter(found), root.resolve().parent / name)
    return list(read_lines(path, "replace")) if path.is_file() else []


def read_table(path):
    """-> {first word: the rest} of the lines of a text file, {} where it is missing."""
    return {key: rest for _, key, rest in read_pairs(path)} if path.is_file() else {}


def sex_of(word):
    """Male, M, m, Female, F, f -> {"sex": answer}; {} for any other word."""
    answer = {"m": "a man", "f": "a woman"}.get(word.strip()[:1].lower())
    return {"sex": answer} if answer else {}


def in_fifth(speaker):
    """True for a fifth of all names of speakers, always the same ones."""
    return zlib.crc32(speaker.encode()) % 5 == 0


# ---- the sets: generators of (path, speaker, is_test, text, labels) from root and find_audio's clips

def list_ravdess(root, audio):
    for path, found in audio:
        emotion, statement, actor = map(int, found.groups())
        labels = {"emotion": EMOTIONS[emotion - 1]} | sex_of("fm"[actor % 2])
        yield path, found[3], actor > 20, RAVDESS_TEXT[statement - 1], labels


def list_crema_d(root, audio):
    people = csv.DictReader(read_list(root, "VideoDemographics.csv"))
    sexes = {row.get("ActorID"): row.get("Sex") or "" for row in people}
    for path, found in audio:
        if path.stem not in CREMA_D_BAD:
            labels = {"emotion": CREMA_D[found[3]]} | sex_of(sexes.get(found[1], ""))
            yield path, found[1], in_fifth(found[1]), CREMA_D_TEXT.get(found[2], ""), labels


def list_esc50(root, audio):  # in the speaker's place: the recording on Freesound that a clip was cut from
    names = {row.get("filename"): row.get("category") for row in csv.DictReader(read_list(root, "esc50.csv"))}
    for path, found in audio:
        event = names.get(path.stem + ".wav") or ESC50[int(found[3])]
        yield path, found[2], found[1] == "5", "", {"event": event.replace("_", " ")}


def list_fsdd(root, audio):
    for path, found in audio:
        word, speaker = DIGITS[int(found[1])], found[2].lower()
        yield path, speaker, speaker == "theo", word, {"digit": word} | sex_of("m" if speaker in FSDD_MEN else "")


def list_speech_commands(root, audio):  # words that are neither digit nor command have text and no labels
    listed = {Path(line).name.partition("_")[0] for line in read_list(root, "testing_list.txt")} - {""}
    for path, found in audio:
        word, speaker = found.groups()
        labels = {task: word for task, words in (("command", COMMANDS), ("digit", DIGITS)) if word in words}
        yield path, speaker, speaker in listed if listed else in_fifth(speaker), word, labels


def list_speechocean762(root, audio):  # a child is neither a man nor a woman; nobody is 16 to 18
    paths = {path.stem: path for path, _ in audio}
    for part in sorted(path.parent for path in root.rglob("utt2spk")):
        texts, sexes, ages = (read_table(part / name) for name in ("text", "spk2gender", "spk2age"))
        for key, speaker in read_table(part / "utt2spk").items():
            years = int(ages[speaker]) if ages.get(speaker, "").isdigit() else None
            labels = {} if years is None else {"age": "a child" if years < 18 else "an adult"}
            labels |= sex_of(sexes.get(speaker, "")) if (years or 0) >= 18 else {}
            if key in paths:
                yield paths.pop(key), speaker, part.name == "test", texts.get(key, "").lower(), labels


def list_librispeech(root, audio):  # of dev-*, or where the subset's name is lost, a fifth of the speakers is test
    texts = {}
    for path in find_files(root, (".trans.txt",)):
        texts |= read_table(Path(path))
    sexes = dict(re.findall(r"(?m)^(\d+)\s*\|\s*([MF])\b", "\n".join(read_list(root, "SPEAKERS.TXT"))))
    for path, found in audio:
        subset = re.search(r"/(train|test)-(?:clean|other)", path.resolve().as_posix())
        is_test = subset[1] == "test" if subset else in_fifth(found[1])
        yield path, found[1], is_test, texts.get(path.stem, "").lower(), sex_of(sexes.get(found[1], ""))
