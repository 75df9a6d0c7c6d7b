"""prepare_librispeech.py's real command line on a small corpus made here, with a tiny random encoder."""
import hashlib
import http.server
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import types
import unicodedata
from multiprocessing import get_context

import numpy as np
import pytest
import soundfile
import torch

import data
from audio import WhisperEncoder, encode, load_encoder_file, save_encoder
from recordings import read_audio
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
               "--workers=1", "--seen_voices=True"]

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
    lists = [f"{split}.jsonl" for split in Features(str(folder)).manifest["clips"]]
    assert names == sorted([*tars, *(name[:-4] + ".json" for name in tars), *lists, "index.json", "manifest.json"])
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
    assert all((prepare.out / row["audio"]).exists() for row in features.rows)
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *prepare.command[1:]]
    done = subprocess.run([*ranks, "--taps=0,-1", f"--out_dir={prepare.speech}/two"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("20 clips") == 1, done.stderr  # the first rank reads the corpus
    assert files_of(prepare.speech / "two") == files_of(prepare.out)


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


@pytest.mark.slow
def test_workers_without_fork(prepare, tmp_path):
    """Broken: where processes are not forked (macOS) a worker runs the script again, prints its settings, or has other
    settings, another encoder or other features."""
    env = os.environ | {"NANOCHAT_OMNI_START": "spawn"}
    done = subprocess.run([*prepare.command, "--workers=2", "--taps=0,-1"], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("setting taps") == 1 and done.stdout.count("20 clips") == 1
    assert prepare("--workers=2", "--taps=0,-1", f"--out_dir={tmp_path}/forked").code == 0
    assert files_of(prepare.out) == files_of(tmp_path / "forked")


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
    lines = [*lines[:3], f"{keys[3]} \u4f60\u597d", *lines[4:], lines[4], " ", ""]
    (prepare.train / "10-7.trans.txt").write_text("\n".join(lines))
    assert_fails(prepare(), "4 of 21 clips", "max_bad_share", keys[1])
    assert_fails(prepare("--max_bad_share=0.22"), "5 of 21 clips")
    assert not (prepare.out / "manifest.json").exists()
    assert prepare("--max_bad_share=0.31").code == 0
    manifest = Features(str(prepare.out)).manifest
    reasons = {failure["key"]: failure["reason"] for failure in manifest["failures"]}
    assert manifest["clips"]["train"] == 8 and len(manifest["failures"]) == 5
    assert manifest["counts"] == {"dropped: letters of another script": 1}
    assert set(reasons) == {*keys[:3], keys[4], "extra"}
    for key, words in zip([*keys[:3], keys[4], "extra"],
                          ("corrupt", "", "without aud", "twice, at ", "without trans")):
        assert words in reasons[key]
    assert_as_served(Features(str(prepare.out), "train"), prepare.speech, originals / "encoder0.pt")
    assert prepare("--max_bad_share=0.31", "--max_audio_s=0.5").code == 0
    features = Features(str(prepare.out))
    assert features.manifest["counts"]["too long"] > 0 and max(features.seconds) <= 0.5


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
    assert prepare("--subset=dev-tiny,test-tiny", f"--out_dir={tmp_path}/two").code == 0
    assert Features(f"{tmp_path}/two").manifest["clips"] == {"val": 4, "test": 4}


def test_bad_input(prepare, tmp_path):
    """Broken: a mistake ends in a traceback, or after an hour of work."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "train").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "shard-000000.tar").write_bytes(b"somebody's audio")
    for settings, words in (
            (["--source=nowhere"], ["nowhere", "no such folder"]), (["--subset=dev-tiny,train-960"], ["train-960"]),
            ([f"--source={tmp_path}/empty"], ["empty", "trans.txt"]), (["--taps=last"], ["taps=last"]),
            (["--max_audio_s=0.01"], ["no clip", "0.01"]), (["--batch_size=0"], ["batch_size"]),
            (["--taps=2"], ["taps", "random0"]), (["--subsets=x"], ["subset"]), (["--layout=x"], ["speechocean"]),
            ([f"--out_dir={tmp_path}/foreign"], ["foreign", "out_dir"])):
        assert_fails(prepare(*settings), *words)
    assert_fails(prepare("--seen_voices=False"), "16 of 20", "speaker 10 is in val too")
    assert not prepare.out.exists() and os.listdir(tmp_path / "foreign") == ["shard-000000.tar"]
    (prepare.speech / "labels.jsonl").write_text('{"key": "a"}\n{"kez": 1}\n')
    assert_fails(prepare(), "labels.jsonl:2")


def write_archive(path, members):
    """Write a tar.gz of {name: bytes, or '-> target' for a link}; returns its MD5."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content[3:]
            else:
                member.size = len(content)
            tar.addfile(member, None if isinstance(content, str) else io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def mirror(prepare, tmp_path, monkeypatch):
    """A folder served over HTTP that holds dev-clean.tar.gz, shaped as OpenSLR's; .url, .md5, .asked and .files."""
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "mirror"))

        def log_message(self, *args):
            asked.append(self.path)

    chapter, asked = prepare.speech / "dev-tiny" / "10" / "7", []
    (tmp_path / "mirror").mkdir()
    files = {f"LibriSpeech/dev-clean/10/7/{path.name}": path.read_bytes() for path in sorted(chapter.iterdir())}
    files["LibriSpeech/SPEAKERS.TXT"] = b"10 | F | dev-clean | 1 | A\n"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    archive = tmp_path / "mirror" / "dev-clean.tar.gz"
    yield types.SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", archive=archive, files=files, asked=asked,
                                md5=write_archive(archive, files))
    server.shutdown()
    server.server_close()


def test_downloads_a_subset(prepare, mirror, tmp_path):
    """Broken: `--subset=dev-clean` does not become features when only the second mirror has it, or loads it twice."""
    root = tmp_path / "net" / "LibriSpeech"
    command = ("--subset=dev-clean", f"--source={root}", f"--mirrors=http://127.0.0.1:9/no, {mirror.url}",
               f"--md5={mirror.md5}")
    done = prepare(*command)
    assert done.code == 0 and f"from {mirror.url}/dev-clean.tar.gz" in done.out, done.err
    features = Features(str(root / "features"), "val")
    assert len(features) == 2 and features.infos[0]["sex"] == "female"
    assert sorted(os.listdir(root)) == ["SPEAKERS.TXT", "dev-clean", "features"] and len(mirror.asked) == 1
    rows = [json.loads(line) for line in (root / "features" / "val.jsonl").read_text().splitlines()]
    audio = {os.path.normpath(root / "features" / row["audio"]) for row in rows}
    assert audio == {str(path) for path in root.glob("dev-clean/10/7/*.flac")}
    assert {row["text"] for row in rows} == set(features.texts)
    assert prepare(*command).code == 0 and len(mirror.asked) == 1
    shutil.rmtree(root)
    hub = tmp_path / "mirror" / "datasets" / "a" / "b" / "resolve" / "main"
    hub.mkdir(parents=True)
    shutil.move(mirror.archive, hub)
    assert prepare(*command[:2], "--mirrors=hf:a/b", command[3], "--keep_archive=True").code == 0
    assert (root / "dev-clean.tar.gz").exists() and (root / "dev-clean").is_dir()


def test_archives_are_not_trusted(prepare, mirror, tmp_path, monkeypatch):
    """Broken: a wrong archive, or one that writes outside, is unpacked; or a full disk is met after the download."""
    root, outside = tmp_path / "net", tmp_path / "outside.txt"
    command = ("--subset=dev-clean", f"--source={root}", f"--mirrors={mirror.url}")
    assert_fails(prepare(*command), "md5 is", mirror.url)  # not the published one
    for bad in ({"../outside.txt": b"x"}, {"LibriSpeech/link": "-> ../../.."}, {"LibriSpeech/dev-other/x": b"x"}):
        md5 = write_archive(mirror.archive, bad | mirror.files if "dev-other" not in str(bad) else bad)
        assert_fails(prepare(*command, f"--md5={md5}"), "dev-clean.tar.gz", "can be unpacked")
        assert os.listdir(root) == ["dev-clean.tar.gz"] and not outside.exists()
        os.remove(root / "dev-clean.tar.gz")
    mirror.archive.write_bytes(mirror.archive.read_bytes()[:100])
    cut = hashlib.md5(mirror.archive.read_bytes()).hexdigest()
    assert_fails(prepare(*command, f"--md5={cut}"), "can be unpacked")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=600_000_000))
    os.remove(root / "dev-clean.tar.gz")
    n_asked = len(mirror.asked)
    assert_fails(prepare(*command), "dev-clean needs 0.7 GB", "make room")
    assert len(mirror.asked) == n_asked


