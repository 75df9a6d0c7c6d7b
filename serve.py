"""
Serve a run: a web page with a microphone at /, and OpenAI's API under /v1.

    python serve.py --ckpt=out/cpu_w3                                        # then open http://127.0.0.1:8000
    python serve.py --ckpt=out/cpu_w3 --host=0.0.0.0 --api_key=a-long-secret

One process: requests that wait are read and decoded together, each joining and leaving between tokens. What a request
holds stays in memory; logs have no content; a web page of another origin, or a host name it made up, is refused.
"""
import asyncio
import base64
import errno
import hmac
import ipaddress
import json
import logging
import os
import re
import socket
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from configurator import configure, fail

# config: every value here can be set from a config file or as --name=value
ckpt = "out/cpu_w3"       # the run's folder
step = -1                 # which checkpoint of it; -1: the last, -2: the best
host = "127.0.0.1"        # the address to listen at; 0.0.0.0: anyone who reaches this machine may ask
port = 8000               # 0: any free one
api_key = ""              # asked for as a bearer token; '': the environment variable NANOCHAT_API_KEY, if it is set
allow_hosts = ""          # comma-separated names besides localhost and addresses by which this server may be called
max_batch = 16            # answers decoded together
window_ms = 4.0           # an idle server waits so long for requests that come together
max_queue = 64            # requests that wait; one more is told that the server is busy
max_body_mb = 25.0        # of a request
max_audio_s = 30.0        # of a message's recordings together
max_transcript_s = 600.0  # of a recording to transcribe
max_tokens = 256          # of an answer, however many a request wants
request_timeout_s = 120.0
cache_mb = 256            # of conversations' keys and values, kept for their next turn; the oldest go first
temperature = 0.0         # where a request names none; 0: the likeliest token
beams = 5                 # of a transcript
question = "answer the question"  # to a recording that comes without words
device = "auto"           # auto, cuda, mps, cpu
config = configure(globals())  # prints each change
# -----------------------------------------------------------------------------
if min(max_batch, max_tokens) < 1 or min(window_ms, max_queue, cache_mb, temperature) < 0 or not 0 <= port <= 65535 or (
        min(max_body_mb, max_audio_s, max_transcript_s, request_timeout_s) <= 0) or beams < 1:
    fail("max_batch, max_tokens, beams are 1 or more; window_ms, max_queue, cache_mb, temperature 0 or more; port 0 to "
         "65535; max_body_mb, max_audio_s, max_transcript_s and request_timeout_s above 0")
try:
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
    from pydantic import BaseModel, BeforeValidator, FailFast, Field, ValidationError
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import create_form_parser
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as e:
    fail(f"{e}: pip install -r requirements.txt, or source .venv/bin/activate, where speedrun.sh has put it")
from audio import SAMPLE_RATE
from recordings import TooLong, read_audio
from engine import Busy, Engine, Job, report
from talk import Batch, Row, Talker, Text, joined, size

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # its warnings quote the request
PAGE = Path(__file__).with_name("chat.html").read_text(encoding="utf-8")
POLICY = ("default-src 'none'; script-src 'unsafe-inline' blob:; worker-src blob:; style-src 'unsafe-inline'; "
          "img-src data:; media-src blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
          "form-action 'none'")
LENGTH = "context_length_exceeded"
MAX_FORM_PARTS = 33  # a file and 32 fields


class Refused(Exception):
    """A request that gets an error: status and what OpenAI's errors hold."""

    def __init__(self, status, message, param=None, code=None):
        self.status, self.message, self.param, self.code = status, message, param, code

    def response(self):
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: "server_error",
                500: "server_error"}.get(self.status, "invalid_request_error")
        headers = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(self.status)
        return JSONResponse({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}},
                            self.status, headers)


# ---- what a request may say

class Sound(BaseModel):
    data: str  # base64 or a data: URI
    format: str | None = None  # not used: the bytes say what they are


class Part(BaseModel):
    type: Literal["text", "input_audio"]
    text: str = ""
    input_audio: Sound | None = None


