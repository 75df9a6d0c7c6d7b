"""A load drill of serve.py: 16 clients send good, broken, huge, cut-off requests, and speak.

    python tests/drill.py --ckpt=out/cpu_w3 --minutes=30  # prints JSON; exit code 1: failed

Passes when each good answer is the one given alone (in bf16: 98% of them), memory stays within 5%
once five minutes are over, broken JSON gets 4xx, and the server is well at the end.
"""
import base64
import http.client
import io
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile
import torch
from websockets.exceptions import InvalidStatus

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from configurator import configure  # noqa: E402
from device import compute_dtype  # noqa: E402

QUESTIONS = ["what does the speaker say", "who is speaking", "how fast does the speaker talk",
             "how high is it"]
CHAT, TRANSCRIBE = "/v1/chat/completions", "/v1/audio/transcriptions"
PATHS = [CHAT, TRANSCRIBE, "/v1/responses"]
LIVE = "/v1/realtime?intent=transcription"
JSON = "application/json"


def start_server(ckpt, *args):
    """-> (process, port) of a server on a free port, when it says that it is ready."""
    command = [sys.executable, "serve.py", f"--ckpt={os.path.abspath(ckpt)}", "--port=0", *args]
    server = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
    server.lines = []
    for line in server.stdout:
        server.lines.append(line)
        if found := re.search(r"open http://[^ ]*:(\d+) ", line):
            threading.Thread(target=server.lines.extend, args=(server.stdout,), daemon=True).start()
            return server, int(found[1])
    raise RuntimeError("".join(server.lines))


def file_bytes(samples, kind="WAV", subtype=None, rate=16_000, **more):
    """What soundfile writes of samples, (n,) or (n, channels); more: for its write()."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype, **more)
    return file.getvalue()


def make_audio(seconds, seed, form="WAV"):
    """The bytes of a file of noise that swells."""
    n = int(seconds * 16_000)
    wav = np.random.default_rng(seed).normal(0, 0.1, n) * np.sin(np.arange(n) / (300 + 50 * seed))
    return file_bytes(wav, form)


def make_speech(seconds, rate=16_000):
    """A voice that sings vowels, (n,): Silero takes it for speech, as no noise."""
    t = np.arange(int(seconds * rate)) / rate
    phase, wav = 2 * np.pi * np.cumsum(120 + 20 * np.sin(4 * np.pi * t)) / rate, np.zeros(len(t))
    for k in range(1, 30):
        for formant, speed in ((600, 3), (1300, 4), (2500, 2)):
            near = 120 * k - formant - 200 * np.sin(2 * np.pi * speed * t)
            wav += 0.1 * np.exp(-np.square(near / 120)) * np.sin(k * phase)
    return (wav * (0.6 + 0.4 * np.sin(8 * np.pi * t))).astype(np.float32)


def append(wav, **more):
    """The message that sends wav (n,) at 24 kHz."""
    data = (32767 * wav).astype("<i2").tobytes()
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode(), **more}


def listen(port, path=LIVE, **given):
    """Open a WebSocket; given: for websockets' connect()."""
    from websockets.sync.client import connect
    return connect(f"ws://127.0.0.1:{port}{path}", **given)


def sound(data, form="wav"):
    data = base64.b64encode(data).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": form}}


def user(*parts):
    return {"role": "user", "content": [
        {"type": "text", "text": part} if isinstance(part, str) else part for part in parts]}


def good_requests():
    """Bodies of chats: text, a recording, two turns with a recording each."""
    rows = [[{"role": "user", "content": "what color is the sky"}]]
    for i, question in enumerate(QUESTIONS):
        one = user(sound(make_audio(0.6 + i, i)), question)
        two = user(sound(make_audio(0.5, 10 + i)), QUESTIONS[i - 1])
        rows += [[one], [one, {"role": "assistant", "content": "a man"}, two]]
    return [json.dumps({"messages": messages, "temperature": 0, "max_tokens": 24,
                        "stream": i % 2 == 0}).encode() for i, messages in enumerate(rows)]