def test_own_clips(prepare, tmp_path):
    """Broken: a list of one's own clips is not read, or its bad rows vanish or stop everything."""
    (tmp_path / "mine").mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, (24000, 2))
    for i in range(40):
        soundfile.write(tmp_path / "mine" / f"{i}.ogg" if i else tmp_path / "mine" / "0.wav", noise, 48000)
    rows = [{"audio": f"mine/{i}.ogg" if i else "mine/0.wav", "text": f"It's number {'abcdefgh'[i % 8]}!",
             "mood": "calm"} for i in range(40)]
    rows[1] |= {"split": "test", "speaker": "me", "key": "the.first"}
    rows += [{"audio": "mine/1.ogg", "text": 7}, {"audio": "mine/99.ogg", "text": "missing"}]
    lines = [*map(json.dumps, rows[:40]), "", "[1]", *map(json.dumps, rows[40:])]
    (tmp_path / "list.jsonl").write_text("\n".join(lines) + "\n")
    command = (f"--source={tmp_path}/list.jsonl", "--min_words=3", "--max_words=3")
    assert_fails(prepare(*command), "3 of 43 clips", "list.jsonl:42: no JSON", 'list.jsonl:43: "text" is 7', "99.ogg")
    done = prepare(*command, "--max_bad_share=0.1")
    assert done.code == 0 and "40 converted to 16 kHz mono" in done.out, done.err
    features = Features(f"{tmp_path}/features")
    assert sum(features.manifest["clips"].values()) == 40 and 1 <= features.manifest["clips"]["val"] <= 6
    assert set(features.texts) == {f"it's number {letter}" for letter in "abcdefgh"}
    first = features.infos[features.keys.index("the-first")]
    assert first["split"] == "test" and first["mood"] == "calm" and first["speaker"] == "me"
    assert prepare(*command, "--max_bad_share=0.1", "--new_sentences=True", f"--out_dir={tmp_path}/new").code == 0
    assert set(Features(f"{tmp_path}/new").manifest["clips"]) == {"train"}
    assert_fails(prepare(f"--source={tmp_path}/none.jsonl"), "none.jsonl")
    fast = prepare(*command, "--max_bad_share=0.1", "--speeds=0.8,2", f"--out_dir={tmp_path}/fast")
    assert fast.code == 0 and "-speed" not in (tmp_path / "fast/train.jsonl").read_text()
    lengths = dict(zip((features := Features(f"{tmp_path}/fast", "train")).keys, features.lengths))
    assert len(lengths) == 3 * Features(f"{tmp_path}/features").manifest["clips"]["train"]
    assert (lengths["mine-2"], lengths["mine-2-speed80"], lengths["mine-2-speed200"]) == (25, 31, 12)
    assert_fails(prepare(*command, "--max_bad_share=0.1", "--speeds=0.9,9"), "speeds=0.9,9", "0.5 to 2")


