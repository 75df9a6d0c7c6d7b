"""chat.py: what a tiny run hears, answers and continues, and what it refuses."""
import io
import sys

import pytest

from commands import refused, run_here, write_file
from drill import make_audio
from talk import Batch, Piece, Recording
from test_audiobench import make_run as make_chat_run
from test_eval import make_run
from tokenizer import BPETokenizer


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("chat") / "run")


@pytest.fixture(scope="module")
def chat_ckpt(tmp_path_factory):
    return make_chat_run(tmp_path_factory.mktemp("chat") / "chats")


@pytest.fixture
def clip(tmp_path):
    """The path of half a second of noise."""
    return write_file(tmp_path / "clip.wav", make_audio(0.5, 1))


def said(out):
    """The words of stdout without the lines that list changed settings."""
    return " ".join(x for x in out.splitlines() if not x.startswith("setting ")).split()


def chat(*args):
    """Run chat.py, which must succeed -> its stdout, stderr."""
    code, *outputs = run_here("chat.py", *args)
    assert code == 0, outputs
    return outputs


def test_transcripts_are_told(ckpt, clip, monkeypatch):
    """Broken: not all of a recording is heard, pieces run together, or a cut is not told."""
    heard = []

    def transcripts(talker, wav):
        heard.append(len(wav))
        return [Piece("one", False, 0, 1), Piece("", False, 1, 2), Piece("two", True, 2, 3)]

    monkeypatch.setattr("talk.Talker.transcripts", transcripts)
    out, err = chat(f"--ckpt={ckpt}", f"--audio={clip}")
    assert out.endswith("one two\n") and "1 transcripts were cut off" in err
    assert heard == [8_000]


def test_continuing_text(ckpt):
    """Broken: the prompt isn't what is continued, or a setting changes nothing."""
    def say(*args):
        out, _ = chat(f"--ckpt={ckpt}", "--prompt=the cat", *args)
        return out[out.index("\nthe cat") + 1:]

    warm = say("--temperature=0.8")
    assert len(warm) > 20 and say("--temperature=0.8") == warm
    cold, short = say(), say("--max_tokens=2")
    assert cold != warm and len(short) <= len("the cat") + 3 and cold.startswith(short.rstrip())


def test_answering_a_question(chat_ckpt, clip):
    """Broken: a chat run is not asked; its recording or question doesn't count or isn't plain."""
    def ask(prompt):
        return said(chat(f"--ckpt={chat_ckpt}", f"--prompt={prompt}", f"--audio={clip}")[0])
    answer = ask("how high is it")
    assert answer == ask("How high is it?!") != ask("red")
    clip.write_bytes(make_audio(1.5, 1))
    assert answer != ask("how high is it")


def test_a_chat_of_several_turns(chat_ckpt, clip, monkeypatch):
    """Broken: a turn forgets the one before, a wrong file ends the chat, /new isn't new."""
    def talk(*lines, length=12):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        out, err = chat(f"--ckpt={chat_ckpt}", f"--max_tokens={length}")
        return [said(part) for part in out.split("> ")[1:]], err

    asked, add = [], Batch.add

    def noted(batch, row):
        asked.append(["sound" if isinstance(x, Recording) else x for x in row.prompt])
        add(batch, row)

    monkeypatch.setattr(Batch, "add", noted)
    question = "how high is it"
    turns, err = talk(question, f"/audio {clip}", question, "/audio no.wav", question, "/new",
                      question, "/quit", "red")
    assert len(turns) == 8 and turns[1][:2] == ["0.5", "s:"] and turns[0] == turns[6] != []
    assert "no.wav" in err and err.count("\n") == 1
    first, second, third, anew = [[x for x in items if x != "sound"] for items in asked]
    assert first == anew == second[:len(first)] and second == third[:len(second)]
    assert [items.count("sound") for items in asked] == [0, 1, 1, 0]
    turns, err = talk(question, "/help", length=1_000_000)
    assert turns[0] == [] and "begin anew" in err and turns[1][0] == "/audio"


def test_wrong_input_is_one_line(ckpt, chat_ckpt, clip, tmp_path):
    """Broken: a user's mistake ends in a traceback or in silence, or an option is ignored."""
    deaf, other = make_run(tmp_path / "deaf", has_ears=False), make_run(tmp_path / "other")
    BPETokenizer([b"th"]).save(other)
    for args, expected in (
            ([f"--audio={clip}", "--prompt=what is said?"], "only transcribes"),
            (["--audio=no.wav"], "no.wav"),
            ([f"--audio={tmp_path}"], "directory"), ([f"--ckpt={tmp_path}/none"], "none"),
            ([f"--audio={clip}", f"--ckpt={deaf}"], "takes no audio"),
            ([f"--ckpt={other}"], "has 266 ids"), ([], "give it --audio="),
            ([f"--ckpt={chat_ckpt}", "--max_tokens=1000000", "--prompt=x"], "lower them"),
            (["--temperature=-1"], "temperature=-1.0")):
        assert expected in refused("chat.py", f"--ckpt={ckpt}", *args)
