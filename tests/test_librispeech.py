"""prepare_librispeech.py's real command line on a small corpus made here, with a tiny random encoder."""
import os
import runpy
import shutil
import signal
import subprocess
import sys
import types
from multiprocessing import get_context

import numpy as np
import pytest
import soundfile
import torch

import data
from audio import WhisperEncoder, encode, load_encoder_file, read_audio, save_encoder
from data import Features

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPT = os.path.join(ROOT, "prepare_librispeech.py")


@pytest.fixture(autouse=True)
def one_thread():
    """As in the workers; two threads on clips this small wait for each other on a busy machine."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """A corpus of 12 + 4 + 4 clips of 0.3 to 0.8 s, and two encoders of 2 layers, 32 wide."""
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    for subset, n in (("train-tiny", 12), ("dev-tiny", 4), ("test-tiny", 4)):
        for i in range(n):
            chapter = folder / "speech" / subset / str(10 + i % 2) / "7"
            chapter.mkdir(parents=True, exist_ok=True)
            key = f"{10 + i % 2}-7-{subset[:2]}{i:04d}"
            soundfile.write(chapter / f"{key}.flac", 0.1 * rng.normal(size=int(16000 * rng.uniform(0.3, 0.8))), 16000)
            with open(chapter / f"{10 + i % 2}-7.trans.txt", "a") as f:
                f.write(f"{key} THAT'S NUMBER {'ABCDEFGHIJKLMNOP'[i]}\n")
    (folder / "speech" / "SPEAKERS.TXT").write_text("; ID |SEX| SUBSET\n10 | F | train | 1 | A\n11 | M | dev | 1 | B\n")
    (folder / "speech" / "labels.jsonl").write_text('{"key": "10-7-tr0000", "pitch": 1.5, "text": "OTHER"}\n')
    for seed in (0, 1):
        torch.manual_seed(seed)
        encoder = WhisperEncoder({"name": f"random{seed}", "n_mels": 80, "n_layer": 2, "n_embd": 32, "n_head": 2})
        save_encoder(encoder, str(folder / f"encoder{seed}.pt"))
    return folder


@pytest.fixture
def prepare(originals, tmp_path, capfd, monkeypatch):
    """prepare(*settings) runs the script in a fork of this process, where torch is imported -> code, out, err."""
    shutil.copytree(originals / "speech", tmp_path / "speech")
    command = [SCRIPT, f"--source={tmp_path}/speech", f"--whisper={originals}/encoder0.pt", "--clips_per_shard=4",
               "--workers=1"]

    def run(*settings):
        monkeypatch.setattr(sys, "argv", [*command, *settings])
        capfd.readouterr()
        process = get_context("fork").Process(target=runpy.run_path, args=(SCRIPT,), kwargs={"run_name": "__main__"})
        process.start()
        process.join()
        return types.SimpleNamespace(code=process.exitcode, **capfd.readouterr()._asdict())

    run.command, run.speech, run.out = [sys.executable, *command], tmp_path / "speech", tmp_path / "speech" / "features"
    run.train = run.speech / "train-tiny" / "10" / "7"
    return run


def files_of(folder):
    """{name: bytes} of the shards of a folder of features; nothing else than features may be there."""
    names = sorted(os.listdir(folder))
    tars = [name for name in names if name.endswith(".tar")]
    assert names == sorted([*tars, *(name[:-4] + ".json" for name in tars), "index.json", "manifest.json"])
    return {name: (folder / name).read_bytes() for name in tars}


def assert_fails(result, *words):
    """One clear line on stderr, exit code 2."""
    line = result.err.strip().splitlines()[-1]
    assert result.code == 2 and line.startswith("prepare_librispeech.py: "), result.err
    assert "Traceback" not in result.err and all(word in line for word in words), result.err


def assert_as_served(features, speech, encoder_file):
    """The features are what encode makes of each clip alone, and stand under its name."""
    encoder = load_encoder_file(str(encoder_file))
    for i, info in enumerate(features.infos):
        wav = read_audio(str(next(speech.glob(f"*/{info['speaker']}/7/{info['key']}.flac"))))
        alone = encode(encoder, [wav], features.manifest["taps"])[0].astype(np.float32)
        x = features[i][0].astype(np.float32)
        assert x.shape == alone.shape and np.abs(x - alone).max() < 0.02 * np.abs(alone).max(), info["key"]
        assert abs(info["seconds"] - len(wav) / 16000) < 1e-3


def test_command_line(prepare, originals):
    """Broken: the features are not those that serving makes of the same clips, or texts, splits and labels are lost."""
    done = subprocess.run([*prepare.command, "--taps=0,-1", "--workers=2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "20 clips" in done.stdout and "train 12 clips" in done.stdout and "clips/s" in done.stdout
    sha256 = load_encoder_file(str(originals / "encoder0.pt")).sha256
    features = Features(str(prepare.out), "train", sha256, (0, -1))
    assert (np.diff(features.lengths) >= 0).all() and len(files_of(prepare.out)) == 5
    assert_as_served(features, prepare.speech, originals / "encoder0.pt")
    assert {(info["speaker"], info["sex"]) for info in features.infos} == {("10", "female"), ("11", "male")}
    first = features.infos[features.keys.index("10-7-tr0000")]
    assert first["text"] == "that's number a" and first["pitch"] == 1.5
    manifest = features.manifest
    assert manifest["encoder_sha256"] == sha256 and manifest["D"] == 32 and manifest["failures"] == []
    assert manifest["settings"]["taps"] == "0,-1" and manifest["clips"] == {"train": 12, "val": 4, "test": 4}
    assert abs(manifest["hours"] * 3600 - sum(manifest["seconds"].values())) < 1


def test_runs_again(prepare, originals):
    """Broken: finished shards are made again, or kept although encoder, taps or clips are others now."""
    assert prepare().code == 0
    first, stats = files_of(prepare.out), [path.stat() for path in prepare.out.iterdir()]
    again = prepare()
    assert again.code == 0 and "up to date" in again.out
    assert [s.st_mtime_ns for s in stats] == [path.stat().st_mtime_ns for path in prepare.out.iterdir()]
    os.truncate(prepare.out / "shard-000002.tar", 2000)
    repaired = prepare()
    assert repaired.code == 0 and "1 of 5 shards" in repaired.out and files_of(prepare.out) == first
    assert_fails(prepare("--limit=2"), "20 clips", "out_dir")
    assert files_of(prepare.out) == first
    other = prepare("--clips_per_shard=8", "--taps=0", f"--whisper={originals}/encoder1.pt")
    assert other.code == 0 and "not what is asked for" in other.out and len(files_of(prepare.out)) == 4
    assert Features(str(prepare.out)).manifest["encoder"] == "random1"


def test_goes_on_after_kill(prepare):
    """Broken: kill -9 in the middle of a shard leaves a half one, loses whole ones, or workers that go on alone."""
    straight = prepare(f"--out_dir={prepare.speech}/straight")
    assert straight.code == 0
    dies = ("import data, os, runpy, signal, sys, time; real, n = data.write_shard, []\n"
            "def write_shard(path, clips):\n"
            "    n.append(path)\n"
            "    if len(n) == 3:\n"
            "        os.kill(os.getppid(), signal.SIGKILL); open(path + '.tmp', 'w').write('half'); time.sleep(9)\n"
            "    return real(path, clips)\n"
            f"data.write_shard, sys.argv = write_shard, sys.argv[1:]\nsys.path.insert(0, {ROOT!r})\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')")
    killed = subprocess.run([sys.executable, "-c", dies, *prepare.command[1:]], capture_output=True, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert os.listdir(prepare.out) == [".part"]
    (prepare.out / ".part" / "shard-000077.tar.tmp").write_text("of a run with more shards")
    resumed = prepare()
    assert resumed.code == 0 and "3 of 5 shards" in resumed.out
    assert files_of(prepare.out) == files_of(prepare.speech / "straight")


@pytest.mark.parametrize("n", [1, 4, 8, 10, 12])
def test_goes_on_after_kill_while_replacing(prepare, monkeypatch, n):
    """Broken: between old features and new ones a kill leaves a mix that looks whole, or that can't be repaired."""
    assert prepare("--taps=0").code == 0

    def replace(source, target, calls=[], real=os.replace):
        if os.path.dirname(target) == str(prepare.out):
            calls.append(target)
            if len(calls) == n:
                os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        assert prepare("--taps=1").code == -signal.SIGKILL
    with pytest.raises(ValueError, match="no whole manifest"):
        Features(str(prepare.out))
    assert prepare("--taps=1").code == 0 and prepare("--taps=1", f"--out_dir={prepare.speech}/straight").code == 0
    assert Features(str(prepare.out)).manifest["taps"] == [1]
    assert files_of(prepare.out) == files_of(prepare.speech / "straight")


