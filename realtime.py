"""OpenAI's realtime transcription over a WebSocket.

Sound comes in base64: 16-bit samples, mono, 24 kHz. The event OPEN, with the words that may still
change, is ours: it is sent if the session's include names it.
"""
import asyncio
import base64
import json
import uuid
from functools import partial
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from api import Refused, as_refused
from engine import Job
from live import Live, Voice
from recordings import SAMPLE_RATE

RATE = 24_000         # Hz
MAX_WAITING_S = 30.0  # of sound not yet heard: no more is read meanwhile
MAX_SESSION_S = 3600  # OpenAI's own limit
TRANSCRIPTION = "conversation.item.input_audio_transcription"
OPEN = f"{TRANSCRIPTION}.open"


# --- what a client sends
class Detection(BaseModel):
    type: Literal["server_vad"]
    threshold: float = Field(0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(300, ge=0, le=5000)
    silence_duration_ms: int = Field(500, ge=100, le=10_000)


class Format(BaseModel):
    type: Literal["audio/pcm"]
    rate: Literal[24_000] = RATE


class Input(BaseModel):
    format: Format | None = None
    transcription: dict | None = None
    turn_detection: Detection | None = None


class Audio(BaseModel):
    input: Input = Input()


class Settings(BaseModel):
    type: Literal["transcription"] = "transcription"
    audio: Audio = Audio()
    include: list[str] | None = None


class Event(BaseModel):
    type: Literal["session.update", "input_audio_buffer.append", "input_audio_buffer.commit",
                  "input_audio_buffer.clear"]
    session: Settings = Settings()  # of an update
    audio: str = ""                 # of an append


def parse(text, max_bytes):
    if len(text) > max_bytes:
        raise Refused(413, f"a message of more than {max_bytes / 1e6:g} MB")
    try:
        return from_json(text)
    except ValueError as e:
        raise Refused(400, f"a message is JSON, as text: {e}") from None


def read_samples(audio):
    """Decode base64 -> float32 (n,) at 24 kHz; or Refused."""
    try:
        return np.frombuffer(base64.b64decode(audio, validate=True), "<i2") / np.float32(32768)
    except ValueError as e:
        raise Refused(400, f"audio is no base64 of 16-bit samples: {e}", "audio") from None


# --- a session
async def run_until_one_ends(*works, most_s=None):
    """Run coroutines until one ends, or most_s seconds; raise its error."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, timeout=most_s, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Session:
    """A client's WebSocket. It ends after most_s seconds without a message, or in a send."""

    def __init__(self, socket, engine, most_s, max_bytes):
        self.socket, self.engine, self.most_s, self.max_bytes = socket, engine, most_s, max_bytes
        self.id = f"sess_{uuid.uuid4().hex}"
        self.detection, self.transcription = Detection(type="server_vad"), {}
        self.tells_open = False
        self.items = []  # Lives not yet transcribed
        self.item = self.last_id = None
        self.more = asyncio.Event()  # to hear
        self.n_heard = 0  # samples at 16 kHz
        self.restart()

    def restart(self):
        """Begin with a new resampler and detector of speech."""
        import soxr
        self.resampler = soxr.ResampleStream(RATE, SAMPLE_RATE, 1, dtype="float32")
        self.voice = None

    async def run(self):
        """Answer until the client is gone. TimeoutError: it does not read."""
        await self.send("session.created", session=self.shown())
        await run_until_one_ends(self.read(), self.work(), most_s=MAX_SESSION_S)

    async def send(self, kind, **fields):
        event = {"type": kind, "event_id": f"event_{uuid.uuid4().hex}", **fields}
        async with asyncio.timeout(self.most_s):
            await self.socket.send_text(json.dumps(event))

    def shown(self):
        shown = {"format": {"type": "audio/pcm", "rate": RATE}, "transcription": self.transcription,
                 "turn_detection": self.detection and self.detection.model_dump()}
        return {"id": self.id, "object": "realtime.transcription_session", "type": "transcription",
                "audio": {"input": shown}}

    async def read(self):
        """Obey messages, as fast as the model hears."""
        while True:
            while sum(item.n_waiting for item in self.items) > MAX_WAITING_S * SAMPLE_RATE:
                await asyncio.sleep(0.05)
            try:
                message = await asyncio.wait_for(self.socket.receive(), self.most_s)
            except TimeoutError:
                return
            if message["type"] == "websocket.disconnect":
                return
            given = None
            try:
                given = await asyncio.to_thread(parse, message.get("text") or "", self.max_bytes)
                await self.obey(given)
            except Refused as e:
                cause = given.get("event_id") if isinstance(given, dict) else None
                await self.send("error", error=e.error | {"event_id": cause})

    async def obey(self, given):
        try:
            event = Event.model_validate(given)
        except ValidationError as e:
            raise as_refused(e) from None
        kind = event.type.rpartition(".")[2]
        if kind == "update":
            await self.update(event.session)
        elif kind == "append":
            wav = await asyncio.to_thread(read_samples, event.audio)
            wav = await asyncio.to_thread(self.resampler.resample_chunk, wav)
            await self.hear(wav)
        elif kind == "commit":
            if self.item and not self.detection:
                self.item.add(self.resampler.resample_chunk(np.zeros(0, np.float32), last=True))
                self.restart()  # it takes no more
            if not self.item or self.item.n_all < SAMPLE_RATE // 10:
                raise Refused(400, "nothing to commit: less than 0.1 s of sound, or no speech",
                              code="input_audio_buffer_commit_empty")
            self.restart()
            await self.commit()
        else:
            self.forget(self.item)
            self.item = None
            self.restart()
            await self.send("input_audio_buffer.cleared")

    async def update(self, given):
        asked = given.audio.input
        if "turn_detection" in asked.model_fields_set:
            if self.item:
                await self.commit()
            self.detection = asked.turn_detection
            self.restart()
        self.transcription = asked.transcription or self.transcription
        if given.include is not None:
            self.tells_open = OPEN in given.include
        await self.send("session.updated", session=self.shown())

    async def hear(self, wav):
        """Hear what follows, float32 (n,) at 16 kHz: with a detector, only speech."""
        found = [("sound", wav)]
        if self.detection:
            if not self.voice:
                self.voice = await asyncio.to_thread(Voice, self.detection, self.n_heard)
            found = await asyncio.to_thread(self.voice.hear, wav)
        self.n_heard += len(wav)
        for what, value in found:
            if not self.item:
                self.item = Live(f"item_{uuid.uuid4().hex}")
                self.items.append(self.item)
            if what == "sound":
                self.item.add(value)
            elif what == "pause":
                self.item.has_pause = True
            else:
                await self.send(f"input_audio_buffer.{what}", item_id=self.item.id, **value)
            if what == "speech_stopped":
                await self.commit()
        self.more.set()

    async def commit(self):
        item, self.item = self.item, None
        item.is_over = True
        self.more.set()
        last_id, self.last_id = self.last_id, item.id
        await self.send("input_audio_buffer.committed", item_id=item.id, previous_item_id=last_id)

    def forget(self, item):
        self.items = [other for other in self.items if other is not item]
        if item:
            item.is_gone = True

    async def work(self):
        """Let the model hear the items, one after another."""
        while True:
            while not (self.items and self.items[0].is_due()):
                self.more.clear()
                await self.more.wait()
            item = self.items[0]
            listen = partial(item.listen, self.engine.talker, *item.take())
            job = Job(work=listen, is_live=True)
            self.engine.submit(job)
            try:
                heard = await job.events.get()
            finally:
                job.gone = True
            if not item.is_gone:
                await self.tell(item, heard)

    async def tell(self, item, heard):
        ids = {"item_id": item.id, "content_index": 0}
        if isinstance(heard, Exception):
            self.forget(item)
            error = Refused(500, "the server failed on this sound").error
            return await self.send(f"{TRANSCRIPTION}.failed", **ids, error=error)
        space = self.engine.talker.language.space
        if heard.settled:
            await self.send(f"{TRANSCRIPTION}.delta", **ids,
                            delta=space.join([*heard.settled, ""]))
        if self.tells_open:
            await self.send(OPEN, **ids, text=space.join(heard.open))
        if heard.all is not None:
            self.forget(item)
            usage = {"type": "duration", "seconds": round(item.n_all / SAMPLE_RATE, 2)}
            await self.send(f"{TRANSCRIPTION}.completed", **ids, usage=usage,
                            transcript=space.join(heard.all))
