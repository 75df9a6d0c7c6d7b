import re
from pathlib import Path

import pytest

from sources import LAYOUTS, SOURCES, list_clips

FILES = {  # of each set, tiny: {path: text, '' for audio}; nested deeper than published
    "ravdess": {f"copy/Actor_{a:02d}/03-01-{e:02d}-01-{s:02d}-01-{a:02d}.wav": ""
                for a in (1, 12, 21, 22) for e in range(1, 9) for s in (1, 2)}
    | {"copy/Actor_01/03-02-01-01-01-01-01.wav": "", "copy/Actor_01/01-01-01-01-01-01-01.wav": ""},  # song, video
    "crema_d": {f"AudioWAV/{n}_DFA_{e}_XX.wav": "" for n in range(1001, 1021) for e in ("ANG", "NEU")}
    | {"AudioMP3/1001_DFA_ANG_XX.mp3": "", "AudioWAV/1076_MTI_SAD_XX.wav": "",
       "VideoDemographics.csv": '"ActorID","Age","Sex","Race"\n1001,51,"Male","x"\n1002,21,"Female","x"\n'},
    "esc50": {f"ESC-50/audio/{name}.wav": "" for name in
              ("1-100032-A-0", "2-100210-B-36", "4-234879-A-6", "5-234879-A-1", "5-9032-A-0", "5-1-A-49", "5-1-A-50")},
    "fsdd": {f"recordings/{d}_{who}_{i}.wav": "" for d in range(10) for who in ("jackson", "theo", "anna")
             for i in (0, 32)},
    "speech_commands": {f"{word}/{speaker:08x}_nohash_0.wav": "" for word in ("yes", "seven", "bird")
                        for speaker in range(20)} | {"_background_noise_/pink_noise.wav": ""},
    "speechocean762": {"WAVE/SPEAKER0001/000010011.WAV": "", "WAVE/SPEAKER0002/000020011.WAV": "",
                       "WAVE/SPEAKER0003/000030011.WAV": "", "WAVE/SPEAKER0004/000040011.WAV": ""} | {
        f"{part}/{name}": text for part, (a, b) in {"train": "12", "test": "34"}.items() for name, text in {
            "utt2spk": f"0000{a}0011 000{a}\n0000{b}0011 000{b}\n0000{b}0099 000{b}\n",
            "text": f"0000{a}0011\tWE CALL IT BEAR\n0000{b}0011\tA B\n",
            "spk2gender": f"000{a}\tm\n000{b}\tf\n", "spk2age": f"000{a} 12\n000{b} 18\n"}.items()},
    "librispeech": {f"LibriSpeech/{subset}/{speaker}/7/{speaker}-7-0000.flac": "" for subset, speakers in
                    {"dev-clean": range(80, 100), "train-clean-100": [19], "test-other": [367]}.items()
                    for speaker in speakers} | {
       "LibriSpeech/train-clean-100/19/7/19-7.trans.txt": "19-7-0000 NORTHANGER ABBEY\n19-7-0001 GONE\n",
       "LibriSpeech/SPEAKERS.TXT": ";ID |SEX|\n19 | F | train-clean-100 | 25 | K\n367 | M | test-other | 8 | M F\n"}}


