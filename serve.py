"""
Serve a run: a web page with a microphone at /, and OpenAI's API under /v1.

    python serve.py --ckpt=out/cpu_w3                       # then open http://127.0.0.1:8000
    python serve.py --ckpt=out/cpu_w3 --host=0.0.0.0 --api_key=a-long-secret

Sounds, texts and keys of a request are never written to the disk or the log.
"""
import asyncio
import hmac
import json
import os
import re
import signal
import socket
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from configurator import configure, fail, user_input

# config: set by a config file or --name=value
ckpt = ""            # the run's folder; '': out/cpu_w3, or else the model in pretrained/
host = "127.0.0.1"   # the IPv4 address to listen at; 0.0.0.0: all of this machine's
port = 8000          # 0: any free one
api_key = ""         # clients' bearer token; '': the environment's NANOCHAT_API_KEY, if it is set
allow_hosts = ""     # comma-separated names of this server besides localhost and addresses
allow_origins = ""   # comma-separated origins of other web pages that may ask; "*": of any
max_batch = 16       # answers decoded together; four times as many requests may wait
max_tokens = 256     # of an answer, however many a request wants
max_body_mb = 25.0   # of a request
request_timeout_s = 120.0
config = configure(globals())
# ----
if min(max_batch, max_tokens, max_body_mb, request_timeout_s) <= 0 or not 0 <= port <= 65535:
    fail("max_batch, max_tokens, max_body_mb and request_timeout_s are more than 0, port is 0 to "
         "65535")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends without a traceback
try:  # before the model is loaded
    listening = socket.create_server((host, port), backlog=1024)
except OSError as e:
    fail(f"host={host} port={port}: {e.strerror}: no address of this machine, "
         "or another server is there")
try:
    import uvicorn
    from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
    from starlette.exceptions import HTTPException
    from starlette.middleware.cors import CORSMiddleware
    from starlette.requests import ClientDisconnect, HTTPConnection

    from api import (FORMATS, MAX_AUDIO_S, SEGMENT_S, ChatRequest, Refused, ResponsesRequest,
                     as_refused, make_row, read_upload, write_transcript)
    from realtime import Session, run_until_one_ends
    from responses import Answer, Response
except ImportError as e:
    fail(f"{e}: source .venv/bin/activate")
from engine import Engine, Job, report
from files import own_file, read_lines
from record import need
from talk import Talker, default_run

POLICY = ("default-src 'none'; script-src 'unsafe-inline' blob:; worker-src blob:; style-src "
          "'unsafe-inline'; img-src data:; media-src data:; connect-src 'self'; frame-ancestors "
          "'none'; base-uri 'none'; form-action 'none'")
HOSTS, ORIGINS = (re.findall(r"[^\s,]+", x.lower()) for x in (allow_hosts, allow_origins))
KEY = (api_key or os.environ.get("NANOCHAT_API_KEY", "")).encode()

need("websockets")  # uvicorn's
need("silero_vad")  # imported late: it sets torch's threads to one
with user_input():
    run = ckpt or default_run()
    talker = Talker(run)
if not (talker.ears or talker.can_chat):
    fail(f"{run} neither hears nor chats: chat.py --prompt= continues a text")
name = os.path.basename(os.path.normpath(run))
about = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "nanochat-omni"}
if talker.ears:
    talker.write([np.zeros(16_000, np.float32)], [])  # or the first request takes 1.5 s longer
engine = Engine(talker, max_batch, 4 * max_batch)
readers = asyncio.Semaphore(4)  # requests whose recordings are decoded at once
NAMES = ["localhost", r"[0-9.]+", r"\[[0-9a-f:.]+\]", *map(re.escape, HOSTS)]
OWN_NAME = re.compile(f"({'|'.join(NAMES)})(:[0-9]*)?")  # no other page has such a name
AS_KEY = re.compile(r"(?:(?i:bearer) +|openai-insecure-api-key\.)(.+)")
sessions = asyncio.Semaphore(max_batch)  # at /v1/realtime


# --- errors
def refusal(e):
    if isinstance(e.__cause__, (Refused, ClientDisconnect)):  # FastAPI met it in the body
        e = e.__cause__
    if isinstance(e, Refused):
        return e
    if isinstance(e, RequestValidationError):
        return as_refused(e, 1)  # 1: without "body"
    if isinstance(e, HTTPException):
        return Refused(e.status_code, f"{e.detail}: there are {', '.join(paths)}")
    if isinstance(e, ClientDisconnect):
        return Refused(499, "the client went away")
    if isinstance(e, TimeoutError):
        return Refused(408, f"not done in {request_timeout_s:g} s", code="timeout")
    report(e)
    return Refused(500, "an error of this server")


