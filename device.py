"""The device of a run: which one, the dtype it computes in, how memory is kept, its peak speed."""
import ctypes
import functools
import math
import os
import re
import sys
import time

import torch

PEAK_TFLOPS = {  # dense bf16 with fp32 sums, of the makers' data sheets
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125,
    "RTX 5090": 210, "RTX 4090": 165, "RTX 3090": 71}


@functools.lru_cache
def compute_dtype(device):
    """Return the dtype of matmuls and activations on a device ("cpu", "cuda" or "mps", or a torch.device).

    NANOCHAT_DTYPE decides where it is set; else bf16 where the device has instructions for it, fp32 where it has not:
    a CPU without them takes 55 times as long for a product in bf16 as in fp32.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    name, kind = os.environ.get("NANOCHAT_DTYPE", ""), torch.device(device).type
    if name and name not in names:
        raise ValueError(f"NANOCHAT_DTYPE={name} is unknown: use one of {', '.join(names)}")
    if name:
        return names[name]
    if kind == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    elif kind == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        has_bf16 = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    else:
        has_bf16 = False
    return torch.bfloat16 if has_bf16 else torch.float32


def pick_device(device):
    """Turn 'auto', 'cuda', 'mps' or 'cpu' (keep_freed_memory() too) into a torch.device, or ValueError."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = device.split(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind):
        have = ", ".join(["auto", *(k for k in there if there[k])])
        raise ValueError(f"device={device} is not on this machine: use one of {have}")
    if kind == "cpu":
        keep_freed_memory()
    compute_dtype(device)  # a wrong NANOCHAT_DTYPE stops here
    return torch.device(device)


def peak_flops(device):
    """Operations a second that a device could do in its dtype: by a GPU's name, else those of a large matmul."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = next((1e12 * tera for key, tera in PEAK_TFLOPS.items() if re.search(rf"\b{key}\b", name)), None)
    if known and compute_dtype(device) == torch.bfloat16:
        return known
    n, best = 1024 if device.type == "cpu" else 8192, math.inf
    a = torch.randn(n, n, device=device).to(compute_dtype(device))
    for _ in range(8):
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for it
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def keep_freed_memory():
    """Let glibc keep what a tensor frees: given back, the kernel zeroes it for the next (2026-11: a step 1.7x).

    And let oneDNN keep fewer kernels: 1,024 of them, one for every shape, grow past 0.4 GB a process (2026-11).
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for a large tensor
        libc.mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD, bytes: the heap shrinks when so much is free
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # pages of 2 MB; torch reads it at its first tensor
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")  # no slower in features
