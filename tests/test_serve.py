"""serve.py as its clients meet it: the openai package, bad requests, many at once, a browser."""
import base64
import http.client
import io
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time

import drill
import numpy as np
import pytest
import soundfile
from drill import make_audio, multipart, post, said, sound, start_server
from test_audiobench import make_run

from recordings import read_audio

TRANSCRIBE = "/v1/audio/transcriptions"
USER = {"role": "user", "content": "how high"}
CHAT = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("serve") / "run")


@pytest.fixture(scope="module")
def port(ckpt):
    server, port = start_server(ckpt, "--max_tokens=400", "--max_body_mb=2")
    if hasattr(resource, "prlimit"):  # Linux
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (0, 0))  # no upload goes to the disk
    yield port
    server.kill()
    assert not [line for line in server.lines if "Error" in line], "".join(server.lines)


@pytest.fixture
def serve(ckpt):
    """Start a server with these arguments -> (process, port); it is killed at the end."""
    servers = []

    def serve(*args):
        servers.append(start_server(ckpt, *args))
        return servers[-1]
    yield serve
    for server, _ in servers:
        server.kill()


@pytest.fixture(scope="module")
def client(port):
    import openai
    url = f"http://127.0.0.1:{port}/v1"
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def talk(question, *sounds):
    return {"role": "user", "content": [*sounds, {"type": "text", "text": question}]}


def request(port, method, path, *headers, body=b""):
    """A request with just these headers -> (status, body)."""
    with socket.create_connection(("127.0.0.1", port), 10) as s:
        lines = [f"{method} {path} HTTP/1.1", "Connection: close", *headers,
                 f"Content-Length: {len(body)}", "", ""]
        s.sendall("\r\n".join(lines).encode() + body)
        data = b"".join(iter(lambda: s.recv(65536), b""))
    return int(data.split()[1]), data.partition(b"\r\n\r\n")[2]


def ask(port, *messages, **more):
    status, data = post(port, json.dumps({"messages": messages, **more}).encode())
    return status, json.loads(data)


def answer(port, *messages, **more):
    """The choices and usage of an answer to messages (role, content), which must succeed."""
    messages = [{"role": role, "content": content} for role, content in messages]
    status, body = ask(port, *messages, **{"max_tokens": 9, **more})
    assert status == 200, (messages, more, body)
    return body["choices"], body["usage"]


def hear(port, part):
    """What is said of a recording, so hot that the answer shows which one it was."""
    return answer(port, ("user", [part]), temperature=2, seed=1, max_tokens=60)


def refused(port, *messages, **more):
    """The param and message of a chat that is refused with 400."""
    status, body = ask(port, *messages, **more)
    assert status == 400 and body["error"]["type"] == "invalid_request_error", body
    return body["error"]["param"], body["error"]["message"]


def transcribe(port, *parts):
    """-> (status, body) of a form: its parts are (what follows `form-data; `, bytes or str)."""
    body = b""
    for head, data in parts:
        data = data if isinstance(data, bytes) else data.encode()
        body += f"--xx\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
    kind = "multipart/form-data; boundary=xx"
    status, body = post(port, body + b"--xx--\r\n", TRANSCRIBE, kind)
    return status, json.loads(body)


def test_openai_client(client):
    """Broken: the openai package: models, recordings in two turns, streams, usage, errors."""
    import openai
    assert [model.id for model in client.models.list()] == ["run"]
    assert client.models.retrieve("run").id == "run"
    clip = sound(make_audio(0.5, 1))
    given = dict(model="x", temperature=0, max_tokens=9)
    one = client.chat.completions.create(messages=[talk("how high", clip)], **given)
    text = one.choices[0].message.content
    assert text and one.usage.completion_tokens == 9 and one.choices[0].finish_reason == "length"
    given["messages"] = [talk("how high", clip), {"role": "assistant", "content": text},
                         talk("red", sound(make_audio(0.5, 1, "MP3"), "mp3"))]
    whole = client.chat.completions.create(**given)
    usage = {"include_usage": True}
    chunks = list(client.chat.completions.create(**given, stream=True, stream_options=usage))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content != text and len(pieces) > 3
    assert chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == "length"
    assert whole.usage.prompt_tokens > one.usage.prompt_tokens + 9
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(**given | {"temperature": 3})
    assert e.value.param == "temperature" and "less than or equal to 2" in str(e.value)


