"""serve.py: who may ask, how much and how long; its log; wrong settings; the README."""
import json
import re
import socket
import subprocess
import sys
import time

import drill
import numpy as np
import pytest
import torch
from commands import raises, run
from drill import file_bytes, make_audio, post, sound, user
from test_audiobench import make_run
from test_serve import (CLIP, FILE, LOCAL, TRANSCRIBE, USER, ask, ckpt, port, request,  # noqa: F401
                        serve, server, transcribe)
from websockets.exceptions import InvalidStatus
from tokenizer import load_tokenizer

CHAT = ["POST /v1/chat/completions HTTP/1.1", LOCAL, "Content-Type: application/json"]


def log_of(server, words):
    """A server's log, as soon as a thread has read these words in it."""
    end = time.time() + 10
    while words not in "".join(server.lines):
        assert time.time() < end, server.lines
        time.sleep(0.05)
    return "".join(server.lines)


@pytest.mark.case("B31", "B32")
def test_only_its_own_page_may_ask(port, serve):
    """Broken: a page elsewhere uses the server, a key isn't asked for, by websockets either, or a
    name or an origin can't be allowed."""
    at = f"127.0.0.1:{port}"
    assert request(port, "GET", "/health", f"Host: {at}")[0] == 200
    assert request(port, "GET", "/health", LOCAL, "Origin: http://localhost")[0] == 200
    for headers in (["Host: evil.example"], ["Host: 127.0.0.1.evil.example"], [], ["Host: [::1"],
                    [f"Host: {at}", "Origin: null"], [f"Host: {at}", "Origin: http://127.0.0.1:1"]):
        assert request(port, "GET", "/v1/models", *headers)[0] in (400, 403), headers
    notes, evil = "Origin: app://my.notes", "Origin: http://evil.example"
    wanted = "authorization,content-type"
    asks = f"Access-Control-Request-Headers: {wanted}", "Access-Control-Request-Method: POST"
    assert request(port, "OPTIONS", TRANSCRIBE, LOCAL, notes, *asks)[0] == 403
    server, locked = serve("--api_key=s3cret", "--allow_hosts=my.name, Other.name",
                           "--allow_origins=https://a.b, app://My.notes")
    for method, given, status in (
            ("OPTIONS", [notes, *asks], 200), ("OPTIONS", [evil, *asks], 400), ("GET", [evil], 403),
            ("GET", [notes, "Authorization: Bearer s3cret"], 200), ("GET", [notes], 401)):
        found, _, headers = request(locked, method, "/v1/models", LOCAL, *given)
        allowed = "app://my.notes" if notes in given else None
        assert (found, headers["access-control-allow-origin"]) == (status, allowed), given
        right = wanted if method == "OPTIONS" else None
        assert headers["access-control-allow-headers"] == right
    for given, status in (
            ("Bearer s3cre", 401), ("Bearer s3cret", 200), ("Bearer \xe9", 401), ("s3cret", 401),
            ("BEARER  s3cret ", 200), ("bearer S3CRET", 401), ("Basic s3cret", 401)):
        headers = ["Host: my.name", f"Authorization: {given}"]
        assert request(locked, "GET", "/v1/models", *headers)[0] == status, given
    for path, status in (("//v1/models", 401), ("/v1/models/", 401), ("/", 200), ("/health", 200)):
        assert request(locked, "GET", path, "Host: other.name")[0] == status, path
    raises("401", drill.listen, locked, "/v1/models", error=InvalidStatus)
    status, body, _ = request(locked, "GET", "/health", "Host: docker:8000")
    assert status == 403 and b"not called 'docker:8000': see --allow_hosts" in body
    assert "s3cre" not in log_of(server, "not called 'docker:8000': see --allow_hosts")


def test_logs_hold_no_content(server):
    """Broken: the log has what a request says or a path it made up, not what 0.0.0.0 means."""
    server, port = server
    assert ask(port, USER, max_tokens=5)[0] == 200
    encoded = "name=file\r\nContent-Transfer-Encoding: secret", CLIP
    assert transcribe(port, encoded)[0] == 200
    request(port, "GET", "/secret-path", LOCAL)
    log = log_of(server, "GET (no such path) 404")
    assert "anyone who reaches this machine (no key is asked for: see --api_key=) can" in log
    assert "POST /v1/chat/completions 200" in log and "how high" not in log and "secret" not in log


