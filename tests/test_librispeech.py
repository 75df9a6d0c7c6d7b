"""prepare_librispeech.py's real command line on a small corpus made here, with a tiny encoder."""
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import data
from audio import encode, load_encoder
from commands import ROOT, raises, read_rows, write_file, write_rows
from data import Features
from drill import make_audio
from recordings import read_audio
from test_eval import make_speech
from test_train import write_encoder

SCRIPT = f"{ROOT}/prepare_librispeech.py"


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """A corpus of 12 + 4 + 4 clips of 0.4 to 0.9 s, and two encoders of 2 layers, 32 wide."""
    folder = tmp_path_factory.mktemp("corpus")
    for chapter, (subset, n) in enumerate((("train", 6), ("dev", 2), ("test", 2))):
        for speaker in (10, 11):
            texts = [f"THAT'S NUMBER {letter}" for letter in "ABCDEF"[:n]]
            make_speech(folder / f"speech/{subset}-tiny", texts, speaker, speaker, chapter)
    labels = {"key": "10-0-0000", "pitch": 1.5, "text": "OTHER", "sex": "female"}
    write_rows(folder / "speech/labels.jsonl", [labels])
    torch.manual_seed(0)
    for i in (0, 1):
        write_encoder(folder / f"encoder{i}.pt", name=f"random{i}", n_layer=2)
    return folder


@pytest.fixture
def prepare(originals, tmp_path, capfd, monkeypatch):
    """prepare(*settings, code=0) runs the script in a fork of this process -> out, err."""
    shutil.copytree(originals / "speech", tmp_path / "speech")
    command = [SCRIPT, f"--source={tmp_path}/speech", f"--whisper={originals}/encoder0.pt",
               "--clips_per_shard=4", "--workers=1", "--seen_voices=True"]

    def run(*settings, code=0):
        monkeypatch.setattr(sys, "argv", [*command, *settings])
        capfd.readouterr()
        process = get_context("fork").Process(target=runpy.run_path, args=(SCRIPT,),
                                              kwargs={"run_name": "__main__"})
        process.start()
        process.join()
        said = capfd.readouterr()
        assert process.exitcode == code, said.err
        return said

    run.command, run.speech = [sys.executable, *command], tmp_path / "speech"
    run.out, run.train = run.speech / "features", run.speech / "train-tiny/10/0"
    return run


def files_of(folder):
    """{name: bytes} of the shards of a folder of features; it holds nothing but features."""
    names = set(os.listdir(folder))
    tars = {name for name in names if name.endswith(".tar")}
    lists = {f"{split}.jsonl" for split in Features(str(folder)).manifest["clips"]}
    rest = lists | {"index.json", "manifest.json", "meta.json", "begun.json"}
    assert names == tars | {name[:-4] + ".json" for name in tars} | rest
    return {name: (folder / name).read_bytes() for name in sorted(tars)}


def assert_fails(prepare, settings, *words):
    """One clear line on stderr, exit code 2."""
    err = prepare(*settings, code=2).err
    line = err.strip().splitlines()[-1]
    assert line.startswith("prepare_librispeech.py: ") and "Traceback" not in err, err
    assert all(word in line for word in words), err


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_command_line(prepare, originals, start):
    """Broken: features or labels are not serving's, or a spawned worker runs the script again."""
    done = subprocess.run([*prepare.command, "--workers=2"], capture_output=True, text=True,
                          env=os.environ | {"NANOCHAT_OMNI_START": start})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("setting source") == 1 and done.stdout.count(": val 4 clips") == 1
    encoder = load_encoder(str(originals / "encoder0.pt"))
    features = Features(str(prepare.out), "train", encoder.sha256, (0, -1))
    assert (np.diff(features.lengths) >= 0).all() and len(files_of(prepare.out)) == 5
    for i, info in enumerate(features.infos):  # as encode makes them of each clip alone
        wav = read_audio(str(next(prepare.speech.glob(f"*/*/*/{info['key']}.*"))))
        alone = encode(encoder, [wav], (0, -1))[0].astype(np.float32)
        x = features[i][0].astype(np.float32)
        assert x.shape == alone.shape and np.abs(x - alone).max() < 0.02 * np.abs(alone).max()
        assert abs(info["seconds"] - len(wav) / 16000) < 1e-3
    first = features.infos[features.keys.index("10-0-0000")]
    assert first["text"] == "that's number a" and first["pitch"] == 1.5 and first["sex"] == "female"
    manifest = features.manifest
    assert manifest["clips"] == {"train": 12, "val": 4, "test": 4} and not manifest["failures"]
    rows = read_rows(prepare.out / "train.jsonl")
    assert {row["text"] for row in rows} == set(features.texts) and len(rows) == 12
    assert all((prepare.out / row["audio"]).exists() for row in [*rows, *features.rows])


