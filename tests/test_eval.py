"""eval_bench.py, scoring.py: counts, intervals, controls, the real commands."""
import json
import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import scoring
import talk
from audio import Projector, encode, save_encoder
from commands import raises, read_rows, refused, run_here, write_file, write_rows
from decode import transcribe
from drill import make_audio
from model import GPT, GPTConfig
from test_audio import draw_encoder
from tokenizer import BPETokenizer

TEXTS = ["THE CAT SAT", "IT'S A DOG", "SOME MORE WORDS HERE", "GO HOME", "THE CAT SAT"]
TINY = {"name": "tiny", "n_mels": 80, "n_layer": 2, "n_embd": 64, "n_head": 2}


def save_run(folder, tok, projector=None, **audio):
    """Save a tiny random model in a run's folder (step 3); audio: meta["audio"] of its ears."""
    torch.manual_seed(0)
    os.makedirs(folder, exist_ok=True)
    sizes = {"n_layer": 2, "n_head": 2, "n_kv_head": 2, "n_embd": 64}
    model = GPT(GPTConfig(sequence_len=512, vocab_size=tok.vocab_size, **sizes))
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    torch.save(model.state_dict(), f"{folder}/model_000003.pt")
    tok.save(folder)
    meta = {"step": 3, "model_config": vars(model.config), "user_config": {"data_dir": "nowhere"}}
    if projector:
        encoder = draw_encoder(**TINY)
        save_encoder(encoder, f"{folder}/encoder.pt")
        torch.save(projector.state_dict(), f"{folder}/projector_000003.pt")
        meta["audio"] = {"projector": projector.arguments, "encoder": "tiny",
                         "encoder_sha256": encoder.sha256, **audio}
    Path(folder, "meta_000003.json").write_text(json.dumps(meta))
    return str(folder)


def make_run(folder, has_ears=True):
    """Save a run that transcribes: it writes nonsense that depends on the audio."""
    torch.manual_seed(0)
    projector = Projector(64, 1, 5, 64)
    projector.fc2.weight.data.mul_(20)
    return save_run(folder, BPETokenizer(), projector if has_ears else None, taps=[-1],
                    prompt="transcript")


def make_speech(folder, texts=TEXTS, seed=0, speaker=7, chapter=1):
    """Write a chapter in LibriSpeech's layout: noise of 0.4 s and more -> folder (str)."""
    path, lines = Path(folder, f"{speaker}/{chapter}"), ""
    for i, text in enumerate(texts):
        key, kind = f"{speaker}-{chapter}-{i:04d}", "wav" if i == 1 else "flac"
        write_file(path / f"{key}.{kind}", make_audio(0.4 + i / 10, seed + 10 * i, kind))
        lines += f"{key} {text}\n"
    write_file(path / f"{speaker}-{chapter}.trans.txt", lines)
    return str(folder)


