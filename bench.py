"""
Speed of the stages on this machine: a line for each figure, then one line of JSON.

    python bench.py                    # all, two minutes on 2 cores
    python bench.py --only=speedrun    # how long speedrun.sh takes here

encoder   clips of 5 s to features of Whisper-base, log-mel included, a process for each core
align     a step of train_align.py: frozen d4 GPT and a projector, clips as long as LibriSpeech's
          in length-sorted batches; padding is not counted
train     a step of pretraining with the optimizers: 8 rows of 512 (CUDA: d12, 16 rows of 2048)
decode    64 tokens after 16, of 1, 8 and 32 rows, by a d4 GPT
speedrun  minutes of speedrun.sh, downloads apart, estimated from its two heaviest loads
The weights are random: speed does not depend on them. Compare figures of one machine only.
"""
import json
import os
import time

import numpy as np
import torch

from audio import Projector, WhisperEncoder, encode, n_audio_tokens
from configurator import configure, fail, user_input
from data import epoch_batches
from decode import generate
from device import compute_dtype, peak_flops, pick_device
from model import GPT, GPTConfig, for_inference
from optim import gpt_optimizers
from processes import run_all
from recordings import SAMPLE_RATE

# config: every value here can be set from a config file or as --name=value
only = ""        # comma-separated parts, named above; '': all
quick = False    # fewer repeats
device = "auto"  # auto, cuda, mps, cpu
config = configure(globals())  # prints each change
# -----------------------------------------------------------------------------
D4 = GPTConfig.of_depth(4, 4096, 256, 64, "L")
WHISPER_BASE = dict(name="random", n_mels=80, n_layer=6, n_embd=512, n_head=8)
CLIP_S = 5.0
STACK = 4            # encoder frames in an audio token
BATCH_TOKENS = 3400  # of a batch of align
SHARED = []          # [encoder, clips] of the encoder's worker processes
# of speedrun.sh, fitted to all stages in bf16 and in fp32
STEPS = 2030         # training and evaluation, in steps of 64 rows of 72
CLIPS = 12_000       # encoding, in clips of 3 s
OTHER_S = 145        # the rest: speaking, reading, starting Python


def time_of(work, choose=min):
    """Call work() for 5 s (quick: 1 s); return the least or mean seconds of all but the first."""
    times = []
    end = time.perf_counter() + (1 if quick else 5)
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return choose(times[1:])


def share(*given):
    """Give a worker process the encoder and the clips."""
    SHARED[:] = given


def encode_part(first, every):
    """Make features of every so many of the clips."""
    encoder, clips = SHARED
    encode(encoder, clips[first::every])


def measure_encoder(where):
    """Return clips a second. Comes first: a process forked after threads ran hangs in OpenMP."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    encoder = WhisperEncoder(WHISPER_BASE, compute_dtype(where)).to(where)
    n_workers = os.cpu_count()
    n = 64 if where.type == "cpu" else 512
    noise = 0.1 * np.random.default_rng(0).normal(size=(n, int(CLIP_S * SAMPLE_RATE)))
    share(encoder, list(noise.astype(np.float32)))
    if where.type == "cpu":
        jobs = [(i, n_workers) for i in range(n_workers)]
        seconds = time_of(lambda: list(run_all(encode_part, jobs, n_workers, share, SHARED)))
    else:
        seconds = time_of(lambda: encode_part(0, 1))
    torch.set_num_threads(n_threads)
    return {"clips_s": n / seconds}


def draw_lengths(n):
    """Return frames and text tokens, int64 (n,), of clips as long as LibriSpeech's."""
    rng = np.random.default_rng(0)
    is_short = rng.random(n) < 0.25
    short = rng.uniform(1.5, 11, n)
    seconds = np.where(is_short, short, np.clip(rng.normal(14.6, 1.2, n), 11, 24.5))
    texts = np.maximum(2, 3.3 * seconds * rng.normal(1, 0.12, n))
    return (50 * seconds).astype(np.int64), texts.astype(np.int64)