def test_a_client_that_leaves_frees_its_slot(serve, tmp_path):
    """Broken: the server writes for nobody, is busy without a word, or hides a cut transcript."""
    endless = make_run(tmp_path / "run")
    state = torch.load(f"{endless}/model_000003.pt")
    vocab_size = load_tokenizer(endless).vocab_size  # the special tokens are last
    state["lm_head.weight"][vocab_size - 9:vocab_size] = 0
    torch.save(state, f"{endless}/model_000003.pt")
    _, port = serve(f"--ckpt={endless}", "--max_batch=1", "--max_tokens=2000")
    status, body = transcribe(port, (FILE, make_audio(1, 1)))
    assert status == 200 and body["is_cut"] is True and len(body["text"]) > 10
    chat = {"messages": [USER], "stream": True, "max_tokens": 2000}

    def until(running, waiting, seconds):
        end = time.time() + seconds
        while True:
            now = json.loads(request(port, "GET", "/health", LOCAL)[1])
            if now["running"] == running and now["waiting"] == waiting:
                return
            assert time.time() < end, now

    began = time.time()
    post(port, json.dumps(chat).encode())
    alone_s = time.time() - began
    clients = []
    for waiting in range(5):
        body = json.dumps(chat | {"stream": waiting % 2 == 0})
        clients.append(socket.create_connection(("127.0.0.1", port)))
        lines = "\r\n".join([*CHAT, f"Content-Length: {len(body)}", "", ""])
        clients[-1].sendall((lines + body).encode())
        until(1, waiting, alone_s / 4)
    status, body = ask(port, USER)
    assert status == 503 and "busy" in body["error"]["message"]
    for client in clients:
        client.close()
    until(0, 0, alone_s / 2)


def test_a_slow_client_is_refused_in_time(serve):
    """Broken: unfinished headers or bodies keep their place; a body of no length has no limit."""
    _, port = serve("--request_timeout_s=1", "--max_body_mb=0.1")
    chunk = b"30000\r\n" + b" " * 0x30000 + b"\r\n"
    for more, data, status in (("Content-Length: 100", b"{", b" 408 "),
                               ("Transfer-Encoding: chunked", chunk, b" 413 ")):
        with socket.create_connection(("127.0.0.1", port), 10) as s:
            s.sendall("\r\n".join([*CHAT, more, "", ""]).encode() + data)
            assert status in s.recv(1000)
    health = f"GET /health HTTP/1.1\r\n{LOCAL}\r\n\r\n"
    for data, start in (("", b""), ("\r\n".join(CHAT), b""), (health + "GET", b"HTTP/1.1 200")):
        with socket.create_connection(("127.0.0.1", port), 10) as s:
            s.sendall(data.encode())
            assert b"".join(iter(lambda: s.recv(1000), b"")).startswith(start)


def test_too_much_sound(port):
    """Broken: a few bytes take the server's memory or minutes."""
    flac = file_bytes(np.zeros((192_000 * 20, 8), np.float32), "FLAC", rate=192_000)
    for messages in ([user(*[sound(flac)] * 10)], [user(sound(make_audio(20, 1)))] * 2):
        status, body = ask(port, *messages)
        assert status == 413 and "over the limit" in body["error"]["message"], body
    assert post(port, b"x" * 3_000_000)[0] == 413


@pytest.mark.case("B33")
def test_wrong_settings_are_one_line(port, tmp_path):
    """Broken: a mistake ends in a traceback, or a port in use is told after the load."""
    for args, expected in (
            ([f"--ckpt={tmp_path}", "--port=0"], "no checkpoint"), (["--port=70000"], "65535"),
            ([f"--ckpt={tmp_path}", f"--port={port}"], "another server"),
            (["--host=no.such.invalid"], "host=no.such.invalid")):
        assert expected in run("serve.py", *args, ok=False)


@pytest.mark.slow
def test_readme_examples(port, tmp_path):
    """Broken: what the README tells a client to type."""
    text = (drill.ROOT / "README.md").read_text(encoding="utf-8").replace(":8000", f":{port}")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    script = next(block for block in blocks if "openai" in block)
    (tmp_path / "clip.wav").write_bytes(make_audio(1.0, 1))
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