@pytest.mark.case("B21")
def test_transcripts_say_all_or_are_dropped(prepare, tmp_path):
    """Broken: a number leaves a label, what can't be said is half kept or not counted, or silence stops the run."""
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 16000)
    texts = {"digits": "the primary coil has 50 turns", "html": "Tom &amp; Jerry&#39;s",
             "zero-width": "re\u200bcord\u00ad it", "cjk": "\u4f60\u597d",
             "tags": "[laughter] <unk> um (inaudible)", "marks": "...", "s0": "", "s1": "   "}
    rows = [{"audio": "a.wav", "key": key, "text": text, "split": "train"} for key, text in texts.items()]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"--source={tmp_path}/list.jsonl", f"--out_dir={tmp_path}/out"
    dropped = {"dropped: letters of another script": 1, "dropped: words that the transcript does not give": 1,
               "dropped: no words left": 1}
    said = {"digits": "the primary coil has fifty turns", "html": "tom and jerry's", "zero-width": "record it"}
    silent = "without words (min_words=0 takes them as silence)"
    for settings, words, counts in (((), said, dropped | {silent: 2}),
                                    (("--min_words=0",), said | {"s0": "", "s1": ""}, dropped)):
        done = prepare(*command, *settings)
        assert done.code == 0, done.err
        features = Features(f"{tmp_path}/out", "train")
        assert dict(zip(features.keys, features.texts)) == words
        assert features.manifest["counts"] == counts and not features.manifest["failures"]
        assert all(f"{n} {why}" in done.out for why, n in counts.items())
    assert {i["key"]: i.get("written") for i in features.infos}["digits"] == texts["digits"]


