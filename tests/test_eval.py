"""eval_bench.py: the counts, the shuffled control, the intervals, and the real command line on a tiny run."""
import json
import os
import runpy
import shutil
import sys
import types

import numpy as np
import pytest
import soundfile
import torch

from audio import Projector, WhisperEncoder, encode, save_encoder
from decode import transcribe
from model import GPT, GPTConfig
import scoring
from tokenizer import ByteTokenizer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TEXTS = ["THE CAT SAT", "IT'S A DOG", "SOME MORE WORDS HERE", "GO HOME", "THE CAT SAT"]


def make_run(folder, has_ears=True):
    """Save a tiny random model with ears in a run's folder: what it says is nonsense that depends on the audio."""
    torch.manual_seed(0)
    os.makedirs(folder, exist_ok=True)
    model = GPT(GPTConfig(sequence_len=512, vocab_size=257, n_layer=2, n_head=2, n_kv_head=2, n_embd=64))
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    encoder = WhisperEncoder({"name": "tiny", "n_mels": 80, "n_layer": 2, "n_embd": 64, "n_head": 2}, torch.float32)
    projector = Projector(64, 1, 5, 64)
    projector.fc2.weight.data.mul_(20)
    torch.save(model.state_dict(), os.path.join(folder, "model_000003.pt"))
    ByteTokenizer().save(folder)
    meta = {"step": 3, "model_config": vars(model.config), "user_config": {"learning_rate": 0.5}}
    if has_ears:
        save_encoder(encoder, os.path.join(folder, "encoder.pt"))
        torch.save(projector.state_dict(), os.path.join(folder, "projector_000003.pt"))
        meta["audio"] = {"projector": projector.arguments, "encoder": encoder.name, "encoder_sha256": encoder.sha256,
                         "taps": [-1], "stack": 5, "prompt": "transcript", "audio_at": 0}
    with open(os.path.join(folder, "meta_000003.json"), "w") as f:
        json.dump(meta, f)
    with open(os.path.join(folder, "log.jsonl"), "w") as f:
        f.write('{"step": 1, "loss": 5.5, "lr": 0.1}\n{"step": 3, "loss": 1.25, "lr": 0.1}\n')
    return str(folder)


def make_speech(folder, texts=TEXTS, seed=0):
    """Write a folder in LibriSpeech's layout: noise bursts of 0.4 s and more, each text said by speaker 7."""
    rng, chapter = np.random.default_rng(seed), os.path.join(folder, "7", "1")
    os.makedirs(chapter)
    for i, text in enumerate(texts):
        wav = rng.normal(0, 0.1, 6400 + 1600 * i) * np.sin(np.arange(6400 + 1600 * i) / (200 + 50 * i))
        soundfile.write(os.path.join(chapter, f"7-1-{i:04d}.{'wav' if i == 1 else 'flac'}"), wav, 16000)
    with open(os.path.join(chapter, "7-1.trans.txt"), "w") as f:
        f.writelines(f"7-1-{i:04d} {text}\n" for i, text in enumerate(texts))
    return str(folder)


def run(monkeypatch, capsys, script, *args):
    """Run a script's command line in this process; returns (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", [script, *args])
    code = 0
    try:
        runpy.run_path(os.path.join(ROOT, script), run_name="__main__")
    except SystemExit as e:
        code = e.code
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run and two folders of speech: (ckpt, folder, folder)."""
    root = tmp_path_factory.mktemp("eval")
    return make_run(root / "run"), make_speech(root / "a"), make_speech(root / "b", TEXTS[:3], seed=1)


@pytest.fixture
def bench(monkeypatch):
    """The script as a module, with its settings at their defaults."""
    monkeypatch.setattr(sys, "argv", ["eval_bench.py"])
    monkeypatch.delitem(sys.modules, "eval_bench", raising=False)
    import eval_bench
    return eval_bench