def test_runs_again(prepare, originals):
    """Broken: whole features are made again, or kept though encoder, taps or clips are others."""
    prepare()
    first = files_of(prepare.out)
    assert "up to date" in prepare("--workers=2").out
    os.truncate(prepare.out / "shard-000002.tar", 2000)
    prepare()
    assert files_of(prepare.out) == first
    prepare("--clips_per_shard=8", "--taps=0", f"--whisper={originals}/encoder1.pt")
    assert len(files_of(prepare.out)) == 4
    assert Features(str(prepare.out)).manifest["encoder"] == "random1"
    os.remove(prepare.train / "10-0-0000.flac")
    os.truncate(prepare.train / "10-0.trans.txt", 0)
    assert_fails(prepare, [], "5 of 19 clips")


def test_goes_on_after_kill(prepare, monkeypatch):
    """Broken: kill -9 leaves half a shard or loses whole ones, or other settings' stay."""
    prepare(f"--out_dir={prepare.speech}/straight")
    written, write = [], data.write_shard

    def die(path, clips):
        written.append(path)
        if len(written) == 3:
            Path(path + ".tmp").write_text("half")
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(9)
        return write(path, clips)

    for taps, to_do in (("--taps=0", "5 of 5 shards"), ("--taps=0,-1", "4 of 5 shards")):
        with monkeypatch.context() as patch:
            patch.setattr(data, "write_shard", die)
            prepare(code=-signal.SIGKILL)
        assert (prepare.out / "shard-000004.tar").exists()
        raises("no whole manifest", Features, str(prepare.out))
        os.truncate(prepare.out / "shard-000004.tar", 2000)
        assert to_do in prepare(taps).out
    assert files_of(prepare.out) == files_of(prepare.speech / "straight")


def test_failed_clips_are_counted(prepare):
    """Broken: a clip that can't be used stops a whole corpus, or vanishes without a word."""
    cut = next(prepare.train.glob("*.flac")).read_bytes()[:3000]  # its header is whole
    for name, data in (("a.wav", make_audio(0.5, 1)), ("long.wav", make_audio(31, 1)),
                       ("cut.flac", cut)):
        (prepare.speech / name).write_bytes(data)
    rows = [{"audio": "a.wav", "key": f"k{i}", "text": "some words"} for i in range(200)]
    rows += [{"audio": "cut.flac", "text": "a"}, {"audio": "long.wav", "text": "b"},
             {"audio": "a.wav", "key": "other", "text": "你好"}]
    source = "--source=" + write_rows(prepare.speech / "list.jsonl", rows)
    prepare(source, "--clips_per_shard=100")
    manifest = Features(str(prepare.out)).manifest
    assert [f["key"] for f in manifest["failures"]] == ["cut"]
    assert sum(manifest["clips"].values()) == 200 and manifest["counts"]["too long"] == 1
    assert manifest["counts"]["dropped: letters of another script"] == 1
    rows = [rows[0] | {"text": "你 好，5。"}, rows[1], rows[2] | {"language": "en"}]
    write_rows(prepare.speech / "list.jsonl", rows)
    prepare(source, "--language=ja", f"--out_dir={prepare.speech}/ja")
    features = Features(f"{prepare.speech}/ja,{prepare.out}")
    assert features.texts[:2] == ["你好5", "some words"] and features.manifest["language"] == "ja"
    assert list(features.manifest["counts"].values()) == [1, 1]  # digits; another script
    assert_fails(prepare, [source, "--language=cn"], "language=cn", "zh")
    key = next(prepare.train.glob("*.flac"))
    for content in (b"", cut):  # a worker finds out the latter
        key.write_bytes(content)
        other = [f"--out_dir={prepare.speech}/other"]
        assert_fails(prepare, other, "1 of 20 clips failed", key.name)
    assert not (prepare.speech / "other/manifest.json").exists()