def test_speechocean(prepare, tmp_path):
    """Broken: its speakers mix between the splits, or children count as adults."""
    root = tmp_path / "so"
    for part, first in (("train", 0), ("test", 100)):
        (root / part).mkdir(parents=True)
        speakers = range(first, first + 12)
        for name, line in (("wav.scp", "{u}\tWAVE/{u}.WAV"), ("text", "{u}\tCLIP {w}"), ("utt2spk", "{u} {s}")):
            (root / part / name).write_text("".join(line.format(u=f"9{s}", s=s, w="ABCDEFGHIJKL"[s % 12]) + "\n"
                                                    for s in speakers))
        for name, values in (("spk2age", [17, 18]), ("spk2gender", "mf")):
            (root / part / name).write_text("".join(f"{s} {values[s % 2]}\n" for s in speakers))
    (root / "WAVE").mkdir()
    for s in (*range(12), *range(100, 112)):
        soundfile.write(root / "WAVE" / f"9{s}.WAV", np.random.default_rng(s).normal(0, 0.1, 8000), 16000)
    command = ("--layout=speechocean", f"--source={root}", f"--out_dir={tmp_path}/out", "--seen_voices=False")
    assert prepare(*command).code == 0
    features = Features(f"{tmp_path}/out")
    assert features.manifest["clips"] == {"train": 10, "val": 2, "test_adults": 6, "test_children": 6}
    assert {(i["sex"], i["age"]) for i in features.infos if i["split"] == "test_adults"} == {("female", 18)}
    by_split = {split: {i["speaker"] for i in features.infos if i["split"] == split} for split in ("train", "val")}
    assert not by_split["train"] & by_split["val"]
    assert prepare(*command, "--new_sentences=True").code == 0
    assert Features(f"{tmp_path}/out").manifest["counts"] == {"sentence in train": 10}


# ---- lists and folders as people have them: the readers alone, without features

@pytest.fixture
def corpus(originals, monkeypatch):
    """corpus(source, *settings) -> {key: info and path} and {key: reason} of the clips that can be used, and can't."""
    def read(source, *settings):
        monkeypatch.setattr(sys, "argv", [SCRIPT, f"--source={source}", "--max_bad_share=1", *settings])
        clips, failures, n_found, _ = runpy.run_path(SCRIPT, run_name="script")["read_corpus"]()
        assert n_found == len(clips) + len(failures)
        return ({clip["info"]["key"]: clip["info"] | {"path": clip["path"]} for clip in clips},
                {failure["key"]: failure["reason"] for failure in failures})

    read.flac = next((originals / "speech").glob("train-tiny/10/7/*.flac")).read_bytes()
    return read


def write_list(folder, rows, flac, encoding="utf-8", end="\n"):
    """Write list.jsonl of rows (dicts, or lines as they are) and, unless it is there, each row's audio."""
    for row in rows:
        if isinstance(row, dict) and not (folder / row["audio"]).exists():
            (folder / row["audio"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / row["audio"]).write_bytes(flac)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "list.jsonl").write_bytes(end.join([*lines, ""]).encode(encoding))
    return folder / "list.jsonl"


