"""The thread that runs a model for many askers: rows decoded together, and transcripts a piece at a time between them.

Askers live in asyncio: they submit a Job and follow its events. A mistake in one costs that one alone where it can.
"""
import asyncio
import sys
import threading
import time
import traceback
from collections import deque

import torch

from talk import Batch

PATIENCE = 8        # tokens of every answer between two pieces of transcripts, which take as long
MAX_TRANSCRIPTS = 2  # at once; the others wait
FEW = 16            # answers at most that one thread decodes: several wait for each other longer than they work


class Busy(Exception):
    """The queue is full."""


class Job:
    """A Row to answer, or a wav to transcribe; `events` gets ids or pieces of text, then None, or an exception."""

    def __init__(self, row=None, wav=None):
        self.row, self.wav, self.gone, self.pieces = row, wav, False, None
        self.loop, self.events = asyncio.get_running_loop(), asyncio.Queue()

    def tell(self, event):
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the server is stopping
            self.gone = True

    async def follow(self):
        """Yield events until None; a reader that leaves frees its place at the next token."""
        try:
            while (event := await self.events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.gone = True


class Engine(threading.Thread):
    """talker: a Talker. window_s: an idle engine waits so long for requests that come together."""

    def __init__(self, talker, max_batch, max_queue, window_s, keep_bytes, beams):
        super().__init__(daemon=True)
        self.talker, self.max_batch, self.max_queue, self.window_s = talker, max_batch, max_queue, window_s
        self.n_threads = torch.get_num_threads()
        self.beams, self.wake, self.waiting, self.turns = beams, threading.Condition(), deque(), 0
        self.answers, self.transcripts = {}, deque()  # row -> Job; Jobs in turn
        self.new_batch = lambda: Batch(talker.model, talker.hear if talker.ears else None, keep_bytes)
        self.batch = self.new_batch()

    def running(self):
        return len(self.answers) + len(self.transcripts)

    def submit(self, job):
        """Let a Job wait for its turn; Busy where too many do."""
        with self.wake:
            if len(self.waiting) >= max(self.max_queue, 1):
                self.waiting = deque(job for job in self.waiting if not job.gone)
            if len(self.waiting) >= max(self.max_queue, 1):
                raise Busy(f"{len(self.waiting)} requests wait")
            self.waiting.append(job)
            self.wake.notify()

    def run(self):
        while True:
            try:
                self.turn()
            except Exception as e:  # out of memory, or a mistake of ours: these answers are lost, not the server
                report(e)
                lost, self.answers, self.batch = self.answers, {}, self.new_batch()
                for job in lost.values():
                    job.tell(e)

    def turn(self):
        """Take in what waits, then a token of every answer, and now and then a piece of a transcript."""
        with self.wake:
            self.wake.wait_for(lambda: self.waiting or self.running())
        if not self.running():
            time.sleep(self.window_s)
        for row in [row for row, job in self.answers.items() if job.gone]:
            self.batch.drop([row])
            del self.answers[row]
        torch.set_num_threads(self.n_threads)
        self.add(self.take())
        torch.set_num_threads(1 if len(self.answers) <= FEW else self.n_threads)
        for row, token in self.batch.step() if self.batch.rows else ():
            job = self.answers[row]
            if token is not None:
                job.tell(token)
            if row.ended:
                del self.answers[row]
                job.tell(None)
        self.turns += 1
        if self.transcripts and (self.turns % PATIENCE == 0 or not self.answers):
            self.transcribe(self.transcripts.popleft())

    def take(self):
        """Take from the queue, in order, what there is room for -> Jobs to answer; transcripts join theirs."""
        rows, left = [], deque()
        with self.wake:
            for job in self.waiting:
                if job.gone:
                    continue
                if job.row is None and len(self.transcripts) < MAX_TRANSCRIPTS:
                    job.pieces = self.talker.transcripts(job.wav, self.beams)
                    self.transcripts.append(job)
                elif job.row is not None and len(self.answers) + len(rows) < self.max_batch:
                    rows.append(job)
                else:
                    left.append(job)
            self.waiting = left
        return rows

    def add(self, jobs):
        """Let rows join; where together they fail, one after another, so that one alone is lost."""
        try:
            if jobs:
                self.batch.add([job.row for job in jobs])
                self.answers |= {job.row: job for job in jobs}
        except Exception as e:
            report(e)
            if len(jobs) == 1:
                return jobs[0].tell(e)
            for job in jobs:
                self.add([job])

    def transcribe(self, job):
        """A piece of a transcript; the next is another's turn."""
        try:
            piece = None if job.gone else next(job.pieces, None)
        except Exception as e:
            report(e)
            piece = e
        job.tell(piece)
        if isinstance(piece, str):
            self.transcripts.append(job)


def report(e):
    """Write where in the code a mistake happened, not what the request held."""
    print("".join(traceback.format_tb(e.__traceback__)) + type(e).__name__, file=sys.stderr, flush=True)