@pytest.mark.case("B25")
def test_system_messages_join_the_users_words(port):
    """Broken: a second or later system message is refused, lost, or replaces the question."""
    user, reply, low = ("user", "how high"), ("assistant", "red"), ("system", "low")
    red, parts = ("developer", "old red"), [{"type": "text", "text": "low"}]
    for messages, right in (
            ([low, user], "low\n\nhow high"), ([("system", parts), user], "low\n\nhow high"),
            ([low, red, low, user], "low\n\nold red\n\nlow\n\nhow high"),
            ([user, red], "how high\n\nold red"), ([("system", ""), user], "how high"),
            ([("system", None), user], "how high"), ([low], "low"), ([user, user], "how high\nhow high")):
        assert answer(port, *messages) == answer(port, ("user", right)), messages
    assert answer(port, low, user) != answer(port, user)
    right = answer(port, user, reply, ("user", "old red\n\nhow high"))
    assert answer(port, user, reply, red, user) == right
    clip = sound(make_audio(0.5, 1))  # without words it is asked api.py's QUESTION
    right = answer(port, ("user", [clip, {"type": "text", "text": "low\n\nanswer the question"}]))
    assert answer(port, low, ("user", [clip])) == right != answer(port, ("user", [clip]))
    right = answer(port, ("user", [clip, {"type": "text", "text": "how high"}]))
    assert answer(port, ("user", [clip]), user) == right
    assert refused(port, {"role": "system", "content": [clip]})[0] == "messages.0.content.0"


@pytest.mark.case("B26")
def test_base64_as_clients_write_it(port):
    """Broken: line ends in base64 or a data: URI are refused; or what is no base64 passes."""
    wav = make_audio(0.5, 1)
    text, wrapped = base64.b64encode(wav).decode(), base64.encodebytes(wav).decode()
    part = lambda data: {"type": "input_audio", "input_audio": {"data": data}}
    right = hear(port, part(text))
    assert right != hear(port, sound(make_audio(0.5, 2))) and "\n" in wrapped[:100]
    for data in (wrapped, wrapped.replace("\n", "\r\n"), f"  {text}\t",
                 f"data:audio/wav;base64,{text}", f"data:;base64,{text}",
                 f"DATA:audio/x-wav;codecs=1;BASE64,{wrapped}"):
        assert hear(port, part(data)) == right, data[:60]
    for data, word in (("data:audio/wav," + text, ";base64,"), (text[:-1], "base64"),
                       (text[:40] + "!" + text[40:], "base64"), ("\u00e9" + text, "base64"),
                       ("../secret.wav", "base64"), (wav.hex(), "audio"), ("", "empty")):
        param, message = refused(port, {"role": "user", "content": [part(data)]})
        assert param == "messages.0.content.0.input_audio.data" and word in message, message


@pytest.mark.case("B13", "B27")
def test_the_bytes_decide_what_a_sound_is(port):
    """Broken: a sound is refused for its label, or a refusal doesn't say what can be read."""
    opus = io.BytesIO()
    soundfile.write(opus, read_audio(make_audio(0.5, 1)), 16_000, format="OGG", subtype="OPUS")
    for data, labels in (
            (make_audio(0.5, 1), ["WAV", "x-wav", "audio/wav", "mp3", "webm", "pcm16", "", None]),
            (make_audio(0.5, 1, "MP3"), ["mpeg", "audio/mpeg", "wav"]),
            (make_audio(0.5, 1, "FLAC"), ["audio/x-flac", "m4a"]), (opus.getvalue(), ["opus", "oga"])):
        bare = sound(data)
        del bare["input_audio"]["format"]
        right = hear(port, bare)
        for label in labels:
            assert hear(port, sound(data, label)) == right, label
    webm = bytes.fromhex("1a45dfa39f4286810142f7810142f2810442f381084282847765626d42878104")
    for data in (webm + bytes(400), b"<html>", make_audio(0.5, 1)[44:]):
        _, message = refused(port, talk("x", sound(data)))
        assert all(name in message for name in ("wav", "mp3", "flac", "ogg")), message
        status, body = transcribe(port, ('name="file"; filename="clip.mp3"', data))
        assert status == 400 and body["error"]["message"] == message