@pytest.mark.case("B15", "B16")
def test_lists_in_other_encodings(corpus, tmp_path):
    """Broken: of a list with a byte order mark the first clip is lost; U+2028 in a row makes two of it; a blank line is
    a failure; UTF-16 or Latin-1 is a message without the file."""
    rows = [{"audio": f"clips/{i}.flac", "text": f"clip {'abcdefghijklmnopqrst'[i]}"} for i in range(20)]
    for encoding, end in (("utf-8", "\n"), ("utf-8-sig", "\n"), ("utf-8", "\r\n"), ("utf-8-sig", "\r\n")):
        good, bad = corpus(write_list(tmp_path, [*rows, "", "  "], corpus.flac, encoding, end))
        assert not bad and {info["text"] for info in good.values()} == {row["text"] for row in rows}
    good, bad = corpus(write_list(tmp_path, [*({**row, "key": f"k{i}-{n}"} for n in range(10)
                                               for i, row in enumerate(rows))], corpus.flac, "utf-8-sig"))
    assert len(good) == 200 and not bad
    for char in "\u2028\u2029\x85":
        rows[3]["text"] = f"the train left{char}kansas at noon"
        good, bad = corpus(write_list(tmp_path, rows, corpus.flac))
        assert good["clips-3"]["text"] == "the train left kansas at noon" and len(good) == 20 and not bad
    with pytest.raises(ValueError, match="list.jsonl:1: this is UTF-16: save it as UTF-8"):
        corpus(write_list(tmp_path, rows, corpus.flac, "utf-16"))
    rows[2]["text"], rows[3]["text"] = "caf\xe9", "noon"
    with pytest.raises(ValueError, match="list.jsonl:3: byte 0xe9 is no UTF-8"):
        corpus(write_list(tmp_path, rows, corpus.flac, "latin-1"))


@pytest.mark.case("B17")
def test_keys_of_paths_do_not_collide(corpus, tmp_path):
    """Broken: two clips whose paths differ in / - or . alone become one, or a failure that names no way out."""
    names = ("spk1/utt1.flac", "spk1-utt1.flac", "take.2.flac", "take-2.flac", "take.2.wav", "a/../b.c.flac")
    rows = [{"audio": name, "text": f"number {'abcdef'[i]}"} for i, name in enumerate(names)]
    (tmp_path / "a").mkdir()
    good, bad = corpus(write_list(tmp_path, rows, corpus.flac))
    assert not bad and len(good) == 6 and {"spk1-utt1", "take-2", "a-b-c"} < set(good)
    assert {info["text"]: os.path.basename(info["path"]) for info in good.values()} == {
        row["text"]: os.path.basename(row["audio"]) for row in rows}
    assert not any(set(key) & set("./\\") for key in good)
    again, _ = corpus(write_list(tmp_path, rows, corpus.flac))
    assert list(again) == list(good)
    rows = [{"audio": "b.flac", "text": "one", "key": "same"}, {"audio": "c.flac", "text": "two", "key": "same"},
            {"audio": "b.flac", "text": "three"}, {"audio": "b.flac", "text": "four"}]
    good, bad = corpus(write_list(tmp_path, rows, corpus.flac))
    assert set(good) == {"same", "b"} and "list.jsonl:2: key there twice, at " in bad["same"]
    assert "list.jsonl:1 too: rename one, or give each row its own \"key\"" in bad["same"]
    assert "list.jsonl:4: key there twice" in bad["b"]