def test_failed_clips_are_counted(prepare, originals):
    """Broken: a clip that can't be used stops a whole corpus, or vanishes without a word."""
    keys = sorted(path.stem for path in prepare.train.glob("*.flac"))
    os.truncate(prepare.train / f"{keys[0]}.flac", 3000)  # its header is whole, so a worker finds out
    (prepare.train / f"{keys[1]}.flac").write_bytes(b"")
    os.remove(prepare.train / f"{keys[2]}.flac")
    shutil.copy(prepare.train / f"{keys[4]}.flac", prepare.train / "extra.flac")
    lines = (prepare.train / "10-7.trans.txt").read_text().splitlines()
    (prepare.train / "10-7.trans.txt").write_text("\n".join([*lines[:3], f"{keys[3]} 123", *lines[4:], lines[4], ""]))
    assert_fails(prepare(), "5 of 22 clips", "max_bad_share", keys[1])
    assert_fails(prepare("--max_bad_share=0.25"), "6 of 22 clips")
    assert not (prepare.out / "manifest.json").exists()
    assert prepare("--max_bad_share=0.3").code == 0
    manifest = Features(str(prepare.out)).manifest
    reasons = {failure["key"]: failure["reason"] for failure in manifest["failures"]}
    assert manifest["clips"]["train"] == 8 and set(reasons) == {*keys[:5], "extra"} and len(manifest["failures"]) == 6
    for key, words in zip([*keys[:5], "extra"], ("corrupt", "", "without aud", "no words", "twice", "without trans")):
        assert words in reasons[key]
    assert_as_served(Features(str(prepare.out), "train"), prepare.speech, originals / "encoder0.pt")
    assert prepare("--max_bad_share=0.3", "--max_audio_s=0.5").code == 0
    assert Features(str(prepare.out)).manifest["too_long"] > 0 and max(Features(str(prepare.out)).seconds) <= 0.5