@pytest.mark.case("B28")
def test_what_agents_send(port):
    """Broken: empty content is refused; or a refusal doesn't name the field and its limit."""
    low = {"role": "user", "content": "low"}
    right = answer(port, ("user", "how high"), ("assistant", ""), ("user", "low"))
    for reply in ({"content": None}, {}, {"content": []}, {"refusal": None, "audio": None}):
        status, body = ask(port, USER, {"role": "assistant", **reply}, low, max_tokens=9)
        assert status == 200 and (body["choices"], body["usage"]) == right, body
    for limit in (None, 4.0, 131072):
        assert ask(port, USER, max_tokens=limit)[0] == 200
    call, path = {"role": "assistant", "content": None, "tool_calls": [{}]}, {"data": "x"}
    image, bare = [{"type": "image_url"}], [{"type": "input_audio"}]
    for messages, param, word in (
            ([USER, call, {"role": "tool", "content": "22"}], "messages.2.role", "'user'"),
            ([call], "messages", "user"), ([call, USER], "messages", "user"), ([], "messages", "1"),
            ([USER, call], "messages", "last message"),
            ([{"role": "user", "content": image}], "messages.0.content.0.type", "'text'"),
            ([{"role": "user", "content": bare}], "messages.0.content.0", "input_audio"),
            ([{"role": "user", "content": [{"type": "text", "input_audio": path}]}],
             "messages.0.content.0", "input_audio"),
            ([{"role": "user", "content": [0] * 100_000}], "messages.0.content", "64"),
            ([{"role": "user", "content": "how " * 400_000}], "messages", "new conversation"),
            ([{"role": "user", "content": "how " * 5000}], "messages", "new conversation")):
        found, message = refused(port, *messages)
        assert found == param and word in message, message
    for more, param, word in (
            ({"max_tokens": 0}, "max_tokens", "or equal to 1"), ({"stop": 5}, "stop", "valid"),
            ({"max_completion_tokens": -1}, "max_completion_tokens", "or equal to 1"),
            ({"stop": ["a", 5]}, "stop.1", "string"), ({"stop": list("abcde")}, "stop", "at most 4"),
            ({"stop": "x" * 300}, "stop.0", "256"), ({"logit_bias": {"5": 1}}, "logit_bias", "0"),
            ({"response_format": {"type": "json_object"}}, "response_format.type", "'text'"),
            ({"top_p": 0}, "top_p", "0"), ({"n": 2}, "n", "1"), ({"tools": [{}]}, "tools", "0"),
            ({"seed": 2**70}, "seed", ""), ({"presence_penalty": 1}, "presence_penalty", "0")):
        found, message = refused(port, USER, **more)
        assert found == param and message.startswith(f"{param}: ") and word in message, message
    for body in (b'{"messages": ' + b"[" * 100_000, b"\xff", b"", b"{", b"[1]"):
        assert post(port, body)[0] == 400
    status, body = post(port, b"{}", kind="text/plain")
    assert status == 400 and b"application/json" in body


@pytest.mark.case("B29")
def test_empty_optional_fields(port):
    """Broken: an empty optional field is an error; or one that changes the answer is ignored."""
    right = answer(port, ("user", "how high"))
    for more in ({"stop": ""}, {"stop": []}, {"stop": [""]}, {"tools": None, "n": None}, {"model": ""},
                 {"tools": [], "tool_choice": "none"}, {"response_format": None, "logit_bias": {}},
                 {"stream": None, "stream_options": None, "presence_penalty": 0.0},
                 {"temperature": None, "top_p": None, "seed": None, "stop": None}):
        assert answer(port, ("user", "how high"), **more) == right, more
    file = 'name="file"; filename="a.wav"', make_audio(2.0, 2)
    heard = transcribe(port, file)
    assert heard[0] == 200 and heard[1]["text"] and heard[1]["is_cut"] in (True, False)
    for field, values in (
            ("language", ["", "en"]), ("prompt", ["", "Kansas, " * 300]), ("temperature", ["warm"]),
            ("response_format", ["", "JSON"]), ("stream", ["", "false"]), ("vad_filter", ["true"]),
            ("timestamp_granularities[]", ["word"])):
        for value in values:
            assert transcribe(port, (f'name="{field}"', value), file) == heard, (field, value)
    for field, values in (("response_format", ["verbose_json", "srt"]), ("stream", ["True", "1"])):
        for value in values:
            status, body = transcribe(port, file, (f'name="{field}"', value))
            assert status == 400 and body["error"]["param"] == field, body
    status, body = transcribe(port, file, *[(f'name="f{i}"', "x") for i in range(40)])
    assert status == 400 and "more than 33 parts" in body["error"]["message"]


