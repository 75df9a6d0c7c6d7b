"""chat.py: what a tiny run hears in every kind of file, what it continues, and what it refuses."""
import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from audio import encode, split_at_pauses
from recordings import read_audio
from decode import transcribe
from talk import Batch, Recording
from test_eval import ROOT, make_run, run
from tokenizer import ByteTokenizer


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("chat") / "run")


def write_audio(path, seconds=0.5, rate=16000):
    """Write noise, quiet for the second quarter of it; stereo where the rate is not 16 kHz."""
    wav = np.random.default_rng(0).normal(0, 0.1, int(seconds * rate))
    wav[len(wav) // 4:len(wav) // 2] *= 0.001
    soundfile.write(path, wav if rate == 16000 else np.stack([wav, wav], axis=1), rate)
    return str(path)


def heard_by_evaluation(monkeypatch, ckpt, wavs):
    """Return what eval_bench.py hears in each wav alone."""
    monkeypatch.setattr(sys, "argv", ["eval_bench.py", f"--ckpt={ckpt}"])
    monkeypatch.delitem(sys.modules, "eval_bench", raising=False)
    import eval_bench
    model, _, tok, encoder, projector = eval_bench.load_listener()
    return [transcribe(model, projector, tok, encode(encoder, [wav]), beams=eval_bench.beams)[0] for wav in wavs]


def said(out):
    """Return the words of stdout but for the lines in which the script lists its changed settings."""
    return " ".join(line for line in out.splitlines(True) if not line.startswith("setting ")).split()


def test_the_command_hears_a_recording(ckpt, tmp_path, monkeypatch):
    """Broken: the README's command; or it hears in a clip what the evaluation doesn't."""
    clip = write_audio(tmp_path / "clip.wav")
    command = [sys.executable, "chat.py", f"--ckpt={ckpt}", f"--audio={clip}", "--device=cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    expected = heard_by_evaluation(monkeypatch, ckpt, [read_audio(clip)])
    assert expected[0] and said(done.stdout) == expected[0].split()


def test_a_long_recording_is_heard_in_pieces(ckpt, tmp_path, monkeypatch, capsys):
    """Broken: only the first 15 s are heard, or the pieces are out of order or run together."""
    clip = write_audio(tmp_path / "long.wav", seconds=20)
    wav = read_audio(clip)
    pieces = heard_by_evaluation(monkeypatch, ckpt, [wav[a:b] for a, b in split_at_pauses(wav)])
    capsys.readouterr()
    code, out, err = run(monkeypatch, capsys, "chat.py", f"--ckpt={ckpt}", f"--audio={clip}")
    assert code == 0 and len(pieces) == 2 and all(pieces), err
    assert said(out) == " ".join(pieces).split()


def test_a_piece_is_printed_when_it_is_heard(ckpt, tmp_path, monkeypatch, capsys):
    """A long recording is silent to the end: nothing is printed before all of it is heard."""
    clip, seen = write_audio(tmp_path / "long.wav"), []

    def transcripts(talker, wav, beams, cut):
        for piece in ("one", "", "two"):
            seen.append(capsys.readouterr().out)
            yield piece
        cut.append(0)
    monkeypatch.setattr("talk.Talker.transcripts", transcripts)
    code, out, err = run(monkeypatch, capsys, "chat.py", f"--ckpt={ckpt}", f"--audio={clip}")
    assert code == 0 and seen[1:] == ["one", ""] and out == " two\n", err
    assert "1 transcripts were cut off" in err


@pytest.mark.parametrize("name", ["clip.flac", "clip.ogg", "clip.mp3"])
def test_any_format(ckpt, tmp_path, monkeypatch, capsys, name):
    """Broken: a format, stereo or another sample rate isn't read."""
    clip = write_audio(tmp_path / name, rate=44100)
    code, out, err = run(monkeypatch, capsys, "chat.py", f"--ckpt={ckpt}", f"--audio={clip}")
    assert code == 0 and said(out), err


def test_continuing_text(ckpt, monkeypatch, capsys):
    """Broken: the prompt isn't what is continued, a seed doesn't repeat its text, or the settings change nothing."""
    def say(*args, prompt="the cat"):
        code, out, err = run(monkeypatch, capsys, "chat.py", f"--ckpt={ckpt}", f"--prompt={prompt}", *args)
        assert code == 0, err
        return out[out.index(f"\n{prompt}") + 1:]
    warm = "--temperature=0.8"
    text = say(warm)
    assert text.startswith("the cat") and len(text) > 20 and say(warm) == text
    others = [say(warm, "--seed=1"), say(), say(warm, "--top_k=1"), say(warm, "--max_tokens=2")]
    assert text not in others and others[1] == others[2] and len(others[3]) <= len("the cat") + 3
    assert say("--top_k=1", prompt="a dog")[len("a dog"):] != others[1][len("the cat"):]


def test_answering_a_question(tmp_path, monkeypatch, capsys):
    """Broken: a run of train_sft.py is not asked, its audio or question doesn't count, or its text isn't made plain."""
    from test_audiobench import make_run as make_chat_run
    ckpt = make_chat_run(tmp_path / "run")
    clips = [write_audio(tmp_path / f"{s}.wav", seconds=s) for s in (0.5, 1.5)]

    def ask(prompt, *args):
        code, out, err = run(monkeypatch, capsys, "chat.py", f"--ckpt={ckpt}", f"--prompt={prompt}", "--temperature=0",
                             "--device=cpu", *args)
        assert code == 0, err
        return said(out)
    answer = ask("how high is it", f"--audio={clips[0]}")
    assert answer == ask("How high is it?!", f"--audio={clips[0]}")
    others = [ask("how high is it", f"--audio={clips[1]}"), ask("how high is it"), ask("red", f"--audio={clips[0]}")]
    assert answer not in others
    code, _, err = run(monkeypatch, capsys, "chat.py", f"--ckpt={ckpt}", "--prompt=x", "--max_tokens=100000")
    assert code == 2 and "give a shorter recording" in err


def test_a_chat_of_several_turns(tmp_path, monkeypatch, capsys):
    """Broken: a turn forgets the one before or its recording, a wrong file ends the chat, /new doesn't begin anew."""
    from test_audiobench import make_run as make_chat_run
    ckpt, clip = make_chat_run(tmp_path / "run"), write_audio(tmp_path / "clip.wav")

    def chat(*lines):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code, out, err = run(monkeypatch, capsys, "chat.py", f"--ckpt={ckpt}", "--temperature=0", "--device=cpu",
                             "--max_tokens=12")
        assert code == 0, err
        return [said(part) for part in out.split("> ")[1:]], err
    asked, add = [], Batch.add
    monkeypatch.setattr(Batch, "add", lambda self, rows: (asked.append(rows[0].prompt), add(self, rows)))
    turns, err = chat("how high is it", f"/audio {clip}", "how high is it", "/audio no.wav", "how high is it", "/new",
                      "how high is it", "/quit", "red")
    assert len(turns) == 8 and turns[1][:2] == ["0.5", "s,"] and "no.wav" in err and err.count("\n") == 1
    assert turns[0] == turns[6] and len(asked) == 4
    first, second, third, anew = asked
    assert first == anew == second[:len(first)] and second == third[:len(second)]
    assert [sum(isinstance(item, Recording) for item in items) for items in asked] == [0, 1, 1, 0]
    monkeypatch.setattr(Batch, "step", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    assert chat("how high is it", "/new", "/help")[0][0] == ["[stopped]"]


def test_wrong_input_is_one_line(ckpt, tmp_path, monkeypatch, capsys):
    """Broken: a user's mistake ends in a traceback or in silence; --prompt is ignored by a model that transcribes."""
    clip, deaf = write_audio(tmp_path / "clip.wav"), make_run(tmp_path / "deaf", has_ears=False)
    other = make_run(tmp_path / "other")
    ByteTokenizer([b"th"]).save(other)
    corrupt, empty = tmp_path / "corrupt.wav", tmp_path / "empty.wav"
    corrupt.write_bytes(b"RIFF nothing")
    empty.write_bytes(b"")
    cases = [([f"--audio={clip}", "--prompt=what is said?"], "only transcribes"), (["--audio=no.wav"], "no.wav"),
             ([f"--audio={corrupt}"], "corrupt.wav"), ([f"--audio={empty}"], "empty.wav"), (["--step=8"], "no step 8"),
             ([f"--audio={clip}", f"--ckpt={deaf}"], "takes no audio"), ([f"--ckpt={other}"], "has 258 ids"),
             ([f"--ckpt={tmp_path}/none"], "none"),
             (["--max_tokens=1000000", "--prompt=x"], "lower"), ([], "give it --audio="),
             (["--temperature=-1"], "temperature=-1.0: give 0"),
             (["--beams=0"], "beams=0: give 1"), (["--promt=x"], "prompt")]
    for args, expected in cases:
        code, _, err = run(monkeypatch, capsys, "chat.py", f"--ckpt={ckpt}", *args)
        assert code == 2 and err.startswith("chat.py: ") and err.count("\n") == 1 and expected in err, (args, err)