def answer_error(request, e):
    refused = refusal(e)
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(refused.status)
    if refused.status == 405:
        headers = {"Allow": e.headers["Allow"].replace("GET", "GET, HEAD") + ", OPTIONS"}
        if request.method == "OPTIONS":
            return PlainTextResponse("", 204, headers)
    return JSONResponse({"error": refused.error}, refused.status, headers)


# --- who may ask, how much and how long
def check(path, scope):
    """Raise Refused for a wrong host, origin or key of a request or WebSocket."""
    headers = HTTPConnection(scope).headers
    called = headers.get("host", "").lower()
    if not OWN_NAME.fullmatch(called):
        wrong = f"this server is not called {called[:80]!r}: see --allow_hosts"
        print(wrong, flush=True)
        raise Refused(403, wrong, code="host")
    own = [f"http://{called}", f"https://{called}"]
    if headers.get("origin", own[0]).lower() not in own + ORIGINS and "*" not in ORIGINS:
        raise Refused(403, "a web page of another origin may not ask here: see --allow_origins",
                      code="origin")
    given = [headers.get("authorization", ""), *scope.get("subprotocols", [])]
    keys = [found[1].encode("latin1") for each in given if (found := AS_KEY.fullmatch(each))]
    is_open = not KEY or path in ("/", "/health")
    if not (is_open or any(hmac.compare_digest(key, KEY) for key in keys)):
        raise Refused(401, "the key is missing or wrong: send Authorization: Bearer <key>",
                      code="invalid_api_key")


def guard(app):
    """Add to an ASGI app the limits above, and a line of log."""
    async def guarded(scope, receive, send):
        began, n_bytes, status = time.time(), 0, 0
        is_socket = scope["type"] == "websocket"
        method = scope.get("method", "WS")
        path = re.sub("/+", "/", scope["path"]).rstrip("/") or "/"  # a redirect may lose the body
        scope = scope | {"path": path, "method": "GET" if method == "HEAD" else method}

        async def counted():
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > max_body_mb * 1e6:
                raise Refused(413, f"a body of more than {max_body_mb:g} MB", code="body_too_large")
            return message

        async def noted(message):
            nonlocal status
            status = message.get("status", 101 if message["type"] == "websocket.accept" else status)
            await send(message)

        try:
            async with asyncio.timeout(None if is_socket else request_timeout_s):
                check(path, scope)
                if is_socket and path != "/v1/realtime":
                    raise HTTPException(404, "Not Found")
                await app(scope, counted, noted)
        except Exception as e:
            response = answer_error(None, e)
            if status:  # an answer has begun: end the connection
                raise ConnectionError from None
            await response(scope, receive, noted)
        finally:
            shown = path if path in paths else "(no such path)"
            print(f"{time.strftime('%H:%M:%S')} {method[:9]} {shown} {status} "
                  f"{time.time() - began:.3f} s", flush=True)

    return guarded


app = FastAPI(openapi_url=None, redirect_slashes=False, exception_handlers=dict.fromkeys(
    (RequestValidationError, HTTPException), answer_error))  # others reach the guard
app.add_middleware(guard)
if ORIGINS:  # around the guard: a page may read its refusals too
    app.add_middleware(CORSMiddleware, allow_origins=ORIGINS, allow_methods=["GET", "POST"],
                       allow_headers=["*"])


# --- what it answers
@app.get("/")
async def page(request: Request):
    html = Path(__file__).with_name("chat.html").read_text(encoding="utf-8")
    if request.headers.get("accept-language", "").lower().startswith("zh"):
        for line in read_lines(own_file("assets/page.zh.txt")):  # text | the same in Chinese
            html = html.replace(*line.split(" | "))
    return HTMLResponse(html, headers={
        "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff",
        "Vary": "Accept-Language"})


@app.get("/health")
async def health():
    return {"status": "ok", "model": name, "waiting": len(engine.waiting),
            "running": len(engine.answers) + len(engine.transcripts),
            "max_audio_s": MAX_AUDIO_S, "can_chat": talker.can_chat,
            "has_word_times": talker.has_word_times}


@app.get("/v1/models/{model:path}")
@app.get("/v1/models")
async def models(model: str = ""):
    if model not in ("", name):
        raise Refused(404, f"the model here is {name}", "model", "model_not_found")
    return about if model else {"object": "list", "data": [about]}


@app.post("/v1/chat/completions")
async def chat(request: Request, ask: ChatRequest):
    return await say(request, ask, Answer)


@app.post("/v1/responses")
async def responses(request: Request, ask: ResponsesRequest):
    return await say(request, ask, Response)


async def say(request, ask, form):
    row = await read(make_row, ask, talker, max_tokens)
    answer = form(row, ask, talker, name)
    pieces = answer.pieces(follow(request, Job(row)))
    if ask.stream:
        return await stream(answer.events(pieces))
    async for _ in pieces:
        pass
    return answer.whole()