@pytest.mark.case("B30")
def test_a_file_without_a_filename(port):
    """Broken: a form's file is refused, changed or written to the disk for its head."""
    wav, named = make_audio(2.0, 2), 'name="file"; filename="a.wav"'
    heard = transcribe(port, (named, wav))
    for head in ('name="file"', "name=file", 'name="file"\r\nContent-Type: audio/wav',
                 'name="file"; filename=""', "name=\"file\"; filename*=UTF-8''gr%C3%B6%C3%9Fe.wav",
                 'name="file"; filename="gr\u00f6\u00dfe \u65e5\u672c.wav"'):
        assert transcribe(port, ('name="model"', "m"), (head, wav)) == heard, head
    large, noise = io.BytesIO(), np.random.default_rng(0).normal(0, 0.1, (48_000, 8))
    soundfile.write(large, noise, 96_000, format="WAV", subtype="FLOAT")
    assert transcribe(port, ('name="file"', large.getvalue()))[0] == 200  # 1.5 MB
    for parts, word in (([('name="audio"', wav)], "0 parts named file"), ([(named, "")], "empty"),
                        ([(named, wav), (named, wav)], "2 parts named file"), ([], "0 parts")):
        status, body = transcribe(port, *parts)
        assert status == 400 and body["error"]["param"] == "file"
        assert word in body["error"]["message"]
    for kind in ("multipart/form-data", "multipart/form-data; charset=undefined; boundary=xx", "x"):
        assert post(port, b"x", TRANSCRIBE, kind)[0] == 400


