"""Worker processes: forked on Linux, elsewhere (fork is not safe on macOS) a new Python each.

A script that uses this module has a main guard, and its workers' functions are at its top level.
"""
import ctypes
import os
import signal
import sys
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import get_context


def run_all(function, jobs, n_workers=0, set_up=None, arguments=(), chunksize=1, start=""):
    """Yield function(*job) of each job in order, made by n_workers processes (0: one a core).

    set_up(*arguments) begins each worker. start: "fork", "spawn" (CUDA's need), "":
    NANOCHAT_OMNI_START or the system's. A worker's error is raised here. OSError: it was killed.
    """
    usual = "fork" if sys.platform == "linux" else "spawn"
    start = start or os.environ.get("NANOCHAT_OMNI_START") or usual
    n_workers = min(n_workers or os.cpu_count(), len(jobs)) or 1
    with ProcessPoolExecutor(n_workers, get_context(start), begin, (set_up, arguments)) as pool:
        try:
            yield from pool.map(function, *zip(*jobs), chunksize=chunksize)
        except BrokenExecutor:
            raise OSError("a worker was killed (out of memory?): set fewer workers") from None


def begin(set_up, arguments):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the parent
    if set_up:
        set_up(*arguments)
