"""OpenAI's realtime transcription over a WebSocket: events in and out, and where speech is.

Sound comes as base64 of 16-bit samples, mono, at 24 kHz. Both spellings are taken: today's and the
beta's (transcription_session.update, conversation.item.created). With
"item.input_audio_transcription.open" in a session's include, an event of that name tells the words
that are not settled yet.
"""
import asyncio
import base64
import json
import time
import uuid
from collections import deque
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from api import Refused, as_refused
from engine import Job
from live import Live
from recordings import SAMPLE_RATE
from voice import Voice, spare

RATE = 24_000         # Hz, of the sound that comes
STEP_S = 1.0          # of new sound for a pass
MAX_PASS_S = 10.0     # of new sound in a pass: other requests wait for it
MAX_WAITING_S = 30.0  # of sound that the model has not heard: no more is read meanwhile
MAX_SESSION_S = 3600  # OpenAI's own limit
TRANSCRIPTION = "conversation.item.input_audio_transcription"
OPEN = "item.input_audio_transcription.open"
NOT_HEARD = "commit has less than 0.1 s of sound, or, with server_vad, no speech"


# --- what a client sends
def without_none(given):
    return {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else given


class Detection(BaseModel):
    type: Literal["server_vad"]
    threshold: float = Field(0.5, ge=0, le=1, allow_inf_nan=False)
    prefix_padding_ms: int = Field(300, ge=0, le=5000)
    silence_duration_ms: int = Field(500, ge=100, le=10_000)


AnyDetection = Annotated[Detection, BeforeValidator(without_none)]


class Format(BaseModel):
    type: Literal["audio/pcm"]
    rate: Literal[24_000] = RATE


class Transcription(BaseModel):
    model: str | None = None
    language: str | None = None
    prompt: str | None = None


class Input(BaseModel):
    format: Format | None = None
    transcription: Transcription | None = None
    turn_detection: AnyDetection | None = None


class Audio(BaseModel):
    input: Input = Input()


class Settings(BaseModel):
    """Of a session; the last three are the beta's."""
    type: Literal["transcription"] = "transcription"
    audio: Audio = Audio()
    include: list[str] | None = None
    input_audio_format: Literal["pcm16"] | None = None
    input_audio_transcription: Transcription | None = None
    turn_detection: AnyDetection | None = None


class Update(BaseModel):
    type: Literal["session.update", "transcription_session.update"]
    session: Settings


class Append(BaseModel):
    type: Literal["input_audio_buffer.append"]
    audio: str


class Plain(BaseModel):
    type: Literal["input_audio_buffer.commit", "input_audio_buffer.clear"]


EVENTS = TypeAdapter(Annotated[Update | Append | Plain, Field(discriminator="type")])


def parse(text, max_bytes):
    """Read the JSON of a message; or Refused."""
    if len(text) > max_bytes:
        raise Refused(413, f"a message of more than {max_bytes / 1e6:g} MB")
    try:
        return from_json(text)
    except ValueError as e:
        raise Refused(400, f"a message is JSON, as text: {e}") from None


def as_event(given):
    try:
        return EVENTS.validate_python(given)
    except ValidationError as e:
        first = e.errors()[0]
        place = first["loc"][1:] or ("type",)  # without the type's name
        raise as_refused([first | {"loc": place}]) from None


def read_samples(audio):
    """Decode base64 -> float32 (n,) at 24 kHz; or Refused."""
    try:
        data = base64.b64decode(audio, validate=True)
    except ValueError as e:
        raise Refused(400, f"audio is no base64: {e}", "audio") from None
    if len(data) % 2:
        raise Refused(400, "audio is samples of 16 bits: its bytes are an even number", "audio")
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768


# --- a session
class Item:
    """Sound that becomes one transcript."""

    def __init__(self):
        self.id = f"item_{uuid.uuid4().hex[:24]}"
        self.live = Live()
        self.waiting = []  # parts that the model has not heard
        self.n_waiting = self.n_all = 0  # samples
        self.has_pause = self.is_over = self.is_gone = self.is_told = False
        self.open = ""

    def add(self, wav):
        if not self.is_gone:
            self.waiting.append(wav)
            self.n_waiting += len(wav)
            self.n_all += len(wav)
            self.has_pause = False

    def is_due(self):
        least = 1 if self.has_pause else STEP_S * SAMPLE_RATE
        return self.is_over or self.n_waiting >= least

    def take(self):
        """Take what the model hears next -> a Job."""
        wav = np.concatenate([np.zeros(0, np.float32), *self.waiting])
        n = int(MAX_PASS_S * SAMPLE_RATE)
        self.waiting = [wav[n:]]
        self.n_waiting = len(wav[n:])
        then = "end" if self.is_over else "pause"
        is_more = self.n_waiting or not (self.is_over or self.has_pause)
        return Job(wav=wav[:n], live=self.live, then="more" if is_more else then)


class Session:
    """A client's WebSocket. most_s: without a message; then it is closed."""

    def __init__(self, socket, engine, most_s, max_bytes):
        self.socket, self.engine, self.most_s, self.max_bytes = socket, engine, most_s, max_bytes
        hints = socket.headers.get("openai-beta", ""), *socket.scope["subprotocols"]
        self.is_beta = any("realtime" in hint and "v1" in hint for hint in hints)
        self.id, self.ends = f"sess_{uuid.uuid4().hex[:24]}", time.time() + MAX_SESSION_S
        self.space = engine.talker.language.space
        self.detection, self.transcription = Detection(type="server_vad"), Transcription()
        self.tells_open = False
        self.items, self.item, self.last_id, self.job = deque(), None, None, None
        self.more = asyncio.Event()  # to hear
        self.n_heard = 0  # samples at 16 kHz
        self.voice = None
        self.restart()

    async def run(self):
        """Answer until the client goes away, or its time is over."""
        kind = "transcription_session.created" if self.is_beta else "session.created"
        await self.send(kind, session=self.shown())
        tasks = [asyncio.create_task(self.read()), asyncio.create_task(self.work())]
        try:
            done, _ = await asyncio.wait(tasks, timeout=MAX_SESSION_S,
                                         return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if not done:
                over = Refused(400, f"a session lasts {MAX_SESSION_S} s", code="session_expired")
                await self.send("error", error=over.error)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            if self.job:
                self.job.gone = True
            self.restart()

    async def send(self, kind, **fields):
        event = {"type": kind, "event_id": f"event_{uuid.uuid4().hex[:24]}", **fields}
        async with asyncio.timeout(self.most_s):  # a client that does not read
            await self.socket.send_text(json.dumps(event))

    def shown(self):
        """Return the session as its events show it."""
        detection = self.detection and self.detection.model_dump()
        transcription = self.transcription.model_dump(exclude_none=True)
        shown = {"id": self.id, "object": "realtime.transcription_session",
                 "type": "transcription", "expires_at": int(self.ends)}
        if self.is_beta:
            return shown | {"input_audio_format": "pcm16", "turn_detection": detection,
                            "input_audio_transcription": transcription}
        return shown | {"audio": {"input": {
            "format": {"type": "audio/pcm", "rate": RATE}, "transcription": transcription,
            "noise_reduction": None, "turn_detection": detection}}}

    async def read(self):
        """Read messages, but only as fast as the model hears."""
        while True:
            while sum(item.n_waiting for item in self.items) > MAX_WAITING_S * SAMPLE_RATE:
                await asyncio.sleep(0.05)
            async with asyncio.timeout(self.most_s):
                message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            await self.answer(message.get("text") or "")

    async def answer(self, text):
        given = {}
        try:
            given = await asyncio.to_thread(parse, text, self.max_bytes)
            await self.obey(as_event(given))
        except Refused as e:
            found = given.get("event_id") if isinstance(given, dict) else None
            found = found if isinstance(found, str) else None
            await self.send("error", error=e.error | {"event_id": found})

    async def obey(self, event):
        if isinstance(event, Update):
            await self.update(event)
        elif isinstance(event, Append):
            wav = await asyncio.to_thread(read_samples, event.audio)
            await self.hear(self.resampler.resample_chunk(wav))
        elif event.type == "input_audio_buffer.commit":
            if self.item and not self.voice:
                self.item.add(self.resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            if not self.item or self.item.n_all < SAMPLE_RATE // 10:
                raise Refused(400, NOT_HEARD, code="input_audio_buffer_commit_empty")
            self.restart()
            await self.end_item()
        else:
            self.drop()
            self.restart()
            await self.send("input_audio_buffer.cleared")

    async def update(self, event):
        self.is_beta = self.is_beta or event.type == "transcription_session.update"
        given = event.session
        for source, name in ((given.audio.input, "transcription"),
                             (given, "input_audio_transcription")):
            self.transcription = getattr(source, name) or self.transcription
            if "turn_detection" in source.model_fields_set:
                self.detection = source.turn_detection
        self.tells_open = OPEN in (given.include or [])
        self.restart()
        await self.send(f"{event.type}d", session=self.shown())

    def restart(self):
        """Begin with a new resampler and detector of speech."""
        import soxr
        self.resampler = soxr.ResampleStream(RATE, SAMPLE_RATE, 1, dtype="float32")
        if self.voice:
            spare.append(self.voice.model)
        self.voice = None

    async def hear(self, wav):
        """Hear what follows, float32 (n,) at 16 kHz."""
        found = [("sound", wav)]
        if self.detection:
            try:
                self.voice = self.voice or Voice(self.detection, self.n_heard)
            except ImportError as e:
                raise Refused(501, f"{e}: pip install it, or let turn_detection be null") from None
            found = await asyncio.to_thread(self.voice.hear, wav)
        self.n_heard += len(wav)
        for what, value in found:
            if what == "pause" and self.item:
                self.item.has_pause = True
            if what in ("start", "sound") and not self.item:
                self.item = Item()
                self.items.append(self.item)
            if what == "start":
                await self.send("input_audio_buffer.speech_started", item_id=self.item.id,
                                audio_start_ms=value * 1000 // SAMPLE_RATE)
            if what == "sound":
                self.item.add(value)
            if what == "stop":
                await self.send("input_audio_buffer.speech_stopped", item_id=self.item.id,
                                audio_end_ms=value * 1000 // SAMPLE_RATE)
                await self.end_item()
        self.more.set()

    async def end_item(self):
        item, self.item = self.item, None
        item.is_over = True
        self.more.set()
        before, self.last_id = self.last_id, item.id
        await self.send("input_audio_buffer.committed", item_id=item.id, previous_item_id=before)
        part = {"type": "input_audio", "transcript": None}
        shown = {"id": item.id, "object": "realtime.item", "type": "message", "role": "user",
                 "status": "completed", "content": [part]}
        for name in ["created"] if self.is_beta else ["added", "done"]:
            await self.send(f"conversation.item.{name}", previous_item_id=before, item=shown)

    def drop(self):
        """Forget the sound that is not committed."""
        if self.item:
            self.item.is_gone = True
            self.items.remove(self.item)
            self.item = None

    async def work(self):
        """Let the model hear the items, one after another."""
        while True:
            item = self.items[0] if self.items else None
            if not (item and item.is_due()):
                self.more.clear()
                await self.more.wait()
                continue
            self.job = item.take()
            self.engine.submit(self.job)
            heard = await self.job.events.get()
            if not item.is_gone:
                await self.tell(item, heard)

    async def tell(self, item, heard):
        """Send what a pass found in an item."""
        fields = {"item_id": item.id, "content_index": 0}
        if isinstance(heard, Exception):
            self.items.remove(item)
            item.is_gone = True
            error = Refused(500, "the server failed on this sound").error
            return await self.send(f"{TRANSCRIPTION}.failed", **fields, error=error)
        delta = self.space.join(heard.settled)
        if delta:
            delta = self.space * item.is_told + delta
            item.is_told = True
            await self.send(f"{TRANSCRIPTION}.delta", **fields, delta=delta)
        if self.tells_open and (heard.open != item.open or delta):
            item.open = heard.open
            await self.send(f"{TRANSCRIPTION}.open", **fields, text=self.space.join(heard.open))
        if heard.text is not None:
            self.items.remove(item)
            usage = {"type": "duration", "seconds": round(item.n_all / SAMPLE_RATE, 2)}
            await self.send(f"{TRANSCRIPTION}.completed", **fields, transcript=heard.text,
                            usage=usage)