def measure_align(where):
    """Return tokens a second of length-sorted batches."""
    gpt = GPT(D4).to(where).requires_grad_(False)
    D = WHISPER_BASE["n_embd"]
    projector = Projector(D, 1, STACK, gpt.config.n_embd, 2048).to(where).train()
    frames, texts = draw_lengths(28_539)
    lengths = (n_audio_tokens(frames, STACK) + texts).astype(np.int32)
    batches, _ = epoch_batches(lengths.tobytes(), 0, "train", 0, 0, 0.03, BATCH_TOKENS)
    some = batches[:2 if quick else 6]

    def step(at):
        T = int(texts[at].max())
        lens = torch.from_numpy(frames[at]).to(where)
        text_lens = torch.from_numpy(texts[at]).to(where)
        idx = torch.randint(0, 4096, (len(at), T), device=where)
        targets = torch.where(torch.arange(T, device=where) < text_lens[:, None], idx, -1)
        feats = torch.zeros(len(at), int(lens.max()), 1, D, dtype=torch.float16, device=where)
        soft, soft_lens = projector(feats, lens)
        gpt(idx, targets, loss_reduction="sum", audio_features=soft, audio_lens=soft_lens,
            text_lens=text_lens).backward()
        projector.zero_grad()

    seconds = time_of(lambda: [step(at) for at in some])
    return {"tok_s": sum(int(lengths[at].sum()) for at in some) / seconds}


def make_step(gpt, ids):
    """Return a function that trains a GPT by a step on ids, int64 (B, T + 1)."""
    optimizers = gpt_optimizers(gpt)

    def step():
        gpt(ids[:, :-1], ids[:, 1:]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def measure_train(where):
    """Return tokens a second and the share of the machine's peak."""
    is_cuda = where.type == "cuda"
    T, V, B, n_layer, n_embd = (2048, 32768, 16, 12, 768) if is_cuda else (512, 8192, 8, 4, 128)
    n_head = n_embd // (128 if is_cuda else 64)
    gpt = GPT(GPTConfig(T, V, n_layer, n_head, n_head, n_embd, "L")).to(where)
    step = make_step(gpt, torch.randint(V, (B, T + 1), device=where))
    gpt.trunk = torch.compile(gpt.trunk)
    gpt.nll = torch.compile(gpt.nll)
    step()  # compiles
    rate = B * T / time_of(step)
    return {"tok_s": rate, "mfu": gpt.flops_per_token(T) * rate / peak_flops(where)}


def measure_decode(where):
    """Return tokens a second for 1, 8 and 32 rows."""
    gpt = for_inference(GPT(D4).to(where))
    rates = {}
    for B in (1, 8, 32):
        prompts = torch.randint(4096, (B, 16)).tolist()
        rates[f"batch_{B}"] = 64 * B / time_of(lambda: list(generate(gpt, prompts, max_tokens=64)))
    return rates


def measure_speedrun(where):
    """Return an estimate of the minutes of speedrun.sh."""
    step = make_step(GPT(D4).to(where), torch.randint(4096, (64, 73), device=where))
    encoder = WhisperEncoder(WHISPER_BASE, compute_dtype(where)).to(where)
    clips = list(np.random.default_rng(0).normal(size=(8, 48_000)).astype(np.float32))
    step_s = time_of(step, np.mean)
    clip_s = time_of(lambda: encode(encoder, clips), np.mean) / len(clips)
    return {"minutes": (STEPS * step_s + CLIPS * clip_s + OTHER_S) / 60}


def main():
    parts = {"encoder": measure_encoder, "align": measure_align, "train": measure_train,
             "decode": measure_decode, "speedrun": measure_speedrun}
    chosen = [part.strip() for part in only.split(",") if part.strip()] or list(parts)
    if set(chosen) - set(parts):
        fail(f"{only=} names {', '.join(parts)}")
    with user_input():
        where = pick_device(device)
    torch.manual_seed(0)
    result = {"dtype": str(compute_dtype(where))}
    for part in parts:
        figures = parts[part](where) if part in chosen else {}
        for name, value in figures.items():
            result[f"{part}.{name}"] = float(f"{value:.4g}")
            print(f"{part + '.' + name:<22} {value:>12,.3f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