def as_parts(content):
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def as_list(stop):
    return [stop] if isinstance(stop, str) else stop


# A string becomes a list before it is checked: in a union an error may name the wrong branch.
Parts = Annotated[list[Part], Field(max_length=64), BeforeValidator(as_parts)]
StopString = Annotated[str, Field(max_length=256)]
Stop = Annotated[list[StopString], Field(max_length=4), BeforeValidator(as_list)]


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Parts | None = None


class StreamOptions(BaseModel):
    include_usage: bool | None = False


class ResponseFormat(BaseModel):
    type: Literal["text"]


class ChatRequest(BaseModel):
    """What is read of OpenAI's request; what would change an answer and can't be done is refused, the rest ignored."""
    model: str = ""
    messages: Annotated[list[Message], FailFast(), Field(min_length=1, max_length=1000)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: Stop | None = None
    seed: int | None = Field(None, ge=-2**63, lt=2**63)
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    tools: list | None = Field(None, max_length=0)
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    response_format: ResponseFormat | None = None
    logit_bias: Annotated[dict, Field(max_length=0)] | None = None


@dataclass
class Turn:
    """What one speaker says in a row."""
    role: str  # 'user' or 'assistant'
    texts: list = field(default_factory=list)
    wavs: list = field(default_factory=list)
    has_system: bool = False  # a system message is among the texts
    has_question: bool = False  # a user's text is among them

    def message(self):
        """-> (role, text, Recording or None)."""
        default = [question] if self.wavs and not self.has_question else []
        between = "\n\n" if self.has_system else "\n"
        text = between.join(filter(None, self.texts + default))
        return self.role, text, talker.record(joined(self.wavs)) if self.wavs else None


def decode(data, most_s, param):
    """A file's bytes -> float32 (n,) at 16 kHz, or Refused."""
    try:
        return read_audio(data, most_s)
    except TooLong as e:
        raise Refused(413, str(e), param, "audio_too_long") from None
    except ValueError as e:
        raise Refused(400, str(e), param, "invalid_audio") from None


def decode_base64(data, most_s, param):
    """Base64, with line ends or as a data: URI -> float32 (n,) at 16 kHz, or Refused."""
    data = data.translate(dict.fromkeys(map(ord, " \t\r\n")))
    if data[:5].lower() == "data:":
        head, _, data = data.partition(",")
        if not head.lower().endswith(";base64"):
            raise Refused(400, "a data: URI of a sound has ;base64, before its data", param)
    try:
        data = base64.b64decode(data, validate=True)
    except ValueError as e:
        raise Refused(400, f"data is neither base64 nor a data: URI: {e}", param) from None
    return decode(data, most_s, param)


def read_turns(messages):
    """Messages -> [Turn], user and assistant in turn, or Refused; a system joins the user's words."""
    turns, left_s = [], talker.limit * talker.projector.stack / 50 if talker.ears else 0.0
    for i, message in enumerate(messages):
        role = "assistant" if message.role == "assistant" else "user"
        before = turns[-1].role if turns else "assistant"
        if role == before == "assistant":
            wrong = f"message {i} is the assistant's: one of the user's comes before it"
            raise Refused(400, wrong, f"messages.{i}")
        if role != before:
            turns.append(Turn(role))
        left_s -= read_message(message, turns[-1], left_s, f"messages.{i}.content")
    if turns[-1].role != "user":
        raise Refused(400, "the last message is the user's", "messages")
    return turns


def read_message(message, turn, left_s, param):
    """Add a Message to its Turn -> seconds of its recordings, at most left_s; or Refused."""
    had_s = heard_s = sum(map(len, turn.wavs)) / SAMPLE_RATE
    for i, part in enumerate(message.content or []):
        is_sound = part.type == "input_audio"
        if is_sound != bool(part.input_audio) or is_sound and message.role != "user":
            raise Refused(400, "input_audio belongs to a user's part of type input_audio", f"{param}.{i}")
        if is_sound:
            most_s = min(left_s + had_s, max_audio_s) - heard_s
            at = f"{param}.{i}.input_audio.data"
            wav = decode_base64(part.input_audio.data, max(most_s, 0.0), at)
            turn.wavs.append(wav)
            heard_s += len(wav) / SAMPLE_RATE
    turn.texts.append("\n".join(part.text for part in message.content or [] if part.text))
    turn.has_system |= message.role in ("system", "developer")
    turn.has_question |= message.role == "user" and turn.texts[-1] != ""
    return heard_s - had_s


def make_row(ask):
    """A ChatRequest -> Row, or Refused."""
    parts = chain.from_iterable(message.content or [] for message in ask.messages)
    if not talker.ears and any(part.type == "input_audio" for part in parts):
        raise Refused(400, f"{name} takes no audio", "messages")
    if not talker.can_chat:
        raise Refused(400, f"{name} only transcribes: use /v1/audio/transcriptions, or serve a run of train_sft.py")
    messages = [turn.message() for turn in read_turns(ask.messages)]
    too_long = f"more than the model's {talker.limit} tokens: begin a new conversation", "messages", LENGTH
    if sum(len(text) for _, text, _ in messages) > 50 * talker.limit:  # more than any tokens: don't even count them
        raise Refused(400, *too_long)
    try:
        prompt = talker.prompt(messages)
    except ValueError as e:
        raise Refused(400, str(e), "messages") from None
    room = talker.limit - size(prompt)
    if room < 1:
        raise Refused(400, *too_long)
    wanted = ask.max_completion_tokens or ask.max_tokens or max_tokens
    warmth = temperature if ask.temperature is None else ask.temperature
    return Row(prompt, min(wanted, max_tokens, room), warmth if warmth > 1e-3 else 0.0,
               top_p=max(ask.top_p or 1.0, 1e-6), presence_penalty=ask.presence_penalty or 0.0,
               frequency_penalty=ask.frequency_penalty or 0.0, stop_ids=talker.stop_ids(),
               seed=int.from_bytes(os.urandom(7)) if ask.seed is None else ask.seed)


def read_form(content_type, body):
    """A multipart body -> {name: bytes} of its parts, with a filename or without; or Refused."""
    parts = []

    def keep(part):
        if len(parts) == MAX_FORM_PARTS:
            raise Refused(400, f"the form has more than {MAX_FORM_PARTS} parts")
        value = part.file_object.getvalue() if hasattr(part, "file_object") else part.value
        parts.append(((part.field_name or b"").decode("latin1"), value))

    in_memory = {"MAX_MEMORY_FILE_SIZE": float("inf")}  # an upload is never written to disk
    try:
        parser = create_form_parser({"Content-Type": content_type}, keep, keep, in_memory)
        parser.write(body)
        parser.finalize()
    except FormParserError as e:
        raise Refused(400, f"the form can't be read: {e}") from None
    n_files = sum(part_name == "file" for part_name, _ in parts)
    if n_files != 1:
        raise Refused(400, f"the form has {n_files} parts named file: send one", "file")
    return dict(parts)


def read_upload(content_type, body):
    """A transcription's form -> (float32 (n,) at 16 kHz, 'json' or 'text'), or Refused."""
    form = read_form(content_type, body)
    if form.get("stream", b"").lower() in (b"true", b"1"):
        raise Refused(400, "a transcript comes in one piece: leave stream out", "stream")
    kind = form.get("response_format", b"").lower() or b"json"
    if kind not in (b"json", b"text"):
        raise Refused(400, "response_format is json or text", "response_format")
    return decode(form["file"], max_transcript_s, "file"), kind.decode()


# ---- following an answer

async def follow(job):
    """A job's events, what fails as Refused."""
    try:
        async for event in job.follow():
            yield event
    except Exception:  # reported by the engine
        raise Refused(500, "the server failed on this request; others may do better") from None


async def unless_gone(request, work):
    """Await work, cancelled when the client goes away."""
    async def leave():
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(leave())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise Refused(499, "the client went away")
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


# ---- the API

class Guard:
    """Around every request: who may ask, how much and how long; and a line of log without content."""

    def __init__(self, app):
        self.app, self.active = app, 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status, got, began, method = 0, 0, time.time(), scope["method"]
        path = re.sub("/+", "/", scope["path"]).rstrip("/") or "/"  # a redirect may lose the body
        scope = scope | {"path": path}
        if method == "HEAD":
            scope["method"] = "GET"  # uvicorn leaves out the body

        async def counted():
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > max_body_mb * 1e6:
                raise Refused(413, f"a body of more than {max_body_mb:g} MB", code="body_too_large")
            return message

        async def noted(message):
            nonlocal status
            status = message.get("status", status)
            await send(message)

        is_post = method == "POST"
        self.active += is_post
        try:
            async with asyncio.timeout(request_timeout_s):
                self.check(scope, {k.decode("latin1"): v.decode("latin1") for k, v in scope["headers"]})
                await self.app(scope, counted, noted)
        except Exception as e:
            if isinstance(e, TimeoutError):
                e = Refused(408, f"not done in {request_timeout_s:g} s", code="timeout")
            elif not isinstance(e, Refused):  # a mistake of ours
                report(e)
                e = Refused(500, "a mistake of this server")
            if status:  # an answer has begun: the connection ends here
                raise ConnectionError(e.message) from None
            await e.response()(scope, receive, send)
            status = e.status
        finally:
            self.active -= is_post
            path = path if path in PATHS else "(no such path)"
            clock, took = time.strftime("%H:%M:%S"), time.time() - began
            print(f"{clock} {method[:8]} {path} {status} {took:.3f} s", flush=True)

    def check(self, scope, headers):
        """Refused unless Host, Origin, key, length and the number of requests at once are in order."""
        called = headers.get("host", "")
        if not is_own_name(called):
            if found := re.fullmatch(r"([a-z0-9.-]{1,80})(:\d+)?", called, re.I):
                names = ",".join(filter(None, (allow_hosts, found[1])))
                print(f"refused the host name {found[1]}: if it is this machine's, "
                      f"--allow_hosts={names}", flush=True)
            raise Refused(403, f"this server is not called {called[:80]!r}: see --allow_hosts", code="host")
        own = (f"http://{called}".lower(), f"https://{called}".lower())
        if headers.get("origin", own[0]).lower() not in own:
            raise Refused(403, "a web page of another origin may not ask here", code="origin")
        given = headers.get("authorization", "").encode("latin1", "replace")
        scheme, _, key = given.partition(b" ")
        has_key = scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), KEY.encode())
        if KEY and not has_key and scope["path"] not in ("/", "/health"):
            raise Refused(401, "this server asks for its key: Authorization: Bearer ...", code="invalid_api_key")
        if headers.get("content-length", "").isdigit() and int(headers["content-length"][:18]) > max_body_mb * 1e6:
            raise Refused(413, f"a body of more than {max_body_mb:g} MB", code="body_too_large")
        if scope["method"] == "POST" and self.active > max_queue + max_batch:
            raise Refused(503, f"the server is busy: {self.active} requests are open", code="busy")