def score(out, *args, name="eval.json"):
    """Run eval_bench.py -> its eval.json or bench.json."""
    code, _, err = run_here("eval_bench.py", *args, f"--out_dir={out}")
    assert code == 0, err
    return json.loads((out / name).read_text())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run and two folders of speech."""
    root = tmp_path_factory.mktemp("eval")
    other = make_speech(root / "b", TEXTS[:3], seed=1)
    return make_run(root / "run"), make_speech(root / "a"), other


@pytest.fixture
def bench(monkeypatch):
    """The script as a module, with its settings at their defaults."""
    monkeypatch.setattr(sys, "argv", ["eval_bench.py"])
    monkeypatch.delitem(sys.modules, "eval_bench", raising=False)
    import eval_bench
    return eval_bench


def test_counts_are_those_of_jiwer():
    """Broken: an alignment is not the cheapest one."""
    import jiwer
    rng = np.random.default_rng(0)
    draw = lambda: " ".join(rng.choice(list("abcd"), rng.integers(1, 12)))
    pairs = [(draw(), draw()) for _ in range(60)]
    counts = scoring.count_errors(*zip(*pairs))
    for (words, errors), (reference, hypothesis) in zip(counts.tolist(), pairs):
        assert words == len(reference.split())
        assert errors == round(words * jiwer.wer(reference, hypothesis))


@pytest.mark.case("B21")
@pytest.mark.parametrize("reference, hypothesis, words, errors", [
    ("two six four eight", "2649", 4, 1), ("oh three five one", "0351", 4, 0),
    ("In 1984", "in nineteen eighty five", 4, 1),
    ("one thousand nine hundred and eighty four", "1,984", 7, 0),
    ("one hundred five", "one hundred and five", 3, 0),
    ("five dollars fifty cents", "$5.50", 4, 0), ("twenty six forty eight", "2648", 4, 0),
    ("ten per cent", "10%", 2, 0), ("oh dear", "zero dear", 2, 1),
    ("it's twenty one", "It is 21.", 4, 0), ("uh hello [laughter]", "Hello.", 1, 0),
    ("a b", "你好 a b", 2, 1), ("", "thank you", 0, 2)])
def test_digits_and_words_are_one_spoken_form(reference, hypothesis, words, errors):
    """Broken: a right answer in digits counts as errors, a wrong one as right."""
    assert scoring.count_errors([reference], [hypothesis]).tolist() == [[words, errors]]


def test_interval_is_the_bootstrap_over_groups():
    """Broken: clips are resampled where speakers are known, or a difference isn't paired."""
    clips = [{"key": str(i), "speaker": str(i % 20)} for i in range(400)]
    assert scoring.groups_of([clip | {"speaker": "joe"} for clip in clips])[1] == "clip 1"
    counts = np.array([[5, i % 4] for i in range(400)])  # a speaker is as bad in each clip
    _, (low, high) = scoring.error_rate(counts, range(400))
    expected = 1.96 * (counts[:, 1] / 5).std() / 400 ** 0.5  # of clips of equal lengths
    assert abs((high - low) / 2 / expected - 1) < 0.1
    speakers = scoring.groups_of(clips)
    assert np.ptp(scoring.error_rate(counts, speakers)[1]) > 2 * (high - low)
    better = counts - [0, 1] * (counts > 0)
    beside = scoring.compare(better, counts, speakers)
    ours = scoring.error_rate(better, speakers)[0]
    assert beside["difference"] == round(ours - beside["wer"], 5) < 0
    assert np.ptp(beside["difference_interval"]) < np.ptp(beside["interval"]) / 2


def test_errors_by_length_and_by_times_spoken():
    """Broken: a band's errors or words are counted in another, or an inserted word counts."""
    counts = np.array([[5, 1], [6, 2], [21, 3]])
    assert scoring.by_length(counts) == {"1-5": [1, 5], "6-10": [2, 6], "11-20": [0, 0],
                                         "more": [3, 21]}
    heard = ["the cat the sat", "", "a big bird"]
    table = scoring.by_times_spoken(["the cat sat", "go home", "a bird"], heard,
                                    {"the": 99, "cat": 3, "go": 4, "a": 16, "bird": 1})
    assert table == {"0": [1, 2], "1-3": [0, 2], "4-15": [1, 1], "more": [0, 2]}


def test_clips_come_another_way(bench, tiny, monkeypatch):
    """Broken: a clip comes clean, otherwise each time, with less noise than said, or any way."""
    clips, _ = scoring.read_folder(tiny[1])
    clean = bench.come(clips, 0)
    for way in bench.WAYS[1:]:
        monkeypatch.setattr(bench, "way", way)
        wav = bench.come(clips, 0)
        assert np.array_equal(wav, bench.come(clips, 0)) and len(wav) >= len(clean)
        if way in ("noise", "babble"):
            added = wav / np.linalg.norm(wav) - clean / np.linalg.norm(clean)
            assert 0.2 < np.linalg.norm(added) < 0.45, way  # 0.32 of the speech: 10 dB
    said = refused("eval_bench.py", f"--ckpt={tiny[0]}", "--way=space", "--out_dir=x")
    assert "noise, babble, room, telephone" in said


def test_shuffled_control(bench):
    """Broken: a clip keeps its audio, or gets one of another length or one that says the same."""
    texts, seconds = list("aabcab"), [1.0, 1.1, 1.5, 3.0, 2.9, 9.0]
    clips = [{"seconds": s, "text": text} for text, s in zip(texts, seconds)]
    assert bench.shuffle(clips) == [2, 2, 1, 4, 3, 3]
    raises("all clips say 'a'", bench.shuffle, clips[:2])