def write(root, files):
    """Make the files {path: text} below root."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


def by_name(name, root):
    """The clips of a set, by the names of their files."""
    return {Path(row["path"]).name: row for row in list_clips(name, str(root))}


def splits(rows):
    """-> (speakers of train, of test)."""
    return [{row["speaker"] for row in rows if row["split"] == split} for split in ("train", "test")]


@pytest.mark.parametrize("name", SOURCES)
def test_rows_are_whole_sorted_and_split_by_speaker(name, tmp_path):
    """A missing field, an unsorted list, or a speaker in both splits would spoil what is made from it."""
    rows = list_clips(name, write(tmp_path, FILES[name]))
    assert rows == list_clips(name, str(tmp_path)) == sorted(rows, key=lambda row: row["path"])
    train, test = splits(rows)
    assert train and test and not train & test
    for row in rows:
        assert list(row) == ["path", "speaker", "split", "text", "labels"] and Path(row["path"]).is_file()
        said = [*row["labels"], *row["labels"].values(), row["text"]]
        assert all(isinstance(x, str) and x == x.lower() for x in said)


@pytest.mark.parametrize("name", SOURCES)
def test_a_folder_without_the_set_is_one_line(name, tmp_path):
    """An empty, missing or other folder must be named, with what is expected and where it is from."""
    write(tmp_path / "other", {"a/talk.wav": "", "utt2spk": "x y\n"})
    for folder in (tmp_path / "other", tmp_path / "missing"):
        with pytest.raises(ValueError) as e:
            list_clips(name, str(folder))
        text = str(e.value)
        assert "\n" not in text and text.startswith(str(folder)) and LAYOUTS[name][1] in text
        assert SOURCES[name]["address"] in text and "LFS" not in text


def test_an_unknown_set_is_refused(tmp_path):
    """A wrong name must not end in a KeyError."""
    with pytest.raises(ValueError, match="timit is none of the sets ravdess, "):
        list_clips("timit", str(tmp_path))


def test_the_table_is_complete():
    """A licence or address that is missing, or a checksum of another form, would mislead whoever downloads."""
    for row in SOURCES.values():
        assert set(row) == {"address", "licence", "is_free", "checksum", "folder"}
        assert row["address"].startswith("https://") and row["folder"].startswith("data/")
        assert row["is_free"] == ("-NC" not in row["licence"])
        assert re.fullmatch(r"|md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|commit:[0-9a-f]{40}|tag:\S+", row["checksum"])


def test_ravdess(tmp_path):
    """The third field is the emotion, the last the actor, odd for men; song, and video, are left out."""
    clips = by_name("ravdess", write(tmp_path, FILES["ravdess"]))
    assert len(clips) == 64 and {row["labels"]["emotion"] for row in clips.values()} == {
        "neutral", "calm", "happy", "sad", "angry", "afraid", "disgusted", "surprised"}
    row = clips["03-01-06-01-02-01-12.wav"]
    assert row["labels"] == {"emotion": "afraid", "sex": "a woman"} and row["text"] == "dogs are sitting by the door"
    assert clips["03-01-08-01-01-01-01.wav"]["labels"] == {"emotion": "surprised", "sex": "a man"}
    assert splits(clips.values()) == [{"01", "12"}, {"21", "22"}]
    write(tmp_path, {"Actor_12/03-01-06-01-02-01-12.wav": ""})  # Kaggle's copy holds all twice
    assert len(list_clips("ravdess", tmp_path)) == 64


def test_crema_d(tmp_path):
    """Sexes come from the csv where it is; a bad clip, and the mp3 beside a wav, are left out."""
    clips = by_name("crema_d", write(tmp_path, FILES["crema_d"]))
    assert len(clips) == 40 and clips["1001_DFA_ANG_XX.wav"]["labels"] == {"emotion": "angry", "sex": "a man"}
    assert clips["1002_DFA_NEU_XX.wav"]["labels"] == {"emotion": "neutral", "sex": "a woman"}
    assert clips["1003_DFA_NEU_XX.wav"]["labels"] == {"emotion": "neutral"}
    assert clips["1003_DFA_NEU_XX.wav"]["text"] == "don't forget a jacket"
    assert by_name("crema_d", tmp_path / "AudioWAV") == clips  # the csv is beside the folder
    (tmp_path / "VideoDemographics.csv").unlink()
    assert by_name("crema_d", tmp_path)["1001_DFA_ANG_XX.wav"]["labels"] == {"emotion": "angry"}


def test_pointers_of_git_lfs_are_no_clips(tmp_path):
    """CREMA-D cloned without git lfs is 7,442 texts called .wav: the line must say what to do."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 72862\n"
    write(tmp_path, {"AudioWAV/1001_DFA_ANG_XX.wav": pointer})
    with pytest.raises(ValueError, match="1 files are Git LFS pointers: run git lfs pull"):
        list_clips("crema_d", tmp_path)
    write(tmp_path, {"AudioMP3/1001_DFA_ANG_XX.mp3": ""})
    assert list(by_name("crema_d", tmp_path)) == ["1001_DFA_ANG_XX.mp3"]


