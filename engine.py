"""Runs a model for many requests, in a thread beside the server's event loop.

In a turn, each answer gets a token, or a transcript gets its next piece.
"""
import asyncio
import sys
import traceback
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from live import Live
from talk import Batch, Row

PATIENCE = 8         # turns between two pieces of transcripts, while there are answers
MAX_TRANSCRIPTS = 2  # begun at once; they take turns


@dataclass(eq=False)
class Job:
    """A Row to answer, or a wav (n,) to transcribe in pieces of most_s seconds at most.

    Or a Live that goes on with wav, perhaps to its end. It goes before all others.
    events: token ids, each Piece of a transcript, or a Heard; then None or an Exception.
    """
    row: Row = None
    wav: np.ndarray = None
    most_s: float = 60.0
    live: Live = None
    is_end: bool = False
    events: asyncio.Queue = field(default_factory=asyncio.Queue)
    gone: bool = False  # nobody reads the events any more


class Engine:
    """max_batch: answers decoded together. max_queue: Jobs that may wait."""

    def __init__(self, talker, max_batch, max_queue):
        self.talker, self.max_batch, self.max_queue = talker, max_batch, max_queue
        self.n_threads = torch.get_num_threads()
        self.wake = asyncio.Event()  # there is work
        self.waiting = deque()
        self.transcripts = deque()  # (Job, its pieces)
        self.n_turns = 0
        self.reset()

    def reset(self):
        self.answers = {}  # row: Job
        self.batch = Batch(self.talker.model, self.talker.hear)

    def submit(self, job):
        """Queue a Job -> True; False: too many wait. A session has one Live at a time."""
        self.waiting = deque(job for job in self.waiting if not job.gone)
        if len(self.waiting) >= self.max_queue and not job.live:
            return False
        self.waiting.append(job)
        self.wake.set()
        return True

    async def run(self):
        """Work for ever. An error of a turn ends its answers, not the server."""
        thread = ThreadPoolExecutor(1)
        while True:
            await self.wake.wait()
            job = self.take()
            try:
                events = await asyncio.wrap_future(thread.submit(self.turn, job))
            except Exception as e:  # such as out of memory
                report(e)
                begun = [job] if job and job.row else []
                events = [(each, e) for each in {*begun, *self.answers.values()}]
                self.reset()
            for job, event in events:
                job.events.put_nowait(event)
            if not (self.waiting or self.answers or self.transcripts):
                self.wake.clear()

    def take(self):
        """Take the first Job that there is room for, a Live first -> Job or None."""
        for job in sorted(self.waiting, key=lambda job: not job.live):
            has_room = len(self.transcripts) < MAX_TRANSCRIPTS
            if job.row:
                has_room = len(self.answers) < self.max_batch
            if has_room or job.live or job.gone:
                self.waiting.remove(job)
                return job

    def turn(self, job):
        """Begin a Job (or None), then decode or transcribe, in the thread -> [(Job, event)]."""
        # for one token, threads wait longer than they work
        torch.set_num_threads(self.n_threads if job and job.row else 1)
        events = self.begin(job) if job and not job.gone else []
        torch.set_num_threads(1)
        self.n_turns += 1
        if self.transcripts and (self.n_turns % PATIENCE == 0 or not self.answers):
            return events + self.transcribe(*self.transcripts.popleft())
        return events + self.decode()

    def begin(self, job):
        """Read a Job's prompt, begin its transcript or hear its Live. An error ends it alone."""
        if job.row is None and not job.live:
            self.transcripts.append((job, self.talker.transcripts(job.wav, job.most_s)))
            return []
        try:
            if job.live:
                return [(job, job.live.listen(self.talker, job.wav, job.is_end)), (job, None)]
            self.batch.add(job.row)
        except Exception as e:
            report(e)
            return [(job, e)]
        self.answers[job.row] = job
        return []

    def decode(self):
        self.batch.drop([row for row, job in self.answers.items() if job.gone])
        said = [(self.answers[row], token, row.ended) for row, token in self.batch.step()]
        self.answers = {row: self.answers[row] for row in self.batch.rows}
        events = [(job, token) for job, token, _ in said if token is not None]
        return events + [(job, None) for job, _, ended in said if ended]

    def transcribe(self, job, pieces):
        try:
            piece = None if job.gone else next(pieces, None)
        except Exception as e:
            report(e)
            piece = e
        if isinstance(piece, tuple):
            self.transcripts.append((job, pieces))
        return [(job, piece)]


def report(e):
    """Write to stderr where an error happened, without what the request held."""
    where = "".join(traceback.format_tb(e.__traceback__))
    print(where + type(e).__name__, file=sys.stderr, flush=True)