def test_a_list_of_clips(tiny, tmp_path):
    """Broken: paths are not from the list's folder, or a bad row is a traceback."""
    path = tmp_path / "mine.jsonl"
    shutil.copytree(tiny[1], tmp_path, dirs_exist_ok=True)
    row = {"audio": "7/1/7-1-0001.wav", "text": "x"}
    rows = [{"written": "Room 42\u2028", "speaker": "me"}, {"text": ""}, {"text": "你好"},
            {"text": "<unk>"}, {"text": "", "turns": [["own", "who", "me"]]}]
    clips, left_out = scoring.read_folder(write_rows(path, [row | each for each in rows]))
    found = [(clip["reference"], clip["text"], clip["speaker"]) for clip in clips]
    assert sorted(found) == [("", "", ""), ("Room 42", "room forty two", "me")]
    assert os.path.samefile(clips[0]["audio"], tmp_path / "7/1/7-1-0001.wav")
    assert left_out.total() == 3 and left_out["questions without a transcript"] == 1
    for bad, word in ((row | {"audio": "no.wav"}, "no recording"), (row | {"text": ""}, "silence"),
                      (row | {"text": "uh"}, "no reference"), (row | {"text": "你好"}, "1 letters")):
        raises(word, scoring.read_folder, write_rows(path, [bad]))


def test_batches_hear_what_single_clips_say(bench, tiny, monkeypatch):
    """Broken: padding leaks, texts land at the wrong clips, or a long recording loses a piece."""
    ckpt, folder, _ = tiny
    monkeypatch.setattr(bench, "ckpt", ckpt)
    talker = bench.load_talker()
    clips, _ = scoring.read_folder(folder)
    heard, n_cut = bench.hear(talker, clips)
    assert len(set(heard)) == len(clips)  # it depends on the audio
    monkeypatch.setattr(bench, "BATCH_SIZE", 1)
    assert bench.hear(talker, clips) == (heard, n_cut)
    monkeypatch.setattr(talk, "split_at_pauses", lambda wav, max_s: [(0, 4800), (4800, 9600)])
    wav = soundfile.read(clips[2]["audio"], dtype="float32")[0]  # 9600 samples, as if it were long
    alone = [transcribe(talker.model, talker.projector, talker.tok, encode(talker.encoder, [part]),
                        beams=talk.BEAMS)[0] for part in (wav[:4800], wav[4800:])]
    assert bench.hear(talker, clips[2:3])[0] == [" ".join(alone)]


def test_the_command_and_its_files(tiny, tmp_path):
    """Broken: wrong eval.json or jsonl, equal keys are mixed up, a changed recording isn't seen."""
    ckpt, a, b = tiny
    speech = shutil.copytree(a, tmp_path / "a")
    out, theirs, rows = tmp_path / "out", tmp_path / "theirs.jsonl", []
    for folder, text in ((str(speech), "the cat sat"), (b, "no")):  # of equal keys
        rows += [clip | {"hypothesis": text} for clip in scoring.read_folder(folder)[0]]
    args = ["eval_bench.py", f"--ckpt={ckpt}", f"--data=new={speech},voice={b}",
            f"--out_dir={out}", f"--beside={write_rows(theirs, rows)}"]
    text = run_here(*args)[1]
    result = json.loads((out / "eval.json").read_text())
    new, voice = result["folders"]["new"], result["folders"]["voice"]
    assert result["cer_new"] == new["cer"] > 0.5 and text.index("   wer ") < text.index("   cer ")
    assert (result["wer_new"], result["wer_voice"]) == (new["wer"], voice["wer"])
    assert (new["clips"], new["words"], voice["clips"]) == (5, 16, 3)  # it's: it is
    assert new["beside"]["wer"] == 11 / 16 and voice["beside"]["wer"] == 1
    rows = read_rows(out / "eval_new.jsonl")
    assert sum(row["errors"] for row in rows) / 16 == pytest.approx(new["wer"], abs=1e-4)
    worst = [row["errors"] / row["words"] for row in rows]
    assert worst == sorted(worst, reverse=True) and len(result["transcripts"]) == 6
    assert all(row["hypothesis"] in text for row in result["transcripts"])
    assert new["by_length"]["1-5"][1] == 16 and "words a clip: 1-5: " in text
    assert result["encoder"] == "tiny" and result["dtype"] == "float32"
    assert "is up to date" in run_here(*args)[1]
    changed = speech / "7/1/7-1-0001.wav"
    soundfile.write(changed, -soundfile.read(changed)[0], 16000)  # of the same size
    assert "up to date" not in run_here(*args)[1]
    theirs.write_text(theirs.read_text().replace("GO HOME", "STAY"))
    assert "7-1-0003" in refused(*args)