def test_esc50(tmp_path):
    """Without the csv the target names the class; a recording of folds 4 and 5 is test, as test must be unheard."""
    clips = by_name("esc50", write(tmp_path, FILES["esc50"]))
    events = {name: row["labels"]["event"] for name, row in clips.items()}
    assert events == {"1-100032-A-0.wav": "dog", "2-100210-B-36.wav": "vacuum cleaner", "4-234879-A-6.wav": "hen",
                      "5-234879-A-1.wav": "rooster", "5-9032-A-0.wav": "dog", "5-1-A-49.wav": "hand saw"}
    assert splits(clips.values()) == [{"100032", "100210"}, {"234879", "9032", "1"}]
    write(tmp_path, {"meta/esc50.csv": "filename,fold,target,category\n1-100032-A-0.wav,1,0,big_dog\n"})
    events |= {"1-100032-A-0.wav": "big dog"}
    assert {name: row["labels"]["event"] for name, row in by_name("esc50", tmp_path).items()} == events


def test_fsdd(tmp_path):
    """The first field is the digit; one speaker is held out; speakers that metadata.py lacks have no sex."""
    clips = by_name("fsdd", write(tmp_path, FILES["fsdd"]))
    assert clips["7_jackson_32.wav"]["labels"] == {"digit": "seven", "sex": "a man"}
    assert clips["0_anna_0.wav"]["labels"] == {"digit": "zero"} and clips["0_anna_0.wav"]["text"] == "zero"
    assert splits(clips.values()) == [{"jackson", "anna"}, {"theo"}]


def test_speech_commands(tmp_path):
    """Commands and digits have labels, other words text alone; testing_list.txt decides where it is."""
    rows = list_clips("speech_commands", write(tmp_path / "x", FILES["speech_commands"]))
    assert len(rows) == 60 and {(row["text"], *row["labels"].items()) for row in rows} == {
        ("yes", ("command", "yes")), ("seven", ("digit", "seven")), ("bird",)}
    write(tmp_path / "x", {"testing_list.txt": "yes/00000003_nohash_1.wav\n\nbird/00000005_nohash_0.wav\n"})
    assert splits(list_clips("speech_commands", tmp_path))[1] == {"00000003", "00000005"}


def test_speechocean762(tmp_path):
    """Children have no sex; a line without audio, and audio without a line, are no clips."""
    files = FILES["speechocean762"] | {"WAVE/SPEAKER0009/000090011.WAV": ""}
    clips = by_name("speechocean762", write(tmp_path / "deep" / "er", files).parent)
    assert [row["labels"] for row in clips.values()] == 2 * [{"age": "a child"}, {"age": "an adult", "sex": "a woman"}]
    assert clips["000010011.WAV"]["text"] == "we call it bear" and splits(clips.values())[1] == {"0003", "0004"}
    (tmp_path / "deep/er/train/spk2age").unlink()
    assert by_name("speechocean762", tmp_path)["000010011.WAV"]["labels"] == {}  # a child, perhaps
    with pytest.raises(ValueError, match="utt2spk"):
        list_clips("speechocean762", tmp_path / "deep/er/WAVE")


def test_librispeech(tmp_path):
    """Subsets train and test are what they are called; sexes come from SPEAKERS.TXT, below the folder or beside it."""
    clips = by_name("librispeech", write(tmp_path, FILES["librispeech"]))
    assert clips["19-7-0000.flac"] == {
        "path": str(tmp_path / "LibriSpeech/train-clean-100/19/7/19-7-0000.flac"), "speaker": "19", "split": "train",
        "text": "northanger abbey", "labels": {"sex": "a woman"}}
    assert clips["367-7-0000.flac"]["split"] == "test" and clips["367-7-0000.flac"]["labels"] == {"sex": "a man"}
    assert 0 < sum(row["split"] == "test" for row in clips.values()) - 1 < 10  # a part of dev-clean's 20
    part = by_name("librispeech", tmp_path / "LibriSpeech/train-clean-100")
    assert part == {"19-7-0000.flac": clips["19-7-0000.flac"]}


@pytest.mark.parametrize("name", SOURCES)
def test_a_part_of_a_set_is_split_as_the_whole(name, tmp_path):
    """A clip must not change its split because other files are missing."""
    whole = by_name(name, write(tmp_path / "whole", FILES[name]))
    half = dict(pair for i, pair in enumerate(FILES[name].items()) if pair[1] or i % 2)
    half = {path: text for path, text in half.items() if "234879" not in path}  # of two folds
    part = by_name(name, write(tmp_path / "part", half))
    assert 0 < len(part) < len(whole) and all(whole[key]["split"] == row["split"] for key, row in part.items())