@app.post("/v1/audio/transcriptions")
async def transcriptions(request: Request):
    if not talker.ears:
        raise Refused(400, "this model takes no audio", "file")
    wav, ask = await read(read_upload, request.headers.get("content-type", ""),
                          await request.body(), talker.has_word_times)
    is_cut = FORMATS[ask.response_format] and not talker.has_word_times
    pieces = talker.transcripts(wav, SEGMENT_S if is_cut else float("inf"))
    coming = follow(request, Job(work=partial(next, pieces, None)))
    if ask.stream:
        return await stream(transcript_events(ask, wav, coming))
    pieces = [piece async for piece in coming]
    found = write_transcript(ask, wav, pieces, talker.language)
    if isinstance(found, dict):
        return found
    is_cut = any(piece.is_cut for piece in pieces)
    return PlainTextResponse(found, headers={"X-Is-Cut": str(is_cut)})


async def transcript_events(ask, wav, coming):
    pieces, between = [], ""
    async for piece in coming:
        pieces.append(piece)
        if piece.text:
            yield {"type": "transcript.text.delta", "delta": between + piece.text}
            between = talker.language.space
    done = write_transcript(ask, wav, pieces, talker.language)
    yield {"type": "transcript.text.done"} | done


@app.websocket("/v1/realtime")
async def realtime(socket: WebSocket, intent: str = ""):
    if not talker.ears:
        raise Refused(400, "this model takes no audio")
    if intent != "transcription":
        raise Refused(400, "this server only transcribes: ask for ?intent=transcription", "intent")
    if sessions.locked():
        raise Refused(503, "the server is busy: too many sessions", code="busy")
    async with sessions:
        with suppress(TimeoutError, WebSocketDisconnect):  # it reads nothing, or is gone
            await socket.accept("realtime" if "realtime" in socket.scope["subprotocols"] else None)
            await Session(socket, engine, request_timeout_s, max_body_mb * 1e6).run()
            async with asyncio.timeout(request_timeout_s):  # of a client that does not read
                await socket.close(1000, "no more messages, or an hour old")


async def stream(events):
    """Answer with server-sent events, each a dict or [DONE]."""
    first = await anext(events)  # an error before it is answered with its status

    async def lines(event):
        try:
            while event:
                yield f"data: {event if event == '[DONE]' else json.dumps(event)}\n\n"
                event = await anext(events, None)
        except Refused as e:
            yield f"data: {json.dumps({'error': e.error})}\n\n"

    return StreamingResponse(lines(first), media_type="text/event-stream", headers={
        "Cache-Control": "no-store", "X-Accel-Buffering": "no"})


async def read(work, *args):
    """Do work(*args) beside the event loop, for a few requests at once."""
    async with readers:
        return await asyncio.to_thread(work, *args)


async def follow(request, job):
    """Submit a Job and yield its events. Refused: it fails. ClientDisconnect: nobody waits."""
    async def watch():
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.events.put_nowait(ClientDisconnect())

    if not engine.submit(job):
        raise Refused(503, "the server is busy: too many requests wait", code="busy")
    watching = asyncio.create_task(watch())
    try:
        while (event := await job.events.get()) is not None:
            if isinstance(event, ClientDisconnect):
                raise event
            if isinstance(event, Exception):  # the engine reported it
                raise Refused(500, "the server failed on this request")
            yield event
    finally:
        job.gone = True
        watching.cancel()


# --- run
paths = [route.path.replace("{model:path}", name) for route in app.routes]
idle = set()


async def close_idle():
    """Close connections without a request, but no WebSocket, at two looks in a row."""
    global idle
    now = {(c, c.cycle) for c in server.server_state.connections
           if hasattr(c, "cycle") and (not c.cycle or c.cycle.response_complete)}
    for connection, _ in now & idle:
        connection.transport.close()
    idle = now


address, number = listening.getsockname()
at = host.replace("0.0.0.0", "127.0.0.1")
print(f"{name} (step {talker.step}, {talker.device}): open http://{at}:{number} in a browser",
      flush=True)
if not address.startswith("127."):
    who = "and has the key" if KEY else "(no key is asked for: see --api_key=)"
    print(f"host={host}: anyone who reaches this machine {who} can use it. Browsers give the "
          "microphone to https and localhost only", flush=True)
server = uvicorn.Server(uvicorn.Config(
    app, http="h11", ws="websockets-sansio", ws_max_size=int(2e6 * max_body_mb),
    ws_per_message_deflate=False, ws_ping_timeout=request_timeout_s, lifespan="off",
    log_level="critical", server_header=False,
    timeout_graceful_shutdown=3, timeout_keep_alive=75,
    limit_concurrency=10 * max_batch, callback_notify=close_idle, timeout_notify=request_timeout_s))
asyncio.run(run_until_one_ends(engine.run(), server.serve([listening])))
