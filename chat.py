"""
Talk to a checkpoint in the terminal: chat, let it hear recordings, ask about them, or let it continue a text.

    python chat.py --ckpt=out/cpu_w3                                         # a chat; /audio clip.wav lets it hear one
    python chat.py --ckpt=out/cpu_w3 --audio=clip.wav --prompt="who is speaking?"
    python chat.py --ckpt=out/cpu_w2 --audio=clip.wav                        # what was said, without a question
    python chat.py --ckpt=out/cpu_chat                                       # a chat without ears
    python chat.py --ckpt=out/cpu_base --prompt="the train" --temperature=0.8
"""
import os
import sys
from contextlib import suppress

from configurator import configure, fail

# config: every value here can be set from a config file or as --name=value
ckpt = "out/cpu_w3"  # the run's folder
step = -1            # which checkpoint of it; -1: the last, -2: the best
audio = ""           # a recording to transcribe, or with `prompt` to ask about
prompt = ""          # a question, where a run chats; else text to continue; '': chat, where a run can
max_tokens = 64      # of an answer or a continuation; a transcript ends by itself
temperature = 0.0    # of an answer or a continuation; 0: the likeliest token
beams = 5            # of a transcript: hypotheses kept; 1: greedy
top_k = 50           # of a continuation: only the k likeliest tokens are drawn; 0: all
seed = 0             # of a continuation
cache_mb = 64        # of a chat's keys and values, so that a turn reads only what is new
device = "auto"      # auto, cuda, mps, cpu
config = configure(globals())  # prints each change
# -----------------------------------------------------------------------------
HELP = "/audio FILE lets it hear a recording with what you write next, /new begins anew, /quit or Ctrl-D ends"


def say(batch, row, text):
    """Print a row's tokens as text as they come, until it ends or Ctrl-C stops it; returns the text."""
    said = []
    try:
        batch.add([row])
        while batch.rows:
            for who, token in batch.step():
                said.append(text.add(token) if token is not None and who is row else "")
                print(said[-1], end="", flush=True)
        said.append(text.add())
        print(said[-1], flush=True)
    except KeyboardInterrupt:  # the answer, not the chat
        batch.drop(batch.rows)
        print(" [stopped]", flush=True)
    return "".join(said)


def answer(talker, batch, messages):
    """Print what the model answers to [(role, text, Recording or None)]; returns the text."""
    from talk import Row, Text, size
    longest_s = max((len(sound.wav) / 16_000 for *_, sound in messages if sound), default=0)
    if longest_s > 30:
        print(f"chat.py: a recording of {longest_s:.0f} s: training's are at most 30 s, parts may be missed",
              file=sys.stderr)
    items = talker.prompt(messages)
    if size(items) + max_tokens > talker.limit:
        raise ValueError(f"{size(items)} tokens of audio and text and max_tokens={max_tokens} > the model's "
                         f"{talker.limit}: give a shorter recording, or begin anew")
    row = Row(items, max_tokens, temperature, top_k, seed=seed, stop_ids=talker.stop_ids())
    return say(batch, row, Text(talker.tok, talker.plain))


def listen(talker, wav):
    """Print what the model hears in a wav, each piece as soon as it is heard."""
    before, cut = "", []
    for piece in talker.transcripts(wav, beams, cut):
        if piece:
            print(before + piece, end="", flush=True)
            before = " "
    print(flush=True)
    if cut:
        print(f"chat.py: {len(cut)} transcripts were cut off: the model wrote in a loop", file=sys.stderr)


def chat(talker, batch):
    """Several turns, with recordings in any of them."""
    from audio import read_audio
    from talk import joined
    messages, wavs = [], []
    print(HELP)
    with suppress(ImportError):
        import readline  # noqa: F401 (input() then has a history)
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return print()
        command, _, path = line.partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/new":
                messages, wavs = [], []
            elif command == "/audio" and not talker.ears:
                raise ValueError(f"{ckpt} has no ears: it reads and writes text")
            elif command == "/audio":
                wavs.append(read_audio(find_audio(path.strip().strip("'\""), "/audio")))
                print(f"{len(wavs[-1]) / 16_000:.1f} s, {len(wavs)} with your next question: ask about it")
            elif line.startswith("/"):
                print(HELP)
            elif line:
                asked = [*messages, ("user", line, talker.record(joined(wavs)) if wavs else None)]
                messages, wavs = [*asked, ("assistant", answer(talker, batch, asked), None)], []
        except (ValueError, OSError) as e:
            print(f"{e}", file=sys.stderr, flush=True)


def find_audio(path, what):
    """Return path, or ValueError where no file is."""
    if not os.path.isfile(path):
        raise ValueError(f"{what}: {path or '(no file named)'}: " + (
            "a folder, give one file" if os.path.isdir(path) else "no such file"))
    return path


def continue_text(talker, batch):
    """Print `prompt` and what the model says after it."""
    from talk import Row, Text
    items = [talker.tok.bos_id, *talker.tok.encode(prompt)]
    if len(items) + max_tokens > talker.limit:
        raise ValueError(f"{len(items)} tokens of prompt and max_tokens={max_tokens} > the model's {talker.limit}: "
                         "lower them")
    print(prompt, end="", flush=True)
    say(batch, Row(items, max_tokens, temperature, top_k, seed=seed, stop_ids=(talker.tok.bos_id,)), Text(talker.tok))


def main():
    if audio:
        find_audio(audio, "audio")
    for name, least in (("max_tokens", 1), ("beams", 1), ("temperature", 0), ("top_k", 0), ("cache_mb", 0)):
        if config[name] < least:
            raise ValueError(f"{name}={config[name]}: give {least} or more")
    from audio import read_audio
    from talk import Batch, Talker
    talker = Talker(ckpt, step, device)
    batch = Batch(talker.model, talker.hear if talker.ears else None, cache_mb * 2**20)
    if audio and not talker.ears:
        raise ValueError(f"{ckpt} takes no audio (its meta has no 'audio'): give a run of train_align.py")
    if audio and prompt and not talker.can_chat:
        raise ValueError(f"{ckpt} is a 'transcript' model: it only transcribes, so leave out --prompt")
    if audio and not prompt:
        listen(talker, read_audio(audio))
    elif prompt and talker.can_chat:
        answer(talker, batch, [("user", prompt, talker.record(read_audio(audio)) if audio else None)])
    elif talker.can_chat:
        chat(talker, batch)
    elif not prompt:
        raise ValueError(f"{ckpt} holds no chat: " + ("give it --audio= to transcribe" if talker.ears else
                                                      "give it --prompt= to continue"))
    else:
        continue_text(talker, batch)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as e:
        fail(e)