@pytest.mark.case("B17", "B22")
def test_names_of_other_systems(corpus, tmp_path):
    """Broken: dots, accents, emoji or quotes in a name, a Mac's decomposed accents or Windows' backslashes lose a clip;
    what is missing is not named as it was looked for."""
    names = ("235342 Track 2.0 (Clean Version).flac", "UPPER.FLAC", "comma, semi; quote' .flac", "ümlaut größe.flac",
             "日本語 🎤.flac", "-starts-with-a-dash.flac", "%41 percent.flac", "two  spaces.flac")
    good, bad = corpus(write_list(tmp_path, [{"audio": f"n/{name}", "text": "a name"} for name in names], corpus.flac))
    assert len(good) == 8 and not bad
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / unicodedata.normalize("NFD", "café.flac")).write_bytes(corpus.flac)
    lines = [json.dumps({"audio": name, "text": "a name"}) for name in (
        unicodedata.normalize("NFC", "clips/café.flac"), "n\\UPPER.FLAC", "C:\\my\\none.wav")]
    good, bad = corpus(write_list(tmp_path, lines, corpus.flac))
    assert set(good) == {"clips-café", "n-UPPER"}
    assert bad[r"C:-my-none"].endswith(f"transcript without audio (no {tmp_path}/C:\\my\\none.wav)")


def test_rows_with_surprises(prepare, tmp_path, originals, corpus):
    """Broken: a number, null or NaN in a row, or a field of our own name, spoils manifest.json or index.json, moves a
    clip to a split that nobody reads, or is refused without what is wrong."""
    odd = [{"key": "a", "speaker": 10**30, "age": 1e308}, {"key": 7, "speaker": None}, {"key": "c", "split": "TRAIN"},
           {"key": "d", "split": "validation"}, {"key": "e", "seconds": "unknown", "subset": "x", "playback_speed": 2}]
    rows = [{"audio": f"clips/{i}.flac", "text": "some words"} | more for i, more in enumerate(odd)]
    twice = '{"audio": "clips/0.flac", "audio": "clips/1.flac", "text": "first", "text": "second", "split": "train"}'
    nan = '{"audio": "clips/2.flac", "text": "not a number", "snr": NaN, "gain": -Infinity}'
    good, bad = corpus(write_list(tmp_path, [*rows, twice, nan], corpus.flac))
    assert not bad and [good[key]["split"] for key in "cd"] == ["train", "val"] and good["7"]["speaker"] == ""
    assert good["clips-1"]["text"] == "second" and prepare(f"--source={tmp_path}/list.jsonl", "--speeds=0.8").code == 0
    refuse = {"parse_constant": lambda name: pytest.fail(f"{name} is no JSON")}
    index, manifest = (json.loads((tmp_path / "features" / name).read_text(), **refuse)
                       for name in ("index.json", "manifest.json"))
    frames = {row["info"]["key"]: row["frames"] for row in index}
    assert len(manifest["failures"]) == 0 and frames["e"] == frames["a"]  # a label: the clip is not played faster
    assert frames["c-speed80"] == round(frames["c"] / 0.8)
    lines = [rows[0], *(json.dumps({"audio": "clips/1.flac", "text": text}) for text in (None, 42, ["a"])),
             '{"audio_filepath": "clips/1.flac", "text": "a", "duration": 1.0}',
             '{"audio": {"path": "clips/1.flac"}, "sentence": "a"}', '{"audio": "clips/1.flac", "question": "a"}']
    with pytest.raises(ValueError) as error:
        corpus(write_list(tmp_path, lines, corpus.flac), "--max_bad_share=0.1")
    for words in ('list.jsonl:2: "text" is null, not a string', 'list.jsonl:3: "text" is 42', '4: "text" is ["a"]'):
        assert words in str(error.value)
    for line, words in zip(lines[4:], ('"audio" is missing among audio_filepath, text, duration', '"audio" is {"path"',
                                       '"answer" is missing among audio, question')):
        assert corpus(write_list(tmp_path, [rows[0], line], corpus.flac))[1][""].split(": ", 1)[1].startswith(words)