class Connection(H11Protocol):
    """Closes when no request has come for request_timeout_s: headers that never end take a place too."""

    def connection_made(self, transport):
        super().connection_made(transport)
        self.look()

    def look(self, last=True):
        if self.cycle is last and (last is None or last.response_complete):
            return self.transport.close()
        self.watch = self.loop.call_later(request_timeout_s, self.look, self.cycle)

    def connection_lost(self, exc):
        self.watch.cancel()
        super().connection_lost(exc)


def is_own_name(called):
    """True for localhost, an address and allow_hosts; a name that a foreign page makes up to get here is none."""
    try:
        at = urlsplit("//" + called).hostname or ""
        allowed = ["localhost", *(x.strip().lower() for x in allow_hosts.split(",") if x.strip())]
        return at in allowed or bool(ipaddress.ip_address(at))
    except ValueError:
        return False


def no_route(request, e):
    """The answer where no address, or no method of it, fits."""
    addresses = f": what there is: {', '.join(sorted(PATHS))}" if e.status_code == 404 else ""
    return Refused(e.status_code, f"{e.detail}{addresses}").response()


app = FastAPI(title="nanochat-omni", openapi_url=None, redirect_slashes=False)
app.add_middleware(Guard)
app.add_exception_handler(Refused, lambda request, e: e.response())
app.add_exception_handler(HTTPException, no_route)
app.add_exception_handler(Busy, lambda request, e: Refused(503, f"the server is busy: {e}", code="busy").response())
app.add_exception_handler(ClientDisconnect, lambda request, e: Refused(499, "the client went away").response())
decoders = asyncio.Semaphore(4)  # recordings decoded at once


