"""Worker processes that work alike everywhere: forked on Linux, elsewhere each a new Python that loads the script.

Fork shares the parent's memory and starts at once, but is not safe on macOS and is no longer Python 3.14's default.
A script that uses this module has a main guard, and its workers' functions are at its top level.
"""
import ctypes
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context


def context():
    """The multiprocessing context: fork on Linux, else spawn; NANOCHAT_OMNI_START names another."""
    return get_context(os.environ.get("NANOCHAT_OMNI_START") or ("fork" if sys.platform == "linux" else "spawn"))


def begin(set_up, arguments):
    """Begin a worker: Ctrl-C is left to the parent, and on Linux the worker ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if set_up:
        set_up(*arguments)


def run_all(function, jobs, n_workers, set_up=None, arguments=(), chunksize=1):
    """Yield function(*job) of each job in order, made by n_workers processes (0: one for each core).

    set_up(*arguments) begins each worker. An error of a worker is raised here and cancels the jobs that have not
    begun; OSError: a worker was killed.
    """
    n_workers = min(n_workers or os.cpu_count(), len(jobs)) or 1
    with ProcessPoolExecutor(n_workers, context(), begin, (set_up, arguments)) as pool:
        try:
            yield from pool.map(function, *zip(*jobs), chunksize=chunksize)
        except BrokenProcessPool:
            raise OSError("a worker was killed (out of memory?): lower workers or batch_size and run again") from None
