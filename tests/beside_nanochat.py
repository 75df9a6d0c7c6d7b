"""Learning per token beside nanochat's: its GPT and optimizer, and ours, on the same rows -> bits per byte.

    python tests/beside_nanochat.py --nanochat=../nanochat --documents=data/books_tokens --seeds=3   # a JSON line a run

Both: bf16 where the CPU has it, compiled, 8 rows of 512 a step, warm-up 40, warm-down 65%, the same rows in the same
order. nanochat's rates, momenta and weight decay are its base_train.py's (2026-07); with --scaled its rates are scaled
to the small batch by (4096 / 2**19) ** 0.5, as that script does. Ours are train_base.py's of config/cpu_books.py.
"""
import argparse
import json
import math
import resource
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from documents import Documents  # noqa: E402
from device import keep_freed_memory  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402
from optim import gpt_optimizers  # noqa: E402
from tokenizer import load_tokenizer  # noqa: E402

B, T, HEAD = 8, 512, 64


def share(step, steps):
    """Of the peak rate: linear warm-up, constant, linear warm-down to 5%."""
    left = (steps - step) / round(0.65 * steps)
    return (step + 1) / 40 if step < 40 else 1.0 if left >= 1 else left + (1 - left) * 0.05


def make_ours(V, depth, C):
    """-> model, function that takes a step of its optimizers."""
    model = GPT(GPTConfig(T, V, depth, C // HEAD, C // HEAD, C, "L"))
    optimizers = gpt_optimizers(model)
    for group in (group for o in optimizers for group in o.param_groups):
        group["peak_lr"] = group["lr"]
    model.trunk, model.nll = torch.compile(model.trunk), torch.compile(model.nll)

    def update(step, steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * share(step, steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return model, update


def make_theirs(V, depth, C, scaled):
    """-> nanochat's model, function that takes a step of its optimizer with its schedules."""
    from nanochat.gpt import GPT, GPTConfig
    build = lambda depth, C: GPT(GPTConfig(T, V, depth, C // HEAD, C // HEAD, C, "L"))
    with torch.device("meta"):
        model, d12 = build(depth, C), build(12, 768)
    model.to_empty(device="cpu")
    model.init_weights()
    size = lambda m: sum(m.num_scaling_params()[key] for key in ("transformer_matrices", "lm_head"))
    root = (B * T / 2**19) ** 0.5
    decay, rate = 0.28 * root * size(d12) / size(model), root if scaled else 1.0
    optimizer = model.setup_optimizer(unembedding_lr=0.008 * rate, embedding_lr=0.3 * rate, scalar_lr=0.5 * rate,
                                      matrix_lr=0.02 * rate, weight_decay=decay)

    def update(step, steps):
        left = (steps - step) / round(0.65 * steps)
        momentum = 0.85 + 0.12 * step / 400 if step < 400 else 0.97 if left >= 1 else 0.97 * left + 0.90 * (1 - left)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share(step, steps)
            if group["kind"] == "muon":
                group["momentum"] = momentum
                group["weight_decay"] = decay * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.step()
        model.zero_grad(set_to_none=True)
    return torch.compile(model, dynamic=False), update


def run(options, which, seed):
    """Train one and print its bits per byte on the held-out rows; special tokens don't count."""
    sys.path.insert(1, options.nanochat)
    keep_freed_memory()
    torch.manual_seed(seed)
    tok = load_tokenizer(options.documents)
    train, val = (Documents(options.documents, split, T + 1) for split in ("train", "val"))
    model, update = (make_ours(tok.vocab_size, options.depth, options.n_embd) if which == "ours" else
                     make_theirs(tok.vocab_size, options.depth, options.n_embd, options.scaled))
    began, sizes, nats, n_bytes = time.time(), torch.tensor(tok.token_bytes()), 0.0, 0
    cut = lambda rows: (torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy()))
    for step in range(options.steps):
        model(*cut(train.batch(step, B, seed))).backward()
        update(step, options.steps)
    seconds = time.time() - began
    with torch.no_grad():
        for i in range(0, val.n_rows - B + 1, B):
            x, y = cut(val.rows(range(i, i + B)))
            n = sizes[y.flatten()]
            nats += float((model(x, y, loss_reduction="none").flatten() * (n > 0)).sum())
            n_bytes += int(n.sum())
    print(json.dumps({"which": which, "seed": seed, "depth": options.depth, "n_embd": options.n_embd,
                      "vocabulary": tok.vocab_size, "tokens": options.steps * B * T,
                      "bits_per_byte": round(nats / n_bytes / math.log(2), 4), "seconds": round(seconds),
                      "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind, default in (("nanochat", str, ""), ("documents", str, "data/books_tokens"), ("seeds", int, 3),
                                ("depth", int, 4), ("n_embd", int, 256), ("steps", int, 488)):
        parser.add_argument(f"--{name}", type=kind, default=default)
    parser.add_argument("--scaled", action="store_true")
    given = parser.parse_args()
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a process a run, for its memory
        for number in range(given.seeds):
            for name in ("ours", "nanochat") if given.nanochat else ("ours",):
                pool.apply(run, (given, name, number))
