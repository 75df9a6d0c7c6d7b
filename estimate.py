"""How many minutes speedrun.sh takes here, from ten seconds of its two heaviest loads.

    python estimate.py

Times a training step (a d4 GPT, 64 rows of 72 positions) and Whisper-base's encoder (clips of 3 s).
STEPS and CLIPS were fitted to all stages, timed in bf16 and in fp32.
"""
import time

import numpy as np
import torch

from audio import WhisperEncoder, encode
from configurator import user_input
from device import compute_dtype, pick_device
from model import GPT, GPTConfig
from optim import gpt_optimizers

STEPS = 2030    # training and evaluation of all stages, in steps as timed here
CLIPS = 12_000  # encoding of all stages, in clips as timed here
OTHER_S = 145   # the rest: speaking, reading, starting Python
WHISPER_BASE = dict(name="random", n_mels=80, n_layer=6, n_embd=512, n_head=8)


def seconds_a_call(work, budget_s):
    """Call work() once, then for budget_s seconds; return the mean seconds of the later calls."""
    work()
    began = time.perf_counter()
    n = 0
    while time.perf_counter() < began + budget_s:
        work()
        n += 1
    return (time.perf_counter() - began) / n


def main():
    with user_input():
        device = pick_device("auto")
    gpt = GPT(GPTConfig.of_depth(4, 4096, 256, 64, "L")).to(device)
    optimizers = gpt_optimizers(gpt)
    ids = torch.randint(4096, (64, 73), device=device)

    def step():
        gpt(ids[:, :-1], ids[:, 1:]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    encoder = WhisperEncoder(WHISPER_BASE, compute_dtype(device)).to(device)
    clips = list(np.random.default_rng(0).normal(size=(8, 48_000)).astype(np.float32))
    step_s = seconds_a_call(step, 5)
    clip_s = seconds_a_call(lambda: encode(encoder, clips), 4) / len(clips)
    minutes = (STEPS * step_s + CLIPS * clip_s + OTHER_S) / 60
    print(f"estimate: about {minutes:.0f} minutes ({device}, {compute_dtype(device)}: a training "
          f"step {step_s:.2f} s, a clip {1e3 * clip_s:.0f} ms); downloads apart")


if __name__ == "__main__":
    main()
