"""A load drill of serve.py on this machine: 16 clients send good, broken, huge, slow and cut-off requests.

    python tests/drill.py --ckpt=out/cpu_w3 --minutes=30         # prints what it saw as JSON; exit code 1 if it failed
    python tests/drill.py --ckpt=out/cpu_w3 --mutations=10000    # mutated bodies and recordings instead

Passes when no good request fails, each good answer is the one given alone (in bf16 98% of them, the others leaving it
where two logits are within 0.1), the server's memory stays within 5% once five minutes are over, what is broken gets
4xx, and the server is well at the end. Loopback only.
"""
import argparse
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
from pathlib import Path

import numpy as np
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from recordings import read_audio  # noqa: E402
from device import compute_dtype  # noqa: E402
from talk import Batch, Row, Talker  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = ["what does the speaker say", "who is speaking", "how fast does the speaker talk", "how high is it"]
BODY_MB, TIMEOUT_S = 2.0, 20.0  # of the server under the drill: small, so that huge and slow ones meet them


def start_server(ckpt, *args):
    """-> (process, port) of a server on a free port, when it says that it is ready."""
    command = [sys.executable, "serve.py", f"--ckpt={os.path.abspath(ckpt)}", "--port=0", *args]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in server.stdout:
        lines.append(line)
        if found := re.search(r"open http://[^ ]*:(\d+) ", line):
            threading.Thread(target=lambda: [lines.append(line) for line in server.stdout], daemon=True).start()
            server.lines = lines
            return server, int(found[1])
    raise RuntimeError("".join(lines))


def make_audio(seconds, seed, form="WAV"):
    """The bytes of a file of noise that swells."""
    n, out = int(seconds * 16_000), io.BytesIO()
    wav = np.random.default_rng(seed).normal(0, 0.1, n) * np.sin(np.arange(n) / (300 + 50 * seed))
    soundfile.write(out, wav, 16_000, format=form)
    return out.getvalue()


def sound(data, form="wav"):
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": form}}


def good_requests():
    """Bodies of chats: text, a recording, two turns with a recording each."""
    rows = [[{"role": "user", "content": "what color is the sky"}]]
    for i, question in enumerate(QUESTIONS):
        one = [{"role": "user", "content": [sound(make_audio(0.6 + i, i)), {"type": "text", "text": question}]}]
        rows += [one, [*one, {"role": "assistant", "content": "a man"}, {"role": "user", "content": [
            sound(make_audio(0.5, 10 + i)), {"type": "text", "text": QUESTIONS[i - 1]}]}]]
    return [json.dumps({"messages": messages, "temperature": 0, "max_tokens": 24, "stream": i % 2 == 0}).encode()
            for i, messages in enumerate(rows)]


def post(port, body, path="/v1/chat/completions", kind="application/json", timeout=60):
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


def multipart(data, name="a.wav"):
    """-> (body, content type) of a transcription's form."""
    head = f'--xx\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    return head + data + b"\r\n--xx--\r\n", "multipart/form-data; boundary=xx"


