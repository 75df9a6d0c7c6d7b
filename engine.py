"""Runs a model for many requests, in a thread beside the server's event loop.

In a turn, each answer gets a token, or a transcript gets its next piece.
"""
import asyncio
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from talk import Batch, Row

PATIENCE = 8         # turns between two pieces of transcripts, while there are answers
MAX_TRANSCRIPTS = 2  # begun at once; they take turns


@dataclass(eq=False)
class Job:
    """A Row to answer, or work: each call returns the next Piece of a transcript, at its end None.

    is_live: work is a Live's pass instead. It is done once, as soon as may be.
    events: token ids, or what work returns; then None or an Exception.
    """
    row: Row = None
    work: callable = None
    is_live: bool = False
    events: asyncio.Queue = field(default_factory=asyncio.Queue)
    gone: bool = False  # nobody reads the events any more


class Engine:
    """max_batch: answers decoded together. max_queue: Jobs that may wait."""

    def __init__(self, talker, max_batch, max_queue):
        self.talker, self.max_batch, self.max_queue = talker, max_batch, max_queue
        self.n_threads = torch.get_num_threads()
        self.wake = asyncio.Event()  # there is work
        self.waiting = []
        self.transcripts = []
        self.n_turns, self.was_live = 0, False
        self.reset()

    def reset(self):
        self.answers = {}  # row: Job
        self.batch = Batch(self.talker.model, self.talker.hear)

    def submit(self, job):
        """Queue a Job -> True; False: too many wait. A session has one Live at a time."""
        self.waiting = [job for job in self.waiting if not job.gone]
        if len(self.waiting) >= self.max_queue and not job.is_live:
            return False
        self.waiting.append(job)
        self.wake.set()
        return True

    async def run(self):
        thread = ThreadPoolExecutor(1)
        while True:
            await self.wake.wait()
            turn = thread.submit(self.turn, self.take())
            for job, event in await asyncio.wrap_future(turn):
                job.events.put_nowait(event)
            if not (self.waiting or self.answers or self.transcripts):
                self.wake.clear()

    def take(self):
        """Take the first Job that there is room for, a Live's and another by turns; or None."""
        for job in sorted(self.waiting, key=lambda job: job.is_live == self.was_live):
            has_room = len(self.transcripts) < MAX_TRANSCRIPTS
            if job.row:
                has_room = len(self.answers) < self.max_batch
            if has_room or job.is_live or job.gone:
                self.waiting.remove(job)
                self.was_live = job.is_live
                return job

    def turn(self, job):
        """Begin a Job (or None), then decode or transcribe, in the thread -> [(Job, event)]."""
        # for one token, threads wait longer than they work
        torch.set_num_threads(self.n_threads if job and job.row else 1)
        events = self.begin(job) if job and not job.gone else []
        torch.set_num_threads(1)
        self.n_turns += 1
        if self.transcripts and (self.n_turns % PATIENCE == 0 or not self.answers):
            return events + self.transcribe(self.transcripts.pop(0))
        return events + self.decode()

    def begin(self, job):
        """Read a Job's prompt, do a Live's pass or begin a transcript. An error ends it alone."""
        if job.is_live:
            return [(job, attempt(job.work))]
        if job.work:
            self.transcripts.append(job)
            return []
        if error := attempt(self.batch.add, job.row):
            return [(job, error)]
        self.answers[job.row] = job
        return []

    def decode(self):
        """Give each answer a token. An error, such as out of memory, ends these answers alone."""
        jobs = self.answers
        error = attempt(self.batch.drop, [row for row, job in jobs.items() if job.gone])
        said = error or attempt(self.batch.step)
        if isinstance(said, Exception):
            self.reset()
            return [(job, said) for job in jobs.values()]
        self.answers = {row: jobs[row] for row in self.batch.rows}
        return [(jobs[row], token) for row, token in said]

    def transcribe(self, job):
        piece = None if job.gone else attempt(job.work)
        if isinstance(piece, tuple):
            self.transcripts.append(job)
        return [(job, piece)]


def attempt(work, *args):
    """Return work(*args), or the Exception that it raises, reported."""
    try:
        return work(*args)
    except Exception as e:
        report(e)
        return e


def report(e):
    """Write to stderr where an error happened, without what the request held."""
    traceback.print_tb(e.__traceback__)
    print(type(e).__name__, file=sys.stderr, flush=True)