@pytest.mark.case("B21")
def test_clips_of_silence_are_scored(tiny, tmp_path):
    """Broken: an empty reference isn't counted, or is a partner in the shuffled control."""
    clips, _ = scoring.read_folder(tiny[1])
    rows = [{"audio": clip["audio"], "text": text}
            for clip, text in zip(clips, ["", "room 42", "seven", ""])]
    path = write_rows(tmp_path / "list.jsonl", rows)
    table = score(tmp_path / "out", f"--ckpt={tiny[0]}", f"--data={path}")["folders"][""]
    assert (table["clips"], table["words"]) == (4, 4)
    rows = read_rows(tmp_path / "out/eval.jsonl")
    assert all(row["words"] == 0 < row["errors"] for row in rows if not row["reference"])
    heard = {row["reference"]: row["hypothesis"] for row in rows}
    swapped = scoring.count_errors(["room 42", "seven"], [heard["seven"], heard["room 42"]])
    assert table["wer_shuffled"] == round(swapped[:, 1].sum() / 4, 5)
    assert len(scoring.read_folder(path, max_clips=3)[0]) == 3


def test_whispers_decoder_is_scored_alike(tiny, tmp_path, monkeypatch):
    """Broken: Whisper's own decoder is scored otherwise, or ours can't be compared with it."""
    folder, codes = write_file(tmp_path / "whisper-base-ctranslate2/model.bin").parent, []
    monkeypatch.setenv("NANOCHAT_OMNI_CACHE", str(tmp_path))

    class WhisperModel:
        model = types.SimpleNamespace(device="cpu")

        def __init__(self, name, **settings):
            assert name == str(folder)

        def transcribe(self, wav, language, **settings):
            codes.append(language)
            return [types.SimpleNamespace(text=t) for t in (" The cat", " sat 42.")], None

    fake = types.SimpleNamespace(WhisperModel=WhisperModel, __version__="0", __spec__="there")
    monkeypatch.setitem(sys.modules, "faster_whisper", fake)
    data, whisper = f"--data=new={tiny[1]}", "--ckpt=whisper-base"
    assert score(tmp_path, data, whisper, "--language=de")["wer_new"] == round(14 / 15, 5)
    result = score(tmp_path, data, whisper)
    assert result["wer_new"] == 19 / 16 and result["dtype"] == "float32"  # of it is a dog: 5
    assert set(codes) == {"en", "de"}
    ours = score(tmp_path, data, f"--ckpt={tiny[0]}", f"--beside={tmp_path}/eval_new.jsonl")
    assert ours["folders"]["new"]["beside"]["wer"] == 19 / 16
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    said = refused("eval_bench.py", data, whisper, f"--out_dir={tmp_path}")
    assert said.endswith("pip install faster_whisper\n")


def test_wrong_input_is_one_line(tiny, tmp_path):
    """Broken: a user's mistake is a traceback, doesn't name what is wrong, or costs minutes."""
    ckpt, folder, _ = tiny
    deaf = make_run(tmp_path / "deaf", has_ears=False)
    broken = make_speech(tmp_path / "broken")
    write_file(tmp_path / "broken/7/1/7-1-0002.flac", "no audio")
    cases = [(ckpt, "", "data is empty"), (ckpt, f"{tmp_path}/nowhere", "no *.trans.txt"),
             (ckpt, broken, "7-1-0002.flac"), (deaf, folder, "takes no audio"),
             ("no_run", folder, "no_run"), (ckpt, f"{folder} --bench=no", "no/questions.jsonl"),
             (ckpt, f"{folder},{folder}", "'a' can't name"), (ckpt, f"../x={folder}", "can't name")]
    for run_folder, data, expected in cases:
        args = [f"--ckpt={run_folder}", *f"--data={data}".split(), f"--out_dir={tmp_path}/out"]
        assert expected in refused("eval_bench.py", *args)
    assert not (tmp_path / "out").exists()