class Drill:
    """What the clients do, and what they saw."""

    def __init__(self, port, bodies, expected):
        self.port, self.bodies, self.expected = port, bodies, expected
        self.seen, self.wrong, self.times, self.lock = Counter(), [], [], threading.Lock()
        self.others = set()  # (number of the request, an answer that is not the one given alone)

    def client(self, seed, end):
        """Send requests of every kind until the time is over."""
        rng = random.Random(seed)
        kinds = {self.good: 12, self.broken: 3, self.huge: 1, self.slow: 1, self.cut_off: 2, self.leave: 2}
        while time.time() < end:
            kind = rng.choices(list(kinds), list(kinds.values()))[0]
            try:
                kind(rng)
            except Exception as e:  # seen and counted, not lost in a thread
                self.note(kind.__name__, f"{type(e).__name__}: {e}")
            time.sleep(rng.uniform(0, 0.05))

    def note(self, kind, wrong=""):
        with self.lock:
            self.seen[kind] += 1
            if wrong:
                self.wrong.append(f"{kind}: {wrong[:200]}")

    def good(self, rng):
        i, began = rng.randrange(len(self.bodies)), time.time()
        status, body = post(self.port, self.bodies[i])
        with self.lock:
            self.times.append(time.time() - began)
        text = said(body) if status == 200 else ""
        if status == 200 and text != self.expected[i]:
            self.others.add((i, text))
            return self.note("other answer")
        self.note("good", "" if status == 200 else f"status {status}: {body[:150]}")

    def broken(self, rng):
        body = rng.choice([b"", b"{", b"[1]", b'{"messages": []}', b'{"messages": [{"role": "user"}]}', b"\xff\xfe",
                           json.dumps({"messages": [{"role": "user", "content": [sound(b"RIFF no wav")]}]}).encode()])
        status, _ = post(self.port, body)
        self.note("broken", "" if 400 <= status < 500 or status == 200 and b'"user"' in body else f"status {status}")

    def huge(self, rng):
        try:
            status, _ = post(self.port, b"x" * int(BODY_MB * 1e6 + 1000))
        except (ConnectionError, http.client.HTTPException):  # refused while it was still being sent
            status = 413
        self.note("huge", "" if status == 413 else f"status {status}")

    def slow(self, rng):
        """A body in pieces: one that comes in the end, and one that never does."""
        connection, body = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60), self.bodies[0]
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        stalls = rng.random() < 0.3
        for part in (body[:10], body[10:20], b"" if stalls else body[20:]):
            connection.send(part)
            time.sleep(0.3)
        status = connection.getresponse().status
        connection.close()
        self.note("slow", "" if status == (408 if stalls else 200) else f"status {status}")

    def cut_off(self, rng):
        """A client that goes away in the middle of its body."""
        connection, body = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60), rng.choice(self.bodies)
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        connection.send(body[:rng.randrange(len(body))])
        connection.close()
        self.note("cut off")

    def leave(self, rng):
        """A client that goes away before or during its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        kind = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", rng.choice(self.bodies), kind)
        if rng.random() < 0.5:
            connection.getresponse().read(20)
        connection.close()
        self.note("left")


def logit_gap(talker, body, other):
    """How much likelier the token is with which the answer given alone leaves another one than the other's."""
    messages = []
    for message in json.loads(body)["messages"]:
        parts = message["content"] if isinstance(message["content"], list) else [{"text": message["content"]}]
        wavs = [read_audio(base64.b64decode(part["input_audio"]["data"])) for part in parts if "input_audio" in part]
        text = "".join(part.get("text", "") for part in parts)
        messages.append((message["role"], text, talker.record(wavs[0]) if wavs else None))
    ends, batch, pieces = talker.stop_ids(), Batch(talker.model, talker.hear), [
        talker.tok.decode([token]) for token in range(talker.tok.vocab_size)]
    row, rest = Row(talker.prompt(messages), 24, stop_ids=ends), " " * talker.plain + other
    batch.add([row])
    while batch.rows:
        logits = batch.logits[0].tolist()
        fits = [token for token, piece in enumerate(pieces) if (not rest if token in ends else
                                                                piece and rest.startswith(piece))]
        best = max(range(len(pieces)), key=logits.__getitem__)
        if best not in fits:
            return logits[best] - max((logits[token] for token in fits), default=-np.inf)
        rest = rest[len(pieces[best]):]
        batch.step()
    return np.inf if rest else 0.0