@pytest.fixture
def layout(corpus, tmp_path):
    """layout(name, ...) makes a corpus of two speakers in train-a and one in dev-a, 3 clips each -> its folder."""
    def make(name, ext="flac", sep=" ", end="\n", encoding="utf-8"):
        for subset, speaker in (("train-a", 100), ("train-a", 101), ("dev-a", 200)):
            chapter = tmp_path / name / subset / str(speaker) / "7"
            chapter.mkdir(parents=True)
            keys = [f"{speaker}-7-000{i}" for i in range(3)]
            for key in keys:
                (chapter / f"{key}.{ext}").write_bytes(corpus.flac)
            lines = [f"{key}{sep}MY OLDER SISTER" for key in keys]
            (chapter / f"{speaker}-7.trans.txt").write_bytes(end.join([*lines, ""]).encode(encoding))
        return tmp_path / name
    return make


def assert_all_nine(read):
    good, bad = read
    assert len(good) == 9 and not bad, bad
    assert {info["text"] for info in good.values()} == {"my older sister"}


@pytest.mark.case("B18", "B19", "B20")
@pytest.mark.parametrize("how", [{}, {"ext": "FLAC"}, {"sep": "\t"}, {"sep": "  "}, {"end": "\r\n"},
                                 {"end": "\r\n", "encoding": "utf-8-sig"}], ids=str)
def test_layouts(corpus, layout, how):
    """Broken: upper-case endings, tabs, a byte order mark, Windows' line ends, or the files that a Mac and a notebook
    leave beside the others, lose clips or stop the run."""
    root = layout("some speech", **how)
    assert_all_nine(corpus(root))
    for chapter in list(root.glob("*/*/*")):
        for path in list(chapter.iterdir()):
            (chapter / f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X\xff\xfe\x80")
        (chapter / ".DS_Store").write_bytes(b"\0\0\0\1Bud1\0")
        shutil.copytree(chapter, chapter / ".ipynb_checkpoints")
        shutil.copytree(chapter, chapter.parent / ".ipynb_checkpoints")
    assert_all_nine(corpus(root))


@pytest.mark.case("B16", "B17", "B20", "B22")
def test_texts_of_a_layout(corpus, layout):
    """Broken: Latin-1 is not named with file and line or, in SPEAKERS.TXT, stops the run; U+2028 cuts a line; a dot or
    the form of accents in a key loses its clip; a folder too deep is not told."""
    root = layout("latin")
    chapter = root / "dev-a" / "200" / "7"
    transcripts = chapter / "200-7.trans.txt"
    (root / "SPEAKERS.TXT").write_bytes("100 | F | train-a | 1.0 | Ren\xe9e\n".encode("latin-1"))
    (root / "labels.jsonl").write_text('\ufeff{"key": "100-7-0000", "mood": "a\u2028b"}\n', encoding="utf-8")
    decomposed = unicodedata.normalize("NFD", "200-7-é.v2")
    (chapter / "200-7-0001.flac").rename(chapter / f"{decomposed}.flac")
    (chapter / "200-7-0002.flac").rename(chapter / "200-7-ü.flac")
    lines = ["200-7-0000 MY OLDER\u2028SISTER", "200-7-é.v2 MY OLDER SISTER",
             unicodedata.normalize("NFD", "200-7-ü") + " MY OLDER SISTER"]
    transcripts.write_text("\n".join(lines), encoding="utf-8")
    read = corpus(root)
    assert_all_nine(read)
    assert read[0]["100-7-0000"]["sex"] == "female" and read[0]["100-7-0000"]["mood"] == "a\u2028b"
    assert read[0]["200-7-é-v2"]["path"] == str(chapter / f"{decomposed}.flac")
    transcripts.write_bytes(f"200-7-0000 A\n{lines[1]}\n".encode("latin-1", "replace"))
    with pytest.raises(ValueError, match="dev-a/200/7/200-7.trans.txt:2: byte 0xe9 is no UTF-8"):
        corpus(root)
    (root / "SPEAKERS.TXT").unlink()
    (root.parent / "outer").mkdir()
    root.rename(root.parent / "outer" / "latin")
    for name, found in (("outer", "latin/dev-a/200/7/200-7"), ("outer/latin/dev-a/200", "dev-a/200/7/200-7")):
        with pytest.raises(ValueError, match=f"no <speaker>/<chapter>/.*, but .*{found}.trans.txt: point --source at "):
            corpus(root.parent / name)