@app.get("/")
async def page():
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"})


@app.get("/health")
async def health():
    return {"status": "ok", "model": name, "running": engine.running(), "waiting": len(engine.waiting),
            "max_audio_s": max_audio_s, "can_chat": talker.can_chat}


@app.get("/v1/models")
async def models():
    one = {"id": name, "object": "model", "created": started, "owned_by": "nanochat-omni"}
    return {"object": "list", "data": [one]}


@app.get("/v1/models/{model:path}")
async def one_model(model: str):
    if model != name:
        raise Refused(404, f"the model here is {name}", "model", "model_not_found")
    return (await models())["data"][0]


async def read_chat(request):
    """-> (ChatRequest, Row) of a request, or Refused."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Refused(415, "the body is JSON, with Content-Type: application/json")
    body = await request.body()  # before a place among the decoders: it may be slow to come
    async with decoders:
        try:
            asked = await run_in_threadpool(ChatRequest.model_validate_json, body)
        except ValidationError as e:
            first = e.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise Refused(400, f"{place or 'body'}: {first['msg']}", place or None) from None
        return asked, await run_in_threadpool(make_row, asked)


@app.post("/v1/chat/completions")
async def chat(request: Request):
    ask, row = await read_chat(request)
    job = Job(row)
    engine.submit(job)
    text, said = Text(talker.tok, talker.plain, ask.stop or []), follow(job)
    usage = lambda: {"prompt_tokens": size(row.prompt), "completion_tokens": len(text.ids),
                     "total_tokens": size(row.prompt) + len(text.ids)}
    reason = lambda: "stop" if text.stopped else row.ended
    base = {"id": "chatcmpl-" + uuid.uuid4().hex, "created": int(time.time()), "model": name}

    async def deltas():
        """Pieces of text, the last one when the answer has ended."""
        async for token in said:
            if new := text.add(token):
                yield new
            if text.stopped:
                break
        await said.aclose()
        yield text.add()

    if not ask.stream:
        content = "".join(await unless_gone(request, gathered(deltas())))
        choice = {"index": 0, "message": {"role": "assistant", "content": content, "refusal": None}, "logprobs": None,
                  "finish_reason": reason()}
        return {**base, "object": "chat.completion", "choices": [choice], "usage": usage()}

    pieces = deltas()
    first = await unless_gone(request, anext(pieces))  # what goes wrong before it is an error with its status
    with_usage = bool(ask.stream_options and ask.stream_options.include_usage)

    async def events():
        def event(choices, **more):
            more = {"usage": None} | more if with_usage else more
            chunk = base | {"object": "chat.completion.chunk", "choices": choices} | more
            return f"data: {json.dumps(chunk)}\n\n"

        delta = lambda said, why=None: event([{"index": 0, "delta": said, "logprobs": None, "finish_reason": why}])
        try:
            yield delta({"role": "assistant", "content": first})
            async for piece in pieces:
                yield delta({"content": piece}) if piece else ""
            yield delta({}, reason())
            if with_usage:
                yield event([], usage=usage())
            yield "data: [DONE]\n\n"
        except Refused as e:
            yield f"data: {e.response().body.decode()}\n\n"
        finally:
            job.gone = True

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def gathered(events):
    return [event async for event in events]


@app.post("/v1/audio/transcriptions")
async def transcriptions(request: Request):
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refused(415, "the body is a form, with Content-Type: multipart/form-data")
    if not talker.ears:
        raise Refused(400, f"{name} takes no audio", "file")
    body = await request.body()  # before a place among the decoders: it may be slow to come
    async with decoders:
        wav, kind = await run_in_threadpool(read_upload, request.headers["content-type"], body)
    job = Job(wav=wav)
    engine.submit(job)
    text = " ".join(piece for piece in await unless_gone(request, gathered(follow(job))) if piece)
    return {"text": text} if kind == "json" else PlainTextResponse(text + "\n")


def warm_up():
    """Answer and transcribe noise, alone and together, so that the first request finds everything in place."""
    import numpy as np
    wav = np.random.default_rng(0).normal(0, 0.01, 5 * SAMPLE_RATE).astype("float32")
    sound = talker.record(wav) if talker.ears else None
    batch = Batch(talker.model, talker.hear if talker.ears else None)
    for n in (1, 2, max_batch) if talker.can_chat else ():
        batch.add([Row(talker.prompt([("user", question, sound)]), 4) for _ in range(n)])
        while batch.rows:
            batch.step()
    if talker.ears:
        list(talker.transcripts(wav, beams))


def listen():
    """-> a socket that listens at host and port; while it was only bound, another could be too."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=1024, dualstack_ipv6=both)
    except OSError as e:
        hints = {errno.EADDRINUSE: "is another server there? --port= sets another one",
                 errno.EACCES: "ports below 1024 need root: --port= sets another one"}
        hint = hints.get(e.errno, "no address of this machine")
        fail(f"host={host} port={port}: {str(e.strerror).partition(' (')[0]}: {hint}")


