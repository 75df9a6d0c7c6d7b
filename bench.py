"""
Speed of the stages on this machine: a line for each figure, then one line of JSON.

    python bench.py                     # a minute on 2 cores
    python bench.py --audio=clip.wav    # and a live transcript of it, by a trained run

train   a step of pretraining: d4, 8 rows of 512 (CUDA: d12, 16 rows of 2048), at random
decode  64 tokens after 16, of 1, 8 and 32 rows, by a random d4 GPT
live    seconds of a pass on one thread: the slowest, and the last, which ends the transcript
words   median error of the words' times, ms, if clip.ctm (NIST) tells the true ones
"""
import json
import time
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import torch
from torch.utils.benchmark import Timer

from configurator import configure, user_input
from decode import generate
from device import peak_flops, pick_device, prefer_int8
from files import read_lines
from live import STEP, Live
from model import GPT, GPTConfig, for_inference
from optim import gpt_optimizers
from record import provenance
from recordings import read_audio
from talk import Talker, default_run

# config: set by a config file or --name=value
device = "auto"  # auto, cuda, mps, cpu
audio = ""       # a recording of speech
ckpt = ""        # the run that hears it; '': as serve.py
config = configure(globals())
# ----


def time_of(work):
    """Call work() for 2 s; return the median seconds of a call."""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=2).median


def measure_train(where):
    is_cuda = where.type == "cuda"
    depth, T, V, B, head_dim = (12, 2048, 32768, 16, 128) if is_cuda else (4, 512, 8192, 8, 64)
    gpt = GPT(GPTConfig.of_depth(depth, V, T, head_dim, "L")).to(where)
    optimizers = gpt_optimizers(gpt)
    ids = torch.randint(V, (B, T + 1), device=where)
    gpt.trunk = torch.compile(gpt.trunk)
    gpt.nll = torch.compile(gpt.nll)

    def step():
        gpt(ids[:, :-1], ids[:, 1:]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    rate = B * T / time_of(step)
    mfu = gpt.flops_per_token(T) * rate / peak_flops(where)
    return {"train.tok_s": rate, "train.mfu": mfu}


def measure_decode(where):
    gpt = for_inference(GPT(GPTConfig.of_depth(4, 4096, 256, 64, "L")).to(where))
    rates = {}
    for B in (1, 8, 32):
        prompts = torch.randint(4096, (B, 16)).tolist()
        rates[f"decode.batch_{B}"] = 64 * B / time_of(lambda: generate(gpt, prompts, max_tokens=64))
    return rates


def measure_live(where):
    """Hear the recording as serve.py does, a second at a time."""
    if not audio:
        return {}
    with user_input():
        talker = Talker(ckpt or default_run(), device)
        if not talker.ears:
            raise ValueError(f"{ckpt} takes no audio")
    torch.set_num_threads(1)
    starts = range(0, len(wav), STEP)
    for live in (Live(), Live()):  # the first warms up
        seconds = []
        for start in starts:
            began = time.perf_counter()
            live.listen(talker, wav[start:start + STEP], start == starts[-1])
            seconds.append(time.perf_counter() - began)
    times = {"live.slowest_s": max(seconds), "live.last_s": seconds[-1]}
    return times | measure_words(talker, Path(audio).with_suffix(".ctm"))


def measure_words(talker, path):
    """Compare right words with those of a CTM: name, channel, start, seconds, word."""
    if not path.exists():
        return {}
    known = [line.split() for line in read_lines(path) if line[:1] not in ("", ";")]
    off = []
    said = [word for piece in talker.transcripts(wav) for word in piece.words]
    texts = [word.text for word in said], [line[4].lower() for line in known]
    for a, b, n in SequenceMatcher(None, *texts, False).get_matching_blocks():
        for word, line in zip(said[a:a + n], known[b:b + n]):
            start, length = map(float, line[2:4])
            off.append((word.start_s - start, word.end_s - start - length))
    start_s, end_s = np.median(np.abs(off), 0) if off else (np.nan, np.nan)
    return {"words.start_ms": 1000 * start_s, "words.end_ms": 1000 * end_s}


with user_input():
    where, wav = pick_device(device), read_audio(audio) if audio else None
torch.manual_seed(0)
prefer_int8(where)  # train: fp32
result = {"dtype": provenance(where, True)["dtype"]}
for measure in (measure_train, measure_decode, measure_live):
    for name, value in measure(where).items():
        result[name] = float(f"{value:.4g}")
        print(f"{name:<22} {value:>12,.3f}")
print(json.dumps(result))
