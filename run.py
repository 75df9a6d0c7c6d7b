"""What all training runs share: ranks, reading ahead, clock, log."""
import itertools
import json
import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves

from configurator import user_input
from device import pick_device

BUCKET = 6_000_000  # gradients in one all_reduce
FORMATS = {  # of the log's line; log.jsonl keeps every digit
    "step": "6d", "lr": ".2e", "norm": ".2f", "ms": ".0f", "tok/s": ",.0f",
    "mfu": ".1%", "eta_min": ".1f", "val_acc": ".1%", "val_right": ".1%",
    "val_wer": ".3f", "val_ppl_word": ".2f"}  # other floats: .4f


# ---- ranks

def join_ranks(device, seed):
    """Join torchrun's group, if any, and seed -> (rank, world_size, torch.device)."""
    is_launched = "RANK" in os.environ
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    with user_input(RuntimeError):  # no such device, or more ranks than GPUs
        device = pick_device(device)
        if is_launched and device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
    if is_launched:
        cuda = device if device.type == "cuda" else None  # gloo sees that a rank has left
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", device_id=cuda,
                                timeout=timedelta(hours=2))  # rank 0 may save that long
    torch.manual_seed(seed)
    if device.type == "cpu":  # else the gradient of an embedding differs from run to run
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # it takes a fifth of a step
    return rank, world_size, device


def sum_over_ranks(tensor):
    if dist.is_initialized():
        dist.all_reduce(tensor)


def sum_gradients(params):
    """Sum gradients over ranks; one without adds zeros -> the parameters that have gradients.

    Not DistributedDataParallel: it wants one forward and backward pass a step on each rank. Here a
    rank has several, through parts of the model, or none.
    """
    n_ranks = torch.tensor([float(p.grad is not None) for p in params])
    sum_over_ranks(n_ranks)
    params = [p for p, n in zip(params, n_ranks.tolist()) if n]
    shared = params if dist.is_initialized() else ()
    ends = itertools.accumulate(p.numel() for p in shared)
    for _, bucket in itertools.groupby(shared, lambda p: next(ends) // BUCKET):
        bucket = list(bucket)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        for p, grad in zip(bucket, flat.split([p.numel() for p in bucket])):
            p.grad = grad.view_as(p)
    return params


def copy_first_rank(*states):
    """Set all tensors of states to the first rank's: other GPUs draw other weights."""
    gather(None)  # all loaded
    for tensor in tree_leaves(states) if dist.is_initialized() else ():
        dist.broadcast(tensor.data, 0)


def gather(value):
    """Return [each rank's value]; exits if another rank has stopped and said why."""
    values = [value]
    if dist.is_initialized():
        values *= dist.get_world_size()
        try:
            dist.all_gather_object(values, value)
        except RuntimeError:  # its connection is closed
            raise SystemExit(2)
    return values


def leave_ranks():
    """Leave the group when all ranks are done: gloo aborts where one leaves early."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


# ---- reading, clock, log

def read_ahead(read, numbers, workers):
    """Yield read(n) for each number, in order; `workers` threads read up to 4 each ahead."""
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


class Clock:
    def __init__(self, first_step, max_steps):
        self.first_step, self.lap_step, self.max_steps = first_step, first_step, max_steps
        self.began = self.lap_began = time.time()

    def lap(self, step):
        """Return seconds without pauses and steps since the last lap, and minutes to the end."""
        now = time.time()
        seconds, n_steps = now - self.lap_began, step - self.lap_step
        self.lap_began, self.lap_step = now, step
        a_step = (now - self.began) / (step - self.first_step)
        return seconds, n_steps, a_step * (self.max_steps - step) / 60

    @contextmanager
    def pause(self):
        """Leave a with block out of the lap."""
        began = time.time()
        yield
        self.lap_began += time.time() - began

    def closing_line(self, out_dir):
        minutes = (time.time() - self.began) / 60
        last = max(self.max_steps, self.first_step)
        return f"{last - self.first_step} steps, {minutes:.1f} minutes, {out_dir} at {last}"


def log(out_dir, record):
    fields = []
    for name, value in record.items():
        default = ".4f" if isinstance(value, float) else ""
        fields.append(f"{name} {value:{FORMATS.get(name, default)}}")
    print(" | ".join(fields), flush=True)
    with open(f"{out_dir}/log.jsonl", "a") as f:
        f.write(json.dumps(record) + "\n")
