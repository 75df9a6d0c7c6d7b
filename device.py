"""The device of a run: its choice, the dtype it computes in, its memory, its peak speed."""
import ctypes
import functools
import os
import re
import sys

import torch
from torch.utils.benchmark import Timer

from files import read_toml

INT8 = "avx512_vnni"  # without it torch takes 30 times as long for int8 as for fp32


@functools.lru_cache
def compute_dtype(device):
    """Return the dtype of matmuls and activations on a device (str or torch.device).

    NANOCHAT_DTYPE (int8: fp32 but for inference's matmuls), or bf16 if the device has instructions
    for it (a CPU without them takes 55 times as long as in fp32).
    """
    if name := os.environ.get("NANOCHAT_DTYPE"):
        known = ["float32", "bfloat16"] + ["int8"] * has(device, INT8)
        if name not in known:
            raise ValueError(f"NANOCHAT_DTYPE={name}: {device} takes one of {', '.join(known)}")
        return torch.float32 if name == "int8" else getattr(torch, name)
    has_bf16 = has(device, "amx_bf16", "avx512_bf16")
    if torch.device(device).type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if has_bf16 else torch.float32


def has(device, *instructions):
    """Tell whether it is a CPU with one of these instructions."""
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.device(device).type == "cpu" and any(map(able.get, instructions))


def prefer_int8(device):
    """Let this process infer in int8 where that is fast and bf16 is not."""
    if compute_dtype(device) == torch.float32 and has(device, INT8):
        os.environ.setdefault("NANOCHAT_DTYPE", "int8")


def uses_int8():
    return os.environ.get("NANOCHAT_DTYPE") == "int8"


def pick_device(device):
    """Turn 'auto', 'cuda', 'mps' or 'cpu' into a torch.device; ValueError: it is not there."""
    have = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    have.append("cpu")
    device = have[0] if device == "auto" else device
    kind = device.split(":")[0]
    if kind not in have:
        raise ValueError(f"device={device} is not on this machine: use one of auto, "
                         f"{', '.join(have)}")
    if kind == "cpu":
        keep_freed_memory()
    elif kind == "cuda":  # cuDNN's attention takes up to a second for each new shape
        torch.backends.cuda.enable_cudnn_sdp(False)
    compute_dtype(device)  # a wrong NANOCHAT_DTYPE stops here
    return torch.device(device)


def peak_flops(device):
    """Return a device's peak operations a second, by a GPU's name, else timed in a matmul."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = [tera for word, tera in read_toml("assets/gpus.toml").items()
             if re.search(rf"\b{word}\b", name)]
    if known and compute_dtype(device) == torch.bfloat16:
        return 1e12 * known[0]
    n = 1024 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(compute_dtype(device))
    timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
    return 2 * n**3 / min(timer.blocked_autorange(min_run_time=1).times)


def keep_freed_memory():
    """Let glibc keep the memory of freed tensors: a step is 1.7 times as fast.

    And let oneDNN keep 128 compiled shapes: its 1,024 take 0.4 GB a process.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for a large tensor
        libc.mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD, bytes free before the heap shrinks
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # pages of 2 MB; read at the first tensor
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
