"""chat.py: what a tiny run hears, answers and continues, and what it refuses."""
import io
import sys

import numpy as np
import pytest
import soundfile

from commands import refused, run, run_here
from recordings import read_audio
from talk import Batch, Recording, Talker
from test_audiobench import make_run as make_chat_run
from test_eval import make_run
from tokenizer import BPETokenizer


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("chat") / "run")


@pytest.fixture(scope="module")
def chat_ckpt(tmp_path_factory):
    return make_chat_run(tmp_path_factory.mktemp("chat") / "chats")


def write_audio(path, seconds=0.5):
    """Write noise, quiet for the second quarter of it."""
    wav = np.random.default_rng(0).normal(0, 0.1, int(seconds * 16000))
    wav[len(wav) // 4:len(wav) // 2] *= 0.001
    soundfile.write(path, wav, 16000)
    return str(path)


def said(out):
    """The words of stdout without the lines that list changed settings."""
    return " ".join(x for x in out.splitlines() if not x.startswith("setting ")).split()


def chat(*args):
    """Run chat.py in this process with these arguments -> its stdout; it must succeed."""
    code, out, err = run_here("chat.py", *args)
    assert code == 0, err
    return out


def test_the_command_hears_a_recording(ckpt, tmp_path):
    """Broken: a piece of a long recording is lost or heard otherwise."""
    clip = write_audio(tmp_path / "long.wav", seconds=20)
    heard = run("chat.py", f"--ckpt={ckpt}", f"--audio={clip}")
    pieces = [piece.text for piece in Talker(ckpt, device="cpu").transcripts(read_audio(clip))]
    assert len(pieces) == 2 and all(pieces)
    assert said(heard) == " ".join(pieces).split()


def test_a_cut_transcript_is_told(ckpt, tmp_path, monkeypatch):
    """Broken: a cut-off transcript is not told, or pieces run together."""
    clip = write_audio(tmp_path / "clip.wav")
    pieces = [("one", False), ("", False), ("two", True)]
    monkeypatch.setattr("talk.Talker.transcripts", lambda talker, wav: iter(pieces))
    code, out, err = run_here("chat.py", f"--ckpt={ckpt}", f"--audio={clip}")
    assert code == 0 and out.endswith("one two\n") and "1 transcripts were cut off" in err


def test_continuing_text(ckpt):
    """Broken: the prompt isn't what is continued, or a setting changes nothing."""
    def say(*args):
        out = chat(f"--ckpt={ckpt}", "--prompt=the cat", *args)
        return out[out.index("\nthe cat") + 1:]

    warm = say("--temperature=0.8")
    assert len(warm) > 20 and say("--temperature=0.8") == warm
    cold, short = say(), say("--max_tokens=2")
    assert cold != warm and len(short) <= len("the cat") + 3 and cold.startswith(short.rstrip())


def test_answering_a_question(chat_ckpt, tmp_path):
    """Broken: a chat run is not asked; its recording or question doesn't count or isn't plain."""
    clips = [write_audio(tmp_path / f"{s}.wav", seconds=s) for s in (0.5, 1.5)]

    def ask(prompt, *args):
        return said(chat(f"--ckpt={chat_ckpt}", f"--prompt={prompt}", *args))
    answer = ask("how high is it", f"--audio={clips[0]}")
    assert answer == ask("How high is it?!", f"--audio={clips[0]}")
    assert answer != ask("how high is it", f"--audio={clips[1]}")
    assert answer != ask("red", f"--audio={clips[0]}")


def test_a_chat_of_several_turns(chat_ckpt, tmp_path, monkeypatch):
    """Broken: a turn forgets the one before, a wrong file ends the chat, /new isn't new."""
    clip = write_audio(tmp_path / "clip.wav")

    def chat(*lines, length="12"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        args = f"--ckpt={chat_ckpt}", f"--max_tokens={length}"
        code, out, err = run_here("chat.py", *args)
        assert code == 0, err
        return [said(part) for part in out.split("> ")[1:]], err

    asked, add = [], Batch.add

    def noted(batch, row):
        asked.append(["sound" if isinstance(x, Recording) else x for x in row.prompt])
        add(batch, row)

    monkeypatch.setattr(Batch, "add", noted)
    question = "how high is it"
    turns, err = chat(question, f"/audio {clip}", question, "/audio no.wav", question, "/new",
                      question, "/quit", "red")
    assert len(turns) == 8 and turns[1][:2] == ["0.5", "s:"] and turns[0] == turns[6] != []
    assert "no.wav" in err and err.count("\n") == 1
    first, second, third, anew = [[x for x in items if x != "sound"] for items in asked]
    assert first == anew == second[:len(first)] and second == third[:len(second)]
    assert [items.count("sound") for items in asked] == [0, 1, 1, 0]
    turns, err = chat(question, "/help", length="1000000")
    assert turns[0] == [] and "begin anew" in err and turns[1][0] == "/audio"


def test_wrong_input_is_one_line(ckpt, chat_ckpt, tmp_path):
    """Broken: a user's mistake ends in a traceback or in silence, or an option is ignored."""
    clip, deaf = write_audio(tmp_path / "clip.wav"), make_run(tmp_path / "deaf", has_ears=False)
    other = make_run(tmp_path / "other")
    BPETokenizer([b"th"]).save(other)
    for args, expected in (
            ([f"--audio={clip}", "--prompt=what is said?"], "only transcribes"),
            (["--audio=no.wav"], "no.wav"),
            ([f"--audio={tmp_path}"], "directory"), ([f"--ckpt={tmp_path}/none"], "none"),
            ([f"--audio={clip}", f"--ckpt={deaf}"], "takes no audio"),
            ([f"--ckpt={other}"], "has 266 ids"), ([], "give it --audio="),
            ([f"--ckpt={chat_ckpt}", "--max_tokens=1000000", "--prompt=x"], "lower them"),
            (["--temperature=-1"], "temperature=-1.0"), (["--promt=x"], "prompt")):
        assert expected in refused("chat.py", f"--ckpt={ckpt}", *args)
