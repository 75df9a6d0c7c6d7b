"""What every training run shares: ranks, schedule, log, checkpoints, when a run may go on or is done."""
import itertools
import json
import os
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist

from configurator import fail, user_input
from checkpoints import checkpoint_steps, read_meta
from device import pick_device
from record import changed_code

FREE = {"init_from", "max_steps", "device", "use_compile", "log_every", "eval_every", "save_every", "wandb_log",
        "workers", "recompute", "sample_tokens", "eval_rows"}  # settings that a run may change and go on


# ---- ranks and schedule

def join_ranks(device, seed):
    """Join torchrun's group if there is one, seed, choose determinism -> (rank, world_size, torch.device)."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    with user_input(RuntimeError):  # no such device, or more ranks than GPUs
        device = pick_device(device)
        if world_size > 1 and device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.manual_seed(seed)
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)  # embedding's compiled backward differs from run to run otherwise
        torch.utils.deterministic.fill_uninitialized_memory = False  # for debugging only: a fifth of a step
    return rank, world_size, device


def leave_ranks():
    """Wait for the other ranks and leave torchrun's group: gloo aborts in a rank that ends long before the others."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def lr_share(step, warmup_steps, lr_decay_steps, warmdown_share, final_lr_share):
    """Return the share of the peak learning rate: linear warm-up, constant, linear fall, final_lr_share after."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    left = (lr_decay_steps - step) / max(warmdown_share * lr_decay_steps, 1)
    return max(min(left, 1.0), final_lr_share)


def is_due(step, every, max_steps):
    """Return whether something is done after `step` steps: every so many (0: never), and at the end of the run."""
    return step == max_steps or every > 0 and step % every == 0


def read_ahead(read, numbers, workers):
    """Yield read(n) for each of the numbers, in order; `workers` threads keep four results each ready (0: none)."""
    if not workers:
        yield from map(read, numbers)
        return
    numbers, pool = iter(numbers), ThreadPoolExecutor(workers)
    try:
        waiting = deque(pool.submit(read, n) for n in itertools.islice(numbers, 4 * workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(read, n) for n in itertools.islice(numbers, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


# ---- the log and the checkpoints

def last_step(out_dir, init_from, config, inputs):
    """Return the step to go on from, 0 to start anew; auto goes on only with the same settings, inputs and code."""
    steps = checkpoint_steps(out_dir)
    if init_from == "resume" and not steps and not os.path.exists(os.path.join(out_dir, "log.jsonl")):
        fail(f"init_from=resume: {out_dir} holds no run")  # a log alone: it was killed before its first checkpoint
    if init_from not in ("scratch", "resume") and steps:
        with user_input():
            meta = read_meta(out_dir)
        if "inputs" not in meta:
            fail(f"{out_dir} holds a run of another script: give another --out_dir")
        now, then = {**config, **inputs}, {"conversations": "", **meta["user_config"], **meta["inputs"]}
        changed = [k for k in now if k not in FREE and now[k] != then.get(k, now[k])]  # new settings are as before
        old = meta["versions"].get("code")
        edited = changed_code(old or {})
        ways = ("move it aside or give another --out_dir, or --init_from=scratch to replace it, or "
                "--init_from=resume to go on all the same")
        if changed:
            fail(f"{out_dir} holds a run with other {', '.join(changed)}: {ways}")
        if edited or not old:
            what = f"{', '.join(edited)} changed since" if old else "it recorded no checksums"
            fail(f"{out_dir} holds a run of other code ({what}): {ways}")
    return steps[-1] if steps and init_from != "scratch" else 0


def stop_if_done(out_dir, step, max_steps, *files):
    """End the script when the run in out_dir is finished: evaluated at max_steps, with its last files."""
    if step < max_steps or not read_meta(out_dir).get("evaluated"):
        return
    if all(os.path.exists(os.path.join(out_dir, name)) for name in files):
        if os.environ.get("RANK", "0") == "0":
            print(f"{out_dir} is up to date: finished at step {step} (--max_steps= above it goes on)")
        leave_ranks()
        sys.exit(0)


def log(out_dir, record, formats, wandb_log=False):
    """Print a dict's fields on one line and append it to out_dir/log.jsonl: on rank 0 only."""
    if os.environ.get("RANK", "0") != "0":
        return
    print(" | ".join(f"{k} {v:{formats.get(k, '')}}" for k, v in record.items()), flush=True)
    with open(os.path.join(out_dir, "log.jsonl"), "a") as f:
        f.write(json.dumps(record) + "\n")
    if wandb_log:
        import wandb
        wandb.log(record, step=record["step"])