def memory_mb(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def run_drill(ckpt, minutes, clients=16, settle_s=300.0):
    """-> what was seen: counts by kind, what was wrong, memory, times; ok."""
    server, port = start_server(ckpt, f"--max_body_mb={BODY_MB}", f"--request_timeout_s={TIMEOUT_S}", "--cache_mb=64")
    try:
        bodies = good_requests()
        expected = [said(post(port, body)[1]) for body in bodies]
        drill, began = Drill(port, bodies, expected), time.time()
        end = began + 60 * minutes
        threads = [threading.Thread(target=drill.client, args=(seed, end)) for seed in range(clients)]
        for thread in threads:
            thread.start()
        memory = []
        while time.time() < end and server.poll() is None:
            time.sleep(min(2.0, max(end - time.time(), 0)))
            if time.time() - began > min(settle_s, 30 * minutes):
                memory.append(memory_mb(server.pid))
        for thread in threads:
            thread.join()
        time.sleep(1)
        well = server.poll() is None and [said(post(port, body)[1]) for body in bodies] == expected
        memory = memory or [1.0]  # it died early
        growth = (max(memory) - memory[0]) / memory[0]
        n = drill.seen["good"] + drill.seen["other answer"]
        talker = Talker(ckpt, device="cpu") if drill.others else None
        gap = max((logit_gap(talker, bodies[i], text) for i, text in drill.others), default=0.0)
        most_others = 0 if compute_dtype("cpu") == torch.float32 else 0.02  # share of n
        return {"minutes": minutes, "clients": clients, "seen": dict(drill.seen), "wrong": drill.wrong[:10],
                "answers_like_alone": round(1 - drill.seen["other answer"] / max(n, 1), 5),
                "largest_logit_gap": round(gap, 3), "memory_mb": [round(mb) for mb in memory[::len(memory) // 12 or 1]],
                "memory_growth": round(growth, 4), "well_at_the_end": well,
                "median_s": round(float(np.median(drill.times)), 3),
                "p95_s": round(float(np.quantile(drill.times, 0.95)), 3),
                "mistakes": [line for line in server.lines if "Error" in line][:5],
                "ok": well and not drill.wrong and growth < 0.05 and not any("Error" in line for line in server.lines)
                and drill.seen["other answer"] <= n * most_others and gap <= 0.1}
    finally:
        server.kill()


def mutated(data, rng):
    """Bytes with a few of them changed, cut out, doubled or put in."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        i, n = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 4, 16, 200])
        what = rng.randrange(5)
        if what == 0:
            data[i:i + n] = b""
        elif what == 1:
            data[i:i] = rng.randbytes(n)
        elif what == 2:
            data[i:i] = data[i:i + n]
        elif what == 3 and rng.random() < 0.3:
            del data[i:]
        elif i < len(data):
            data[i] = rng.choice([0, 255, data[i] ^ (1 << rng.randrange(8)), rng.randrange(256)])
    return bytes(data)


def run_mutations(ckpt, count, seed=0):
    """Send mutated bodies and recordings -> counts by status; ok: only 2xx and 4xx, none over 20 s."""
    server, port = start_server(ckpt, f"--max_body_mb={BODY_MB}", f"--request_timeout_s={TIMEOUT_S}")
    rng, seen, wrong, slowest = random.Random(seed), Counter(), [], 0.0
    files = {form: make_audio(0.4, 1, form) for form in ("WAV", "FLAC", "OGG", "MP3")}
    try:
        for i in range(count):
            form, began = rng.choice(list(files)), time.time()
            target, data = rng.randrange(4), mutated(files[form], rng)
            content = [sound(data, form.lower()), {"type": "text", "text": "x"}]
            chat = {"messages": [{"role": "user", "content": content}],
                    "max_tokens": 4, "temperature": 0.5, "stop": ["a"], "seed": 3}
            kind, path, body = "application/json", "/v1/chat/completions", json.dumps(chat).encode()
            if target == 1:  # a mutated body, of a short one most of all
                body = mutated(body if rng.random() < 0.2 else json.dumps(chat | {
                    "messages": [{"role": "user", "content": "how high is it"}]}).encode(), rng)
            elif target > 1:
                path, (body, kind) = "/v1/audio/transcriptions", multipart(data)
                body = mutated(body, rng) if target == 3 else body
            try:
                status, _ = post(port, body, path, kind, timeout=20)
            except Exception as e:
                status = type(e).__name__
            slowest = max(slowest, time.time() - began)
            seen[str(status)] += 1
            if not isinstance(status, int) or status // 100 not in (2, 4):
                wrong.append(f"{i}: {status}")
        well = server.poll() is None and post(port, good_requests()[0])[0] == 200
        mistakes = [line for line in server.lines if "Error" in line]
        return {"mutations": count, "seed": seed, "statuses": dict(seen), "wrong": wrong[:10], "mistakes": mistakes[:5],
                "slowest_s": round(slowest, 2), "ok": well and not wrong and not mistakes}
    finally:
        server.kill()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, kind, default in (("ckpt", str, "out/cpu_w3"), ("minutes", float, 1.0), ("mutations", int, 0)):
        options.add_argument(f"--{option}", type=kind, default=default)
    given = options.parse_args()
    result = run_mutations(given.ckpt, given.mutations) if given.mutations else run_drill(given.ckpt, given.minutes)
    print(json.dumps(result))
    sys.exit(not result["ok"])