def post(port, body, path=CHAT, kind=JSON, timeout=60):
    """-> (status, body) of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("POST", path, body, {"Content-Type": kind})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def said(body):
    """The text of an answer, streamed or not; ValueError where it was cut off."""
    if not body.startswith(b"data: "):
        return json.loads(body)["choices"][0]["message"]["content"]
    events = body.decode().split("\n\n")
    if "data: [DONE]" not in events:
        raise ValueError(f"a stream without its end: {events[-2:]}")
    chunks = [json.loads(event[6:]) for event in events if event.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


class Drill:
    """What the clients do, and what they saw: counts by kind, and what was wrong."""

    def __init__(self, port, bodies, expected):
        self.port, self.bodies, self.expected = port, bodies, expected
        self.seen = Counter()
        self.wrong = []
        self.lock = threading.Lock()

    def client(self, seed, end):
        """Send requests of every kind until the time is over."""
        rng = random.Random(seed)
        kinds = {self.good: 12, self.broken: 3, self.huge: 1, self.leave: 4, self.live: 2}
        while time.time() < end:
            kind = rng.choices(list(kinds), list(kinds.values()))[0]
            try:
                wrong = kind(rng)
            except Exception as e:
                wrong = f"{type(e).__name__}: {e}"
            with self.lock:
                self.seen[kind.__name__] += 1
                self.wrong += [f"{kind.__name__}: {wrong}"] if wrong else []
            time.sleep(rng.uniform(0, 0.05))

    def good(self, rng):
        i = rng.randrange(len(self.bodies))
        status, body = post(self.port, self.bodies[i])
        if status == 200 and said(body) != self.expected[i]:
            with self.lock:
                self.seen["other answer"] += 1
        return status != 200 and f"status {status}: {body[:150]}"

    def broken(self, rng):
        """A good request with wrong bytes; half lack the first."""
        n_cut = rng.randrange(2)
        body = bytearray(rng.choice(self.bodies))[n_cut:]
        for _ in range(rng.randrange(1, 9)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        status, _ = post(self.port, bytes(body), rng.choice(PATHS))
        return status // 100 not in (4, 2 - n_cut) and f"status {status}"

    def huge(self, rng):
        try:
            status, _ = post(self.port, b"x" * 2_001_000)
        except (ConnectionError, http.client.HTTPException):
            return ""
        return status != 413 and f"status {status}"

    def leave(self, rng):
        """A client that goes away."""
        body = rng.choice(self.bodies)
        n = rng.choice([100, len(body), len(body)])
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest("POST", CHAT)
        connection.putheader("Content-Type", JSON)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:n])
        if n == len(body) and rng.random() < 0.5:
            connection.getresponse().read(20)
        connection.close()

    def live(self, rng):
        """A voice in a WebSocket, that is transcribed or goes away in its middle."""
        voice = [append(part) for part in np.split(make_speech(2, 24_000), 8)]
        no_vad = {"audio": {"input": {"turn_detection": None}}}
        with suppress(InvalidStatus), listen(self.port) as ws:  # it has no place
            for event in [{"type": "session.update", "session": no_vad}, *voice]:
                ws.send(json.dumps(event))
            if rng.random() < 0.7:
                ws.send('{"type": "input_audio_buffer.commit"}')
                while "transcript" not in json.loads(ws.recv(60)):
                    pass


def memory_kb(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def run_drill(ckpt, minutes):
    """-> what was seen: counts by kind, what was wrong, memory; ok."""
    server, port = start_server(ckpt, "--max_body_mb=2")
    try:
        bodies, memory = good_requests(), []
        expected = [said(post(port, body)[1]) for body in bodies]
        drill, began = Drill(port, bodies, expected), time.time()
        end = began + 60 * minutes
        threads = [threading.Thread(target=drill.client, args=(i, end)) for i in range(16)]
        for thread in threads:
            thread.start()
        while time.time() < end and server.poll() is None:
            time.sleep(min(2.0, max(end - time.time(), 0)))
            if time.time() - began > min(300, 30 * minutes):
                memory.append(memory_kb(server.pid))
        for thread in threads:
            thread.join()
        time.sleep(1)
        is_well = server.poll() is None
        is_well = is_well and [said(post(port, body)[1]) for body in bodies] == expected
        memory = memory or [1.0]  # it died early
        growth = (max(memory) - memory[0]) / memory[0]
        like_alone = 1 - drill.seen["other answer"] / max(drill.seen["good"], 1)
        least = 1.0 if compute_dtype("cpu") == torch.float32 else 0.98
        errors = [line for line in server.lines if "Error" in line][:5]
        ok = is_well and not drill.wrong and not errors and growth < 0.05
        return {"seen": dict(drill.seen), "wrong": drill.wrong[:10], "errors": errors,
                "answers_like_alone": like_alone, "memory_kb": memory[-1],
                "memory_growth": growth, "is_well": is_well, "ok": ok and like_alone >= least}
    finally:
        server.kill()


if __name__ == "__main__":
    ckpt, minutes = "out/cpu_w3", 1.0
    configure(globals())
    result = run_drill(ckpt, minutes)
    print(json.dumps(result))
    sys.exit(not result["ok"])