def test_full_disk_and_dead_workers(prepare, monkeypatch):
    """Broken: the old features are gone when the disk turns out full; a killed worker is waited for for ever."""
    assert prepare().code == 0
    old = files_of(prepare.out)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=50_000))
        assert_fails(prepare("--taps=0"), "no space", "features")
    Features(str(prepare.out), taps=[-1])
    with monkeypatch.context() as patch:
        patch.setattr(data, "write_shard", lambda path, clips: os.kill(os.getpid(), signal.SIGKILL))
        assert_fails(prepare("--taps=0"), "killed", "memory")
    with monkeypatch.context() as patch:
        def full(path, clips):
            raise OSError(28, "No space left on device", path)
        patch.setattr(data, "write_shard", full)
        assert_fails(prepare("--taps=0"), "No space left", "shard-")
    Features(str(prepare.out), taps=[-1])
    assert prepare().code == 0 and {name: (prepare.out / name).read_bytes() for name in old} == old


def test_a_folder_of_speakers_is_one_subset(prepare, tmp_path):
    """Broken: `--source=.../dev-clean` finds nothing, or its split and speakers' sex are lost."""
    assert prepare(f"--source={prepare.speech}/dev-tiny", "--limit=3", f"--out_dir={tmp_path}/toy").code == 0
    features = Features(f"{tmp_path}/toy")
    assert len(features) == 3 and features.manifest["clips"] == {"val": 3} and features.infos[0]["sex"]
    assert prepare("--subsets=dev-tiny,test-tiny", f"--out_dir={tmp_path}/two").code == 0
    assert Features(f"{tmp_path}/two").manifest["clips"] == {"val": 4, "test": 4}


def test_bad_input(prepare, tmp_path):
    """Broken: a mistake ends in a traceback, or after an hour of work."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "train").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "shard-000000.tar").write_bytes(b"somebody's audio")
    for settings, words in (
            (["--source=nowhere"], ["nowhere", "no such folder"]), (["--subsets=dev-tiny,train-960"], ["train-960"]),
            ([f"--source={tmp_path}/empty"], ["empty", "trans.txt"]), (["--taps=last"], ["taps=last"]),
            (["--max_audio_s=0.01"], ["no clip", "0.01"]), (["--batch_size=0"], ["batch_size"]),
            (["--taps=2"], ["taps", "random0"]), (["--subset=x"], ["subsets"]),
            ([f"--out_dir={tmp_path}/foreign"], ["foreign", "out_dir"])):
        assert_fails(prepare(*settings), *words)
    assert not prepare.out.exists() and os.listdir(tmp_path / "foreign") == ["shard-000000.tar"]
    (prepare.speech / "labels.jsonl").write_text('{"key": "a"}\n{"kez": 1}\n')
    assert_fails(prepare(), "labels.jsonl:2")