def main(sock):
    """Warm up, say where it is, serve until Ctrl-C."""
    warm_up()
    engine.start()
    address, number = sock.getsockname()[:2]
    at = f"[{host}]" if ":" in host else host
    at = "127.0.0.1" if host in ("0.0.0.0", "::") else at
    print(f"{name} (step {talker.step}, {talker.device}): open http://{at}:{number} in a browser",
          flush=True)
    if not ipaddress.ip_address(address).is_loopback:
        print(f"host={host}: anyone who reaches this machine " + ("and has the key can use it" if KEY else
              "can use it, and no key is asked for: set --api_key= or NANOCHAT_API_KEY") + "; by a name it answers "
              "where --allow_hosts= has it; a browser gives its microphone to https or localhost alone", flush=True)
    server = uvicorn.Server(uvicorn.Config(
        app, http=Connection, log_level="critical", access_log=False, timeout_graceful_shutdown=3, server_header=False,
        limit_concurrency=4 * (max_queue + max_batch)))
    with suppress(KeyboardInterrupt):
        server.run(sockets=[sock])


if __name__ == "__main__":
    KEY = api_key or os.environ.get("NANOCHAT_API_KEY", "")
    listening = listen()  # before minutes of loading
    try:
        talker = Talker(ckpt, step, device)
    except (ValueError, OSError) as e:
        fail(e)
    except KeyboardInterrupt:
        sys.exit(130)
    if not (talker.ears or talker.can_chat):
        fail(f"{ckpt} neither hears nor chats: give a run of train_sft.py, train_align.py, or train_base.py "
             "--conversations= (chat.py --prompt= continues a text)")
    name, started = os.path.basename(os.path.normpath(ckpt)), int(time.time())
    PATHS = {"/", "/health", "/v1/models", f"/v1/models/{name}", "/v1/chat/completions", "/v1/audio/transcriptions"}
    engine = Engine(talker, max_batch, max_queue, window_ms / 1e3, int(cache_mb * 2**20), beams)
    with suppress(KeyboardInterrupt):
        main(listening)