def test_full_disk_and_dead_workers(prepare, monkeypatch):
    """Broken: a killed worker is waited for for ever, or a full disk is not told."""
    def full(path, clips):
        raise OSError(28, "No space left on device", path)

    for broken, words in ((lambda *_: os.kill(os.getpid(), signal.SIGKILL), ("killed", "memory")),
                          (full, ("No space left", "shard-"))):
        monkeypatch.setattr(data, "write_shard", broken)
        assert_fails(prepare, ["--taps=0"], *words)


def test_bad_input(prepare, tmp_path):
    """Broken: a mistake ends in a traceback, or after an hour of work."""
    write_file(tmp_path / "foreign/shard-000000.tar", "somebody's audio")
    for setting, *words in (
            ("--source=nowhere", "nowhere", "no such folder"), ("--taps=last", "taps=last"),
            ("--workers=-1", "workers"), ("--min_words=9", "no clip"), ("--taps=2", "-1 to 1"),
            ("--copies=-1", "copies 0 or more"),
            (f"--out_dir={tmp_path}/foreign", "foreign", "out_dir"),
            ("--seen_voices=False", "16 of 20", "speaker 10 is in val too")):
        assert_fails(prepare, [setting], *words)
    own = f"--source={tmp_path}/train.jsonl", f"--out_dir={tmp_path}"
    assert_fails(prepare, own, "train.jsonl", "another out_dir")
    assert os.listdir(tmp_path / "foreign") == ["shard-000000.tar"]


def test_own_clips(prepare, tmp_path):
    """Broken: own clips are not read, settings choose others, or copies are missing or alike."""
    soundfile.write(tmp_path / "a.ogg", np.random.default_rng(0).normal(0, 0.1, (24000, 2)), 48000)
    row = {"audio": "a.ogg", "mood": "calm", "speed": 2}
    rows = [row | {"key": f"k{i}", "text": f"It's number {'abcdefgh'[i % 8]}!"} for i in range(40)]
    rows[1] |= {"split": "test", "speaker": "me", "key": "the.first"}
    rows += [row | {"key": "few", "text": "two words"}, row | {"key": "none", "text": " "}]
    source = "--source=" + write_rows(tmp_path / "list.jsonl", rows)
    said = prepare(source, "--min_words=3", "--copies=6").out
    assert "1 too few words" in said and "1 without words" in said
    features, train = Features(f"{tmp_path}/features"), Features(f"{tmp_path}/features", "train")
    first = features.infos[features.keys.index("the-first")]
    assert (first["split"], first["mood"], first["speaker"]) == ("test", "calm", "me")
    rows = (tmp_path / "features/train.jsonl").read_text()
    assert len(train) == 7 * rows.count("\n") and "-copy" not in rows
    copies = [info["copy"] | {"n": n} for info, n in zip(train.infos, train.lengths)
              if "copy" in info]
    assert len({copy["way"] for copy in copies}) == 5
    for copy in copies:  # 0.5 s is 25 frames, an echo adds to them
        echo = 25 if copy["way"] == "room" else 0
        assert abs(copy["n"] - 25 / copy["speed"] - echo) <= 1 + 0.6 * echo, copy
    prepare(source, "--new_sentences=True", "--min_words=0", f"--out_dir={tmp_path}/new")
    manifest = Features(f"{tmp_path}/new").manifest
    assert set(manifest["clips"]) == {"train"} and "without words" not in str(manifest["counts"])
    assert manifest["counts"]["sentence in train"] >= 2

