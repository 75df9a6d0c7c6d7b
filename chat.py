"""
Talk to a run in the terminal: chat, ask about a recording, transcribe it, continue a text.

    python chat.py --ckpt=out/cpu_w3                        # a chat; /audio clip.wav adds a sound
    python chat.py --ckpt=out/cpu_w3 --audio=clip.wav --prompt="who is speaking?"
    python chat.py --ckpt=out/cpu_w2 --audio=clip.wav       # what was said
    python chat.py --ckpt=out/cpu_base --prompt="the train" --temperature=0.8
"""
import signal
import sys
from contextlib import suppress

import torch

from configurator import configure, fail, user_input
from recordings import SAMPLE_RATE, read_audio
from talk import Batch, Row, Talker, Text, default_run, size

# config: set by a config file or --name=value
ckpt = ""            # the run's folder; '': out/cpu_w3, or else the model in pretrained/
audio = ""           # a recording to transcribe, or with `prompt` to ask about
prompt = ""          # a question, or a text to continue; '': a chat
max_tokens = 64      # of an answer or a continuation
temperature = 0.0    # of an answer or a continuation; 0: the likeliest token
config = configure(globals())
# ----
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends without a traceback
if max_tokens < 1 or temperature < 0:
    fail(f"max_tokens={max_tokens} must be 1 or more, temperature={temperature} 0 or more")

TOP_P = 0.9     # an answer is drawn from the likeliest tokens that sum up to it
LONGEST_S = 30  # of a recording to ask about, as in training
HELP = "/audio FILE adds a recording to your next question, /new begins anew, /quit ends"


def say(items, text, stop_ids):
    """Print what follows a prompt -> str."""
    if size(items) + max_tokens > talker.limit:
        fail(f"{size(items)} tokens and max_tokens={max_tokens} > the model's {talker.limit}: "
             "lower them, or begin anew")
    batch = Batch(talker.model, talker.hear)
    batch.add(Row(items, max_tokens, temperature, TOP_P, stop_ids=stop_ids))
    while batch.rows:
        for _, token in batch.step():
            print(text.add(token), end="", flush=True)
    print(flush=True)
    return text.shown


def answer(messages):
    """Print the answer to [(role, text, wavs)] -> as say()."""
    turns = [(role, text, talker.record(*wavs) if wavs else None) for role, text, wavs in messages]
    return say(talker.prompt(turns), Text(talker.tok, talker.plain), talker.stop_ids())


def transcribe(wav):
    torch.set_num_threads(1)  # beside a busy process two take seven times as long
    texts, n_cut = [], 0
    for text, is_cut, *_ in talker.transcripts(wav):
        n_cut += is_cut
        if text:
            print(talker.language.space * bool(texts) + text, end="", flush=True)
            texts.append(text)
    print(flush=True)
    if not texts:
        print("chat.py: no words were heard", file=sys.stderr)
    if n_cut:
        print(f"chat.py: {n_cut} transcripts were cut off: the model wrote in a loop",
              file=sys.stderr)


def hear(path, most_s=LONGEST_S):
    """Read a recording -> float32 (n,)."""
    if not talker.ears:
        fail(f"{run} takes no audio: give a run of train_align.py or train_sft.py")
    with user_input():
        return read_audio(path, most_s)


def chat():
    messages, wavs = [], []
    print(HELP)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return print()
        command, _, path = line.partition(" ")
        if command == "/quit":
            return
        if command == "/new":
            messages, wavs = [], []
        elif command == "/audio":
            with suppress(SystemExit):  # fail() told why
                wavs = [*wavs, hear(path.strip("'\" "))]
                print(f"{len(wavs[-1]) / SAMPLE_RATE:.1f} s: ask about it")
        elif line.startswith("/"):
            print(HELP)
        elif line:
            asked = [*messages, ("user", line, wavs)]
            with suppress(SystemExit):
                messages, wavs = [*asked, ("assistant", answer(asked), [])], []


with user_input():
    run = ckpt or default_run()
    talker = Talker(run)
wavs = []
if audio:
    wavs = [hear(audio, LONGEST_S if prompt else 600.0)]
if audio and not prompt:
    transcribe(*wavs)
elif prompt and talker.can_chat:
    answer([("user", prompt, wavs)])
elif audio:
    fail(f"{run} only transcribes: leave out --prompt")
elif prompt:
    print(prompt, end="", flush=True)
    items = [talker.tok.bos_id, *talker.tok.encode(prompt)]
    say(items, Text(talker.tok), (talker.tok.bos_id,))
elif talker.can_chat:
    chat()
else:
    fail(f"{run} holds no chat: give it --audio= to transcribe or --prompt= to continue")