@pytest.mark.case("B40")
def test_addresses(port):
    """Broken: a slash too many loses the body, HEAD looks like an outage, a 404 is no JSON."""
    chat = json.dumps({"messages": [USER], "max_tokens": 9}).encode(), "application/json"
    for path, (body, kind) in (("/v1/chat/completions", chat),
                               (TRANSCRIBE, multipart(make_audio(0.5, 1)))):
        for other in (path + "/", "/" + path, path.replace("v1/", "v1//"), path + "?api=1"):
            assert post(port, body, other, kind)[0] == 200, other
    for path in ("/", "/health", "/v1/models/", "/v1/models/run", "//v1//models", "//"):
        heads = []
        for method in ("GET", "HEAD"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request(method, path)
            response = connection.getresponse()
            fields = [response.getheader(name) for name in ("content-type", "content-length")]
            heads.append((response.status, *fields))
            body = response.read()
            connection.close()
        assert heads[0] == heads[1] and heads[0][0] == 200 and body == b"", (path, heads)
    for method, path, status, word in (
            ("POST", "/chat/completions", 404, "/v1/chat/completions"), ("GET", "/docs", 404, "/v1/"),
            ("GET", "/v1/models/gpt-9/", 404, "run"), ("GET", "/../serve.py", 404, "/v1/"),
            ("GET", "/v1/chat/completions", 405, "Method"), ("PUT", TRANSCRIBE + "/", 405, "Method")):
        found, body = request(port, method, path, "Host: localhost")
        assert found == status and word in json.loads(body)["error"]["message"], (path, body)
    assert request(port, "HEAD", "/v1/chat/completions", "Host: localhost") == (405, b"")


def test_sampling_settings(port):
    """Broken: a setting of the request changes nothing, or an extreme one fails."""
    def say(**more):
        choices, _ = answer(port, ("user", "how high is it"), **{"max_tokens": 40, **more})
        return choices[0]["message"]["content"], choices[0]["finish_reason"]
    plain, hot = say(), say(temperature=2, seed=5)
    assert hot == say(temperature=2, seed=5) != say(temperature=2, seed=6)
    for more in ({"temperature": 0}, {"temperature": 2, "top_p": 1e-9}, {"temperature": 1e-40},
                 {"top_p": 1e-320}, {"temperature": 1e-4, "top_p": 1e-46}):
        assert say(**more) == plain, more
    text, end = plain[0], plain[0].index(plain[0][3:6])
    assert say(stop=[text[3:6], "nowhere"]) == (text[:end], "stop")
    status, body = post(port, json.dumps({"messages": [{"role": "user", "content": "how high is it"}],
                                          "stop": text[3:6], "stream": True}).encode())
    assert status == 200 and said(body) == text[:end]
    assert say(max_completion_tokens=3, max_tokens=None)[1] == "length"


def test_transcriptions_are_those_of_chat_py(client, ckpt, tmp_path):
    """Broken: a transcript differs from chat.py's, its end is missing, a cut one isn't told."""
    path = tmp_path / "a.wav"
    path.write_bytes(make_audio(20, 2))
    command = [sys.executable, "chat.py", f"--ckpt={ckpt}", f"--audio={path}"]
    done = subprocess.run(command, cwd=drill.ROOT, capture_output=True, encoding="utf-8")
    heard = re.sub("(?m)^setting .*$", "", done.stdout).split()
    with open(path, "rb") as f:
        found = client.audio.transcriptions.create(model="x", file=f)
    assert found.text.split() == heard != [] and found.is_cut == ("cut off" in done.stderr)
    with open(path, "rb") as f:
        raw = client.audio.transcriptions.with_raw_response
        found = raw.create(model="x", file=f, response_format="text")
    assert found.text.split() == heard
    assert found.headers["x-is-cut"] == str("cut off" in done.stderr)


@pytest.mark.case("B31", "B32")
def test_only_its_own_page_may_ask(port, serve):
    """Broken: a page elsewhere uses the server, a key isn't asked for, a name can't be allowed."""
    at = f"127.0.0.1:{port}"
    assert request(port, "GET", "/health", f"Host: {at}")[0] == 200
    assert request(port, "GET", "/health", "Host: localhost", "Origin: http://localhost")[0] == 200
    for headers in (["Host: evil.example"], ["Host: 127.0.0.1.evil.example"], [], ["Host: [::1"],
                    ["Host: localhost.evil.example:80"], [f"Host: {at}", "Origin: null"],
                    [f"Host: {at}", "Origin: http://evil.example"],
                    [f"Host: {at}", "Origin: http://127.0.0.1:1"]):
        assert request(port, "GET", "/v1/models", *headers)[0] in (400, 403), headers
    page = request(port, "GET", "/", f"Host: {at}")[1].decode()
    assert "https://" not in page and "http://" not in page and "src=" not in page
    server, locked = serve("--api_key=s3cret", "--allow_hosts=my.name, Other.name")
    for given, status in (
            ("Bearer s3cre", 401), ("Bearer s3cret", 200), ("Bearer \xe9", 401), ("s3cret", 401),
            ("bearer s3cret", 200), ("BEARER  s3cret ", 200), ("Bearer", 401), ("Bearer ", 401),
            ("bearer S3CRET", 401), ("Bearers3cret", 401), ("Basic s3cret", 401)):
        headers = ["Host: my.name", f"Authorization: {given}"]
        assert request(locked, "GET", "/v1/models", *headers)[0] == status, given
    for path in ("//v1/models", "/v1/models/", "/v1//models"):
        assert request(locked, "GET", path, "Host: other.name")[0] == 401, path
    for path in ("/", "/health/"):
        assert request(locked, "HEAD", path, "Host: localhost")[0] == 200, path
    for host in ("host.docker.internal:8000", "Other.local"):
        status, body = request(locked, "GET", "/health", f"Host: {host}")
        assert status == 403 and "--allow_hosts" in body.decode() and host in body.decode()
        assert f"not called '{host}': see --allow_hosts" in "".join(server.lines)
    assert "s3cre" not in "".join(server.lines)


def test_logs_hold_no_content(serve):
    """Broken: the log has what a request says or a path it made up, not what 0.0.0.0 means."""
    server, port = serve("--host=0.0.0.0")
    assert ask(port, talk("how high is it"), max_tokens=5)[0] == 200
    encoded = "name=file\r\nContent-Transfer-Encoding: secret", make_audio(0.5, 1)
    assert transcribe(port, encoded)[0] == 200
    request(port, "GET", "/secret-path", "Host: localhost")
    end = time.time() + 10
    while "no such path" not in "".join(server.lines) and time.time() < end:
        time.sleep(0.05)
    log = "".join(server.lines)
    assert "anyone who reaches this machine (no key is asked for: see --api_key=) can use it" in log
    assert "POST /v1/chat/completions 200" in log and "how high" not in log and "secret" not in log


def test_a_client_that_leaves_frees_its_slot(serve):
    """Broken: the server goes on writing for nobody, or doesn't say that it is busy."""
    _, port = serve("--max_batch=1", "--max_tokens=2000")
    chat = {"messages": [USER], "stream": True, "max_tokens": 2000}

    def until(running, waiting, seconds):
        end = time.time() + seconds
        while True:
            now = json.loads(request(port, "GET", "/health", "Host: localhost")[1])
            if now["running"] == running and now["waiting"] == waiting:
                return
            assert time.time() < end, now
    began = time.time()
    n_chunks = post(port, json.dumps(chat).encode())[1].count(b"data: ")
    alone_s = time.time() - began
    assert n_chunks > 500, "the model ends too soon to see who frees the slot"
    clients = []
    for waiting in range(5):
        body = json.dumps(chat | {"stream": waiting % 2 == 0})
        clients.append(socket.create_connection(("127.0.0.1", port)))
        head = "\r\n".join([*CHAT, f"Content-Length: {len(body)}", "", ""])
        clients[-1].sendall((head + body).encode())
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
    health = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for data, start in (("", b""), ("\r\n".join(CHAT), b""), (health + "GET", b"HTTP/1.1 200")):
        with socket.create_connection(("127.0.0.1", port), 10) as s:
            s.sendall(data.encode())
            assert b"".join(iter(lambda: s.recv(1000), b"")).startswith(start)


def test_too_much_sound(port):
    """Broken: a few bytes take the server's memory or minutes."""
    flac = io.BytesIO()
    soundfile.write(flac, np.zeros((192_000 * 20, 8), np.float32), 192_000, format="FLAC")
    for messages in ([talk("x", *[sound(flac.getvalue())] * 10)],
                     [talk("x", sound(make_audio(20, 1)))] * 2):
        status, body = ask(port, *messages)
        assert status == 413 and "over the limit" in body["error"]["message"], body
    assert post(port, b"x" * 3_000_000)[0] == 413


def test_many_at_once_say_what_each_says_alone(port):
    """Broken: requests that are decoded together get another answer than alone, or share one."""
    bodies = drill.good_requests()
    alone, together = [said(post(port, body)[1]) for body in bodies], [""] * len(bodies) * 2

    def run(i):
        together[i] = said(post(port, bodies[i % len(bodies)])[1])
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(together))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone * 2 and len(set(alone)) > 3