def test_counts_of_hand_made_pairs():
    """Broken: substitutions, deletions and insertions are mixed up, an empty text isn't counted, or the rate is not
    errors over the reference's words, pooled over clips."""
    counts = scoring.count_edits(["a b c d", "a b", "a", ""], ["a x c", "a b c", "", "b"])
    assert counts.tolist() == [[4, 1, 1, 0], [2, 0, 0, 1], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert scoring.error_rate(counts, range(4), 0)[0] == round(5 / 7, 5)
    with pytest.raises(ValueError, match="no words"):
        scoring.error_rate(counts[3:], [0], 0)


def test_counts_are_those_of_jiwer():
    """Broken: the alignment of texts without numbers is not the cheapest one."""
    import jiwer
    rng = np.random.default_rng(0)
    pairs = [[" ".join(rng.choice(list("abcd"), rng.integers(1, 12))) for _ in range(2)] for _ in range(60)]
    counts = scoring.count_edits(*zip(*pairs))
    for (words, *edits), (reference, hypothesis) in zip(counts.tolist(), pairs):
        theirs = jiwer.process_words(reference, hypothesis)
        assert words == len(reference.split())
        assert sum(edits) == theirs.substitutions + theirs.deletions + theirs.insertions
        assert words - edits[1] + edits[2] == len(hypothesis.split())


@pytest.mark.case("B21")
@pytest.mark.parametrize("reference, hypothesis, words, errors", [
    ("two six four eight", "2 6 4 8", 4, 0), ("one eight eight four", "1, 8, 8, 4.", 4, 0),
    ("three six nine eight", "3 6 9 8", 4, 0), ("seven seven eight six", "7-7-8-6", 4, 0),
    ("two six four eight", "2648", 4, 0), ("2 6 4 8", "two six four eight", 4, 0), ("2 6 4 8", "2648.", 4, 0),
    ("two six four eight", "2649", 4, 1), ("two six four eight", "2 6 8", 4, 1), ("zero three five one", "351", 4, 1),
    ("oh three five one", "0351", 4, 0), ("room 42", "room forty two", 3, 0), ("room forty two", "Room 42!", 3, 0),
    ("in nineteen eighty four", "In 1984", 4, 0), ("In 1984", "in nineteen eighty five", 4, 1), ("1984", "1984", 3, 0),
    ("one thousand nine hundred and eighty four", "1,984", 7, 0), ("a hundred and five", "105", 4, 0),
    ("one hundred five", "one hundred and five", 3, 0), ("five fifty", "$5.50", 2, 0), ("ten per cent", "10%", 2, 0),
    ("rock and roll", "rock roll", 3, 1), ("oh dear", "zero dear", 2, 1), ("it's twenty one", "It is 21.", 4, 0),
    ("mister brown said", "mr brown, said", 3, 0), ("uh hello [laughter]", "Hello.", 1, 0),
    ("a b", "你好 a b", 2, 1), ("", "thank you", 0, 2), ("", "", 0, 0)])
def test_digits_and_words_are_one_spoken_form(reference, hypothesis, words, errors):
    """Broken: a right answer in digits counts as errors, a wrong one as right, or writing counts as hearing."""
    ((n, *edits),) = scoring.count_edits([reference], [hypothesis]).tolist()
    assert (n, sum(edits)) == (words, errors)


def test_interval_is_the_bootstrap_over_groups():
    """Broken: the interval depends on anything but counts, groups and seed, resamples words or clips where it should
    be speakers, or a difference isn't paired."""
    rng = np.random.default_rng(0)
    counts = np.stack([np.full(400, 5), rng.integers(0, 4, 400), rng.integers(0, 2, 400), np.zeros(400, int)], axis=1)
    rate, (low, high) = scoring.error_rate(counts, range(400), 0)
    assert scoring.error_rate(counts, range(400), 0) == (rate, [low, high])
    expected = 1.96 * (counts[:, 1:].sum(axis=1) / 5).std() / 400 ** 0.5  # clips of one length: the mean's own interval
    assert low < rate < high and abs((high - low) / 2 / expected - 1) < 0.1
    assert scoring.error_rate(counts, range(400), 1)[1] != [low, high]
    speakers = np.arange(400) // 20
    counts[:, 1] = speakers % 4  # a speaker is as bad in each clip: 20 are no 400
    wide, narrow = (np.ptp(scoring.error_rate(counts, groups, 0)[1]) for groups in (speakers, range(400)))
    assert wide > 2 * narrow
    better = counts.copy()
    better[:, 1] = np.maximum(better[:, 1] - 1, 0)
    beside = scoring.compare(better, counts, speakers, 0)
    assert beside["difference"] == round(scoring.error_rate(better, speakers, 0)[0] - beside["wer"], 5) < 0
    assert np.ptp(beside["difference_interval"]) < np.ptp(beside["interval"]) / 2
    assert beside["difference_interval"][1] < 0


def test_speakers_are_resampled_where_they_are_known():
    """Broken: clips of one speaker count as so many speakers, or an interval over two speakers claims to be one."""
    clips = [{"key": str(i), "speaker": str(i % 12)} for i in range(24)]
    assert scoring.groups_of(clips)[:13:12] == ["speaker 0", "speaker 0"]
    assert scoring.groups_of([clip | {"speaker": "joe"} for clip in clips])[:2] == ["clip 0", "clip 1"]
    assert scoring.groups_of([{"key": "x", "speaker": ""}, *clips])[:2] == ["clip x", "speaker 0"]


@pytest.mark.parametrize("n", [2, 3, 8, 101])
def test_shuffle_keeps_no_clip_and_no_length(bench, n):
    """Broken: a clip keeps its own audio (the control looks too good), or gets one of another length (too bad)."""
    seconds = np.random.default_rng(n).uniform(1, 20, n)
    partner = bench.shuffle(seconds, [str(i) for i in range(n)])
    ranks = seconds.argsort().argsort()
    assert sorted(partner) == list(range(n)) and (partner != np.arange(n)).all()
    assert abs(ranks - ranks[partner]).max() <= 2


def test_shuffle_pairs_no_equal_texts(bench):
    """Broken: one sentence said by several voices is scored against itself, and shuffled audio seems to be heard."""
    texts = [str(i // 4) for i in range(40)]  # in length order four voices say each sentence
    partner = bench.shuffle(np.arange(40) / 10, texts)
    assert sorted(partner) == list(range(40)) and all(texts[i] != texts[j] for i, j in enumerate(partner))
    assert abs(np.arange(40) - partner).max() <= 12
    half = ["same"] * 5 + list("abcde")
    assert all(half[i] != half[j] for i, j in enumerate(bench.shuffle(np.arange(10), half)))
    for texts in (["same"] * 6 + list("abcd"), ["alone"]):
        with pytest.raises(ValueError, match="too many say"):
            bench.shuffle(np.arange(len(texts)), texts)


def test_names_of_folders():
    """Broken: two folders write the same key of eval.json, or a name overwrites wer_shuffled."""
    assert scoring.parse_folders("data/a/test") == [("", "data/a/test")]
    assert scoring.parse_folders("new=data/a/val, data/a/test/") == [("new", "data/a/val"), ("test", "data/a/test/")]
    for wrong in ("", ",", "x=a,x=b", "a/test,b/test", "shuffled=a", "x y=a", "../x=a"):
        with pytest.raises(ValueError, match="data"):
            scoring.parse_folders(wrong)


def test_a_list_of_clips(tiny, tmp_path):
    """Broken: a .jsonl is no source, its paths are from elsewhere than the list, or a bad row is a traceback."""
    path, rows = tmp_path / "mine.jsonl", [{"audio": "7/1/7-1-0001.wav", "text": "It's ONE!"}]
    shutil.copytree(tiny[1], tmp_path, dirs_exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (clip,), left_out = scoring.read_folder(str(path))
    assert clip["reference"] == "It's ONE!" and clip["text"] == "it's one" and not left_out
    assert os.path.samefile(clip["audio"], tmp_path / "7/1/7-1-0001.wav")
    assert scoring.parse_folders(f"x={path},{path}") == [("x", str(path)), ("mine", str(path))]
    others = [{"written": "Room 42\u2028", "text": "x", "speaker": "me"}, {"text": ""}, {"text": "你好"},
              {"text": "<unk>"}, {"text": "", "turns": [["own", "who", "me"]]}]
    lines = [json.dumps(rows[0] | row, ensure_ascii=False) for row in others]
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    clips, left_out = scoring.read_folder(str(path))
    assert sorted((clip["reference"], clip["text"], clip["speaker"]) for clip in clips) == [
        ("", "", ""), ("Room 42", "room forty two", "me")]
    assert left_out == {"letters of another script": 1, "words that the transcript does not give": 1,
                        "questions without a transcript": 1}
    for bad, word in (('{"text": "a"}', "audio"), ("[1]", "audio"), ("{", "no JSON object"), ("", "no clips"),
                      ('{"audio": "none.wav", "text": "a"}', "no recording"),
                      ('{"audio": "7/1/7-1-0001.wav", "text": ""}', "silence"),
                      ('{"audio": "7/1/7-1-0001.wav", "text": "你好"}', "1 letters of another script")):
        path.write_text(bad + "\n" if bad else "")
        with pytest.raises(ValueError, match=word):
            scoring.read_folder(str(path))


def test_batches_hear_what_single_clips_say(bench, tiny, monkeypatch):
    """Broken: padding leaks into what is heard, texts land at the wrong clips, or a long recording loses a piece."""
    ckpt, folder, _ = tiny
    monkeypatch.setattr(bench, "ckpt", ckpt)
    listener, (clips, _) = bench.load_listener(), scoring.read_folder(folder)
    assert [(clip["text"], clip["reference"], clip["speaker"]) for clip in clips] == [
        (text.lower(), text, "7") for text in TEXTS]
    heard, n_cut = bench.hear(listener, clips)
    assert len(set(heard)) == len(clips)  # it depends on the audio
    monkeypatch.setattr(bench, "batch_size", 1)
    assert bench.hear(listener, clips) == (heard, n_cut)
    monkeypatch.setattr("audio.split_at_pauses", lambda wav, max_s: [(0, 4800), (4800, len(wav))])  # as if long
    wav = soundfile.read(clips[0]["audio"], dtype="float32")[0]
    model, _, tok, encoder, projector = listener
    alone = [transcribe(model, projector, tok, encode(encoder, [wav[a:b]]), beams=bench.beams)[0]
             for a, b in ((0, 4800), (4800, None))]
    assert bench.hear(listener, clips[:1])[0] == [" ".join(alone)]


def test_lm_perplexity_counts_the_closing_bos(bench, tiny, monkeypatch):
    """Broken: padding or the batch changes the nats, or the token that ends a transcript is not among them."""
    monkeypatch.setattr(bench, "ckpt", tiny[0])
    model, _, tok = bench.load_listener()[:3]
    texts, nats = ["the cat", "a", "one two three"], 0.0
    for text in texts:
        ids = [tok.bos_id, *tok.encode(text), tok.bos_id]
        logp = model(torch.tensor([ids[:-1]]))[0].log_softmax(1)
        nats -= logp[range(len(ids) - 1), ids[1:]].sum().item()
    assert bench.lm_nats(model, tok, texts) == pytest.approx(nats, rel=1e-5)


def test_the_command_and_its_report(tiny, tmp_path, monkeypatch, capsys):
    """Broken: what speedrun.sh, the README and the user read: eval.json, the jsonl, the picture, report.md, the last
    line of stdout; or another system's transcripts don't stand beside."""
    ckpt, a, b = tiny
    out, theirs = tmp_path / "out", tmp_path / "theirs.jsonl"
    theirs.write_text("".join(json.dumps({"key": f"7-1-{i:04d}", "reference": text, "hypothesis": text.lower()}) + "\n"
                              for i, text in enumerate(TEXTS)))
    args = [f"--ckpt={ckpt}", f"--data=new={a},voice={b}", f"--out_dir={out}", "--device=cpu", "--batch_size=3"]
    code, text, err = run(monkeypatch, capsys, "eval_bench.py", *args, f"--beside={theirs}")
    assert code == 0, err
    result = json.loads(text.splitlines()[-1])
    assert result == json.loads((out / "eval.json").read_text())
    assert set(os.listdir(out)) == {"eval.json", "eval.png", "report.md", "eval_new.jsonl", "eval_voice.jsonl"}
    rates = {"wer_new", "wer_voice", "wer_shuffled", "wer_shuffled_floor"}
    assert rates == set(result["intervals"]) and {k for k in result if k.startswith("wer")} == rates
    assert all(0 < result[k] and result["intervals"][k][0] <= result[k] <= result["intervals"][k][1] for k in rates)
    assert (result["clips"], result["words"], result["encoder"]) == (8, 15 + 10 + 2, "tiny")  # it's: it is
    assert result["folders"]["voice"]["clips"] == 3 and result["minutes"] < 1 < result["lm_ppl_word"]
    assert result["folders"]["new"]["beside"]["wer"] == 0
    assert result["folders"]["new"]["beside"]["difference"] == result["wer_new"]
    rows = [json.loads(line) for line in (out / "eval_new.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and sum(row["errors"] for row in rows) / 16 == pytest.approx(result["wer_new"], abs=1e-4)
    worst = [row["errors"] / row["words"] for row in rows]
    assert worst == sorted(worst, reverse=True) and {row["reference"] for row in rows} == set(TEXTS)
    report = (out / "report.md").read_text()
    for row in result["transcripts"]:
        assert row["reference"] in text and row["reference"] in report
    assert f"python chat.py --ckpt={ckpt} --audio={result['transcripts'][0]['audio']}" in text
    assert len(result["transcripts"]) == 5 and os.path.isfile(result["transcripts"][0]["audio"])
    for words in ("learning_rate = 0.5", "loss = 5.5000 (step 1) ... 1.2500 (step 3)", "threads of",
                  "difference, paired", "95% by clip"):
        assert words in report
    theirs.write_text(theirs.read_text().replace("GO HOME", "STAY"))
    code, _, err = run(monkeypatch, capsys, "eval_bench.py", *args, f"--beside={theirs}")
    assert code == 2 and "7-1-0003" in err and err.count("\n") == 1


@pytest.mark.case("B21")
def test_clips_of_silence_are_scored(tiny, tmp_path, monkeypatch, capsys):
    """Broken: an empty reference is a division by zero, is not counted, or is a partner of the shuffled control."""
    rows = [{"audio": f"{tiny[1]}/7/1/7-1-{i:04d}.{'wav' if i == 1 else 'flac'}", "text": text}
            for i, text in enumerate(["", "room 42", "seven", ""])]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, text, err = run(monkeypatch, capsys, "eval_bench.py", f"--ckpt={tiny[0]}", f"--data={tmp_path}/list.jsonl",
                          f"--out_dir={tmp_path}/out")
    assert code == 0, err
    result = json.loads(text.splitlines()[-1])
    assert (result["clips"], result["silent_clips"], result["words"]) == (4, 2, 4)
    rows = [json.loads(line) for line in (tmp_path / "out/eval.jsonl").read_text().splitlines()]
    assert sum(row["errors"] for row in rows) == round(4 * result["wer"])
    silent = [row for row in rows if not row["reference"]]
    assert len(silent) == 2 and all(row["words"] == 0 < row["errors"] for row in silent)  # it hears nonsense
    assert result["wer_shuffled_floor"] == 6 / 4  # room forty two against seven, and the other way round


def test_whispers_decoder_keeps_its_transcripts(tiny, tmp_path, monkeypatch, capsys):
    """Broken: eval_whisper.py scores otherwise, decodes again what it has, or doesn't say what to install."""
    asked, folder = [], tmp_path / "model"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"weights")

    class WhisperModel:
        def __init__(self, name, **settings):
            assert name == str(folder)

        def transcribe(self, wav, **settings):
            assert wav.dtype == np.float32 and settings["language"] == "en" and settings["beam_size"] == 5
            assert settings["without_timestamps"] and settings["temperature"] == 0
            asked.append(len(wav))
            return [types.SimpleNamespace(text=" The cat"), types.SimpleNamespace(text=" sat 42.")], None

    fake = types.ModuleType("faster_whisper")
    fake.WhisperModel, fake.__version__ = WhisperModel, "0"
    monkeypatch.setitem(sys.modules, "faster_whisper", fake)
    args = [f"--data=new={tiny[1]},voice={tiny[2]}", f"--out_dir={tmp_path}/out", f"--model={folder}"]
    code, text, err = run(monkeypatch, capsys, "eval_whisper.py", *args)
    assert code == 0 and len(asked) == 8, err
    rows = [json.loads(line) for line in (tmp_path / "out/eval_whisper_new.jsonl").read_text().splitlines()]
    assert [(row["key"], row["reference"]) for row in rows] == [(f"7-1-{i:04d}", t) for i, t in enumerate(TEXTS)]
    assert {row["hypothesis"] for row in rows} == {"The cat sat 42."}
    result = json.loads((tmp_path / "out/eval_whisper.json").read_text())
    counts = scoring.count_edits(TEXTS, ["the cat sat forty two"] * 5)
    assert result["folders"]["new"]["wer"] == round(counts[:, 1:].sum() / 16, 5)
    assert result["folders"]["voice"]["clips"] == 3
    lines = (tmp_path / "out/eval_whisper_new.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out/eval_whisper_new.jsonl").write_text("".join(lines[:3]))  # as if killed
    assert run(monkeypatch, capsys, "eval_whisper.py", *args)[0] == 0 and len(asked) == 10
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    code, _, err = run(monkeypatch, capsys, "eval_whisper.py", *args)
    assert code == 2 and err.endswith("pip install faster-whisper\n") and err.count("\n") == 1


def test_one_folder_without_a_name(tiny, tmp_path, monkeypatch, capsys):
    """Broken: a single folder's rate is not `wer`, or max_clips and seed don't choose the clips."""
    args = [f"--ckpt={tiny[0]}", f"--data={tiny[1]}", f"--out_dir={tmp_path}", "--max_clips=3"]
    code, text, err = run(monkeypatch, capsys, "eval_bench.py", *args)
    result = json.loads(text.splitlines()[-1])
    assert code == 0 and result["wer"] > 0 and result["clips"] == 3
    assert result["wer_shuffled"] == result["folders"][""]["wer_shuffled"]


def test_wrong_input_is_one_line(tiny, tmp_path, monkeypatch, capsys):
    """Broken: a user's mistake ends in a traceback, without the name of what is wrong, or after minutes of work."""
    ckpt, folder, _ = tiny
    (tmp_path / "empty").mkdir()
    deaf, other = make_run(tmp_path / "deaf", has_ears=False), make_run(tmp_path / "other")
    broken, alone = make_speech(tmp_path / "broken"), make_speech(tmp_path / "alone")
    (tmp_path / "broken/7/1/7-1-0002.flac").write_bytes(b"no audio")
    (tmp_path / "alone/7/1/7-1-0002.flac").unlink()
    ByteTokenizer([b"th"]).save(other)
    cases = [(ckpt, "", "data is empty"), (ckpt, f"{tmp_path}/nowhere", "no such folder"),
             (ckpt, f"{tmp_path}/empty", "no *.trans.txt"), (ckpt, broken, "7-1-0002.flac"), (ckpt, alone, "7-1-0002"),
             (deaf, folder, "takes no audio"), (other, folder, "tokenizer.json has 258 ids"),
             (f"{tmp_path}/no_run", folder, "no_run"),
             (ckpt, f"{folder} --step=9", "no step 9"), (ckpt, f"{folder} --batch_size=0", "batch_size=0")]
    for run_folder, data, expected in cases:
        args = [f"--ckpt={run_folder}", *f"--data={data}".split(), f"--out_dir={tmp_path}/out"]
        code, _, err = run(monkeypatch, capsys, "eval_bench.py", *args)
        assert code == 2 and err.startswith("eval_bench.py: ") and err.count("\n") == 1 and expected in err, (args, err)
    assert not (tmp_path / "out").exists() and not (tmp_path / "no_run").exists()