@pytest.mark.slow
def test_a_minute_of_load(ckpt):
    """Broken: a crash, a wrong answer, a hang or growing memory under good and bad requests."""
    result = drill.run_drill(ckpt, minutes=0.7)
    assert result["ok"] and result["answers_like_alone"] == 1.0 and len(result["seen"]) == 6, result


@pytest.mark.slow
def test_mutated_requests(ckpt):
    """Broken: a body or a recording with a few bytes changed brings a 500 or a hang."""
    result = drill.run_mutations(ckpt, 500)
    assert result["ok"] and min(result["statuses"]["200"], result["statuses"]["400"]) > 50, result


@pytest.mark.case("B33")
def test_wrong_settings_are_one_line(ckpt, port, tmp_path):
    """Broken: a mistake ends in a traceback, or a port in use is told after the load."""
    for args, expected in (
            ([f"--ckpt={tmp_path}", "--port=0"], "no checkpoint"), (["--max_batch=0"], "more than 0"),
            ([f"--ckpt={tmp_path}", f"--port={port}"], "another server"), (["--port=70000"], "65535"),
            (["--host=no.such.invalid"], "host=no.such.invalid")):
        command = [sys.executable, "serve.py", *args]
        done = subprocess.run(command, cwd=drill.ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and expected in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    with socket.create_server(("127.0.0.1", 0)) as earlier:
        free = earlier.getsockname()[1]
        with socket.create_connection(earlier.getsockname()):
            earlier.accept()[0].close()  # the port is in TIME_WAIT, as after a stopped server
    command = [sys.executable, "serve.py", f"--ckpt={ckpt}", f"--port={free}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    servers = [subprocess.Popen(command, cwd=drill.ROOT, **pipes) for _ in range(2)]
    serves = [any("open http" in line for line in server.stdout) for server in servers]
    for server in servers:
        server.kill()
        server.communicate()
    assert sorted(serves) == [False, True]


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
    for line in re.findall(r"^curl .*?[^\\]$", text, re.S | re.M) if shutil.which("curl") else ():
        done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert "error" not in json.loads(done.stdout), (line, done.stdout)


# --- a real browser
@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium whose microphone plays half a second of silence, then a tone."""
    found = list(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    if not found:
        pytest.skip("no Chromium here (apt install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    clip, wav = str(tmp_path_factory.mktemp("mic") / "mic.wav"), np.zeros(16_000 * 3)
    wav[8_000:40_000] = 0.3 * np.sin(np.arange(32_000) / 8)
    soundfile.write(clip, wav, 16_000, subtype="PCM_16")
    with sync_api.sync_playwright() as play:
        yield play.chromium.launch(executable_path=found[0], args=[
            "--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-audio-capture={os.environ.get('MICROPHONE_WAV', clip)}"])


def open_page(browser, port, **settings):
    """-> a page with the chat in it, and the list of its errors."""
    page, errors = browser.new_context(permissions=["microphone"], **settings).new_page(), []
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.set_default_timeout(15_000)
    page.goto(f"http://127.0.0.1:{port}/")
    return page, errors


@pytest.mark.slow
def test_record_send_and_read_the_answer(browser, port):
    """Broken: no answer to a recording; it isn't what was recorded; a phone's or dark page."""
    page, errors = open_page(browser, port, viewport={"width": 320, "height": 560},
                             color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(23, 23, 22)"
    sent = []
    page.on("request", lambda r: sent.append(r.post_data_json) if "completions" in r.url else None)
    page.get_by_role("button", name="Record", exact=True).click()
    page.get_by_role("button", name="Stop", exact=True).wait_for()
    end = time.time() + 15
    while page.evaluate("document.getElementById('level').value") < 0.2:
        assert time.time() < end
        page.wait_for_timeout(50)
    page.wait_for_timeout(1500)
    page.keyboard.press("Escape")
    page.locator("#clip audio").wait_for()
    page.get_by_role("button", name="Who is speaking?").click()
    page.keyboard.press("Enter")
    page.locator(".turn.assistant .time").wait_for()
    part, text = sent[0]["messages"][0]["content"]
    wav = read_audio(base64.b64decode(part["input_audio"]["data"]))
    assert text["text"] == "Who is speaking?" and 1.5 < len(wav) / 16_000 < 8
    assert np.abs(wav).max() > 0.1 and page.locator(".turn.user audio").count() == 1
    page.get_by_role("textbox", name="Message").fill("how high is it")
    page.get_by_role("button", name="Send").click()  # a second turn, with the first in it
    page.locator(".turn.assistant .time").nth(1).wait_for()
    assert [m["role"] for m in sent[1]["messages"]] == ["user", "assistant", "user"]
    assert page.evaluate("urls.size") == 1  # the recording can be heard as long as it stands there
    page.get_by_role("button", name="New conversation").click()
    assert page.evaluate("urls.size") == 0 and page.locator("audio").count() == 0
    assert not errors, errors


@pytest.mark.slow
def test_the_page_says_what_is_wrong(browser, port, tmp_path):
    """Broken: no microphone, a wrong or silent file, a busy server or none leave it dumb."""
    page, _ = open_page(browser, port)
    for name, expected in (("NotAllowedError", "denied"), ("NotFoundError", "no microphone")):
        denied = f"async () => {{ throw new DOMException('x', '{name}') }}"
        page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {denied} }}")
        page.get_by_role("button", name="Record", exact=True).click()
        page.locator("#note", has_text=expected).wait_for()
    (tmp_path / "x.wav").write_bytes(b"no sound")
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 44_100)
    for name, expected in (("x.wav", "no sound that this browser can read"), ("silent.wav", "silent")):
        page.set_input_files("#file", str(tmp_path / name))
        page.locator("#note", has_text=expected).wait_for()
    busy = {"status": 503, "json": {"error": {"message": "x"}}}
    page.route("**/completions", lambda route: route.fulfill(**busy))
    page.get_by_role("button", name="Send").click()
    page.get_by_text("The server is busy").wait_for()
    page.unroute("**/completions")
    page.route("**/completions", lambda route: route.abort())
    page.get_by_role("textbox").fill("x")
    page.keyboard.press("Enter")
    page.get_by_text("does not answer").wait_for()
