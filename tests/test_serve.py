"""serve.py as its clients meet it: the openai package, curl's requests, bad ones, many at once, and a real browser."""
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


@pytest.fixture(scope="module")
def client(port):
    import openai
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)


def talk(question, *sounds):
    return {"role": "user", "content": [*sounds, {"type": "text", "text": question}]}


def request(port, method, path, headers=(), body=b""):
    """A request with just these headers -> (status, body)."""
    with socket.create_connection(("127.0.0.1", port), 10) as s:
        lines = [f"{method} {path} HTTP/1.1", "Connection: close", *headers, f"Content-Length: {len(body)}", "", ""]
        s.sendall("\r\n".join(lines).encode() + body)
        data = b"".join(iter(lambda: s.recv(65536), b""))
    return int(data.split()[1]), data.partition(b"\r\n\r\n")[2]


def ask(port, **body):
    status, data = post(port, json.dumps(body).encode())
    return status, json.loads(data)


def test_openai_client(client, ckpt):
    """The openai package cannot use the server: models, chats, recordings in two turns, streams, usage, its errors."""
    import openai
    assert [model.id for model in client.models.list()] == ["run"] and client.models.retrieve("run").id == "run"
    clip = sound(make_audio(0.5, 1))
    given = dict(model="x", temperature=0, max_tokens=9)
    one = client.chat.completions.create(messages=[talk("how high is it", clip)], **given)
    answer = one.choices[0].message.content
    assert answer and one.usage.completion_tokens == 9 and one.choices[0].finish_reason == "length"
    mp3 = {"type": "input_audio", "input_audio": {"data": base64.b64encode(make_audio(0.5, 1, "MP3")).decode(),
                                                  "format": "mp3"}}
    turns = [talk("how high is it", clip), {"role": "assistant", "content": answer}, talk("red", mp3)]
    given["messages"] = turns
    whole = client.chat.completions.create(**given)
    chunks = list(client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content != answer
    assert chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == "length"
    assert whole.usage.prompt_tokens > one.usage.prompt_tokens + 9
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(model="x", messages=[{"role": "user", "content": "x"}], temperature=3)
    assert e.value.param == "temperature" and "less than or equal to 2" in str(e.value)


def answer(port, *messages, **more):
    """The choices and usage of an answer to messages (role, content), which must succeed."""
    messages = [{"role": role, "content": content} for role, content in messages]
    status, body = ask(port, messages=messages, **{"max_tokens": 9, **more})
    assert status == 200, (messages, more, body)
    return body["choices"], body["usage"]


def hear(port, part):
    """What is said of a recording, so hot that the answer shows which one it was."""
    return answer(port, ("user", [part]), temperature=2, seed=1, max_tokens=60)


def refused(port, *messages, **more):
    """The param and message of a chat that is refused with 400."""
    status, body = ask(port, messages=list(messages), **more)
    assert status == 400, body
    return body["error"]["param"], body["error"]["message"]


def transcribe(port, *parts):
    """-> (status, body) of a form: its parts are (what follows `form-data; `, bytes or str)."""
    body = b""
    for head, data in parts:
        body += f"--xx\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode()
        body += (data if isinstance(data, bytes) else data.encode()) + b"\r\n"
    path, kind = "/v1/audio/transcriptions", "multipart/form-data; boundary=xx"
    status, body = post(port, body + b"--xx--\r\n", path, kind)
    return status, json.loads(body)


@pytest.mark.case("B25")
def test_system_messages_join_the_users_words(port):
    """A second system message, or one after a turn, is refused or lost, or replaces the question."""
    user, said = ("user", "how high"), ("assistant", "red")
    low, red, none = ("system", "low"), ("developer", "old red"), ("system", None)
    as_parts = ("system", [{"type": "text", "text": "low"}])
    for messages, right in (
            ([low, user], "low\n\nhow high"), ([as_parts, user], "low\n\nhow high"),
            ([low, red, user], "low\n\nold red\n\nhow high"),
            ([low, red, low, user], "low\n\nold red\n\nlow\n\nhow high"),
            ([user, red], "how high\n\nold red"), ([("system", ""), user], "how high"),
            ([none, user], "how high"), ([low], "low")):
        assert answer(port, *messages) == answer(port, ("user", right)), messages
    assert answer(port, low, user) != answer(port, user)
    right = answer(port, user, said, ("user", "old red\n\nhow high"))
    assert answer(port, user, said, red, user) == right
    clip = sound(make_audio(0.5, 1))  # a recording without words: serve.py's question
    right = answer(port, ("user", [clip, {"type": "text", "text": "low\n\nanswer the question"}]))
    assert answer(port, low, ("user", [clip])) == right != answer(port, ("user", [clip]))
    assert refused(port, {"role": "system", "content": [clip]})[0] == "messages.0.content.0"


@pytest.mark.case("B26")
def test_base64_as_clients_write_it(port):
    """Line ends in base64, or a data: URI, are refused; or what is no base64 passes for it."""
    wav = make_audio(0.5, 1)
    text, wrapped = base64.b64encode(wav).decode(), base64.encodebytes(wav).decode()
    part = lambda data: {"type": "input_audio", "input_audio": {"data": data}}
    right = hear(port, part(text))
    assert right != hear(port, sound(make_audio(0.5, 2))) and "\n" in wrapped[:100]
    for data in (wrapped, wrapped.replace("\n", "\r\n"), text + "\n", f"  {text}\t",
                 f"data:audio/wav;base64,{text}", f"data:;base64,{text}",
                 f"DATA:audio/x-wav;codecs=1;BASE64,{wrapped}"):
        assert hear(port, part(data)) == right, data[:60]
    for data, word in (
            ("data:audio/wav," + text, ";base64,"), ("data:;base64," + text[:-1], "base64"),
            (text[:-1], "base64"), (text[:40] + "!" + text[40:], "base64"), ("\u00e9" + text, "base64"),
            ("../secret.wav", "base64"), ("https://example.org/clip.wav", "base64"),
            (wav.hex(), "audio"), ("", "empty")):
        param, message = refused(port, {"role": "user", "content": [part(data)]})
        assert param == "messages.0.content.0.input_audio.data" and word in message, message


@pytest.mark.case("B13", "B27")
def test_the_bytes_decide_what_a_sound_is(port):
    """A sound is refused for its label; or the refusal of its bytes doesn't say what is read."""
    files = {kind: make_audio(0.5, 1, kind) for kind in ("WAV", "MP3", "FLAC", "OGG")}
    opus = io.BytesIO()
    soundfile.write(opus, read_audio(files["WAV"]), 16_000, format="OGG", subtype="OPUS")
    files["OPUS"] = opus.getvalue()
    for kind, labels in (
            ("WAV", ["WAV", "wave", "x-wav", "audio/wav", "mp3", "webm", "pcm16", "", None]),
            ("MP3", ["mp3", "mpeg", "audio/mpeg", "mpga", "wav"]), ("OGG", ["ogg", "vorbis"]),
            ("FLAC", ["flac", "audio/x-flac", "m4a"]), ("OPUS", ["opus", "oga", "ogg", "webm"])):
        bare = sound(files[kind])
        del bare["input_audio"]["format"]
        right = hear(port, bare)
        for label in labels:
            assert hear(port, sound(files[kind], label)) == right, (kind, label)
    webm = bytes.fromhex("1a45dfa39f4286810142f7810142f2810442f381084282847765626d42878104")
    webm += bytes(400)  # a head, no sound
    for data, label in ((webm, "webm"), (webm, "wav"), (webm, "m4a"), (b"<html>", "wav"),
                        (files["WAV"][44:], "pcm16")):
        param, message = refused(port, {"role": "user", "content": [sound(data, label)]})
        assert param == "messages.0.content.0.input_audio.data", label
        assert all(name in message for name in ("wav", "mp3", "flac", "ogg")), message
        status, body = transcribe(port, ('name="file"; filename="clip.mp3"', data))
        assert status == 400 and body["error"]["message"] == message


@pytest.mark.case("B28")
def test_what_agents_send(port):
    """An assistant's empty content is refused; or a refusal doesn't name the field and its limit."""
    user, low = {"role": "user", "content": "how high"}, {"role": "user", "content": "low"}
    right = answer(port, ("user", "how high"), ("assistant", ""), ("user", "low"))
    for said in ({"content": None}, {}, {"content": []}, {"refusal": None, "audio": None}):
        messages = [user, {"role": "assistant", **said}, low]
        status, body = ask(port, messages=messages, max_tokens=9)
        assert status == 200 and (body["choices"], body["usage"]) == right, body
    right = answer(port, ("user", "low"), ("assistant", "red"), ("user", "x"))
    parts = [{"type": "text", "text": "red"}]
    assert answer(port, ("user", "low"), ("assistant", parts), ("user", "x")) == right
    for limit in (None, 4.0, 131072):
        assert ask(port, messages=[user], max_tokens=limit)[0] == 200
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    for messages, param, word in (
            ([user, call, {"role": "tool", "content": "22"}], "messages.2.role", "'user'"),
            ([user, {"role": "function", "content": "22"}], "messages.1.role", "'user'"),
            ([call], "messages.0", "user"), ([user, call, call, user], "messages.2", "user"),
            ([user, call], "messages", "last message")):
        found, message = refused(port, *messages)
        assert found == param and word in message, message
    for more, param, word in (
            ({"max_tokens": -1}, "max_tokens", "or equal to 1"), ({"stop": 5}, "stop", "valid"),
            ({"max_tokens": 0}, "max_tokens", "or equal to 1"), ({"stop": ["a", 5]}, "stop.1", "string"),
            ({"max_completion_tokens": -1}, "max_completion_tokens", "or equal to 1"),
            ({"response_format": {"type": "json_object"}}, "response_format.type", "'text'"),
            ({"response_format": {"type": "json_schema"}}, "response_format.type", "'text'"),
            ({"stop": list("abcde")}, "stop", "at most 4")):
        found, message = refused(port, user, **more)
        assert found == param and message.startswith(f"{param}: ") and word in message, message


@pytest.mark.case("B29")
def test_empty_optional_fields(port):
    """An empty optional field is an error; or one that would change the answer is passed over."""
    right = answer(port, ("user", "how high"))
    for more in ({"stop": ""}, {"stop": []}, {"stop": [""]}, {"stop": None}, {"tools": None},
                 {"tools": [], "tool_choice": "none"}, {"n": None}, {"response_format": None},
                 {"logit_bias": {}}, {"stream": None}, {"stream_options": None}, {"model": ""},
                 {"temperature": None, "top_p": None, "seed": None}):
        assert answer(port, ("user", "how high"), **more) == right, more
    file = 'name="file"; filename="a.wav"', make_audio(2.0, 2)
    heard = transcribe(port, file)
    assert heard[0] == 200 and heard[1]["text"]
    for field, values in (
            ("language", ["", "en", "auto"]), ("prompt", ["", "Kansas, " * 300]), ("model", [""]),
            ("temperature", ["", "warm"]), ("response_format", ["", "json", "JSON"]),
            ("stream", ["", "false", "null"]), ("hotwords", [""]), ("vad_filter", ["true"]),
            ("timestamp_granularities[]", ["word"])):
        for value in values:
            assert transcribe(port, (f'name="{field}"', value), file) == heard, (field, value)
    for field, values in (("response_format", ["verbose_json", "srt", "vtt", "diarized_json"]),
                          ("stream", ["true", "True", "TRUE", "1"])):
        for value in values:
            status, body = transcribe(port, file, (f'name="{field}"', value))
            assert status == 400 and body["error"]["param"] == field, body
            assert field in body["error"]["message"]
    status, body = transcribe(port, file, *[(f'name="f{i}"', "x") for i in range(40)])
    assert status == 400 and "more than 33 parts" in body["error"]["message"]


@pytest.mark.case("B30")
def test_a_file_without_a_filename(port):
    """A form's file is refused, changed or written to the disk where its part has no filename."""
    wav, named = make_audio(2.0, 2), 'name="file"; filename="a.wav"'
    heard = transcribe(port, (named, wav))
    assert heard[0] == 200 and heard[1]["text"]
    for head in ('name="file"', 'name="file"\r\nContent-Type: audio/wav', 'name="file"; filename=""',
                 "name=\"file\"; filename*=UTF-8''gr%C3%B6%C3%9Fe.wav",
                 'name="file"; filename="blob"\r\nContent-Type: application/octet-stream',
                 'name="file"; filename="gr\u00f6\u00dfe \u65e5\u672c.wav"',
                 'name="file"; filename="..\\..\\C:\\clip.wav"'):
        assert transcribe(port, ('name="model"', "m"), (head, wav)) == heard, head
    large, noise = io.BytesIO(), np.random.default_rng(0).normal(0, 0.1, (48_000, 8))
    soundfile.write(large, noise, 96_000, format="WAV", subtype="FLOAT")
    for head in ('name="file"', named):
        assert transcribe(port, (head, large.getvalue()))[0] == 200  # 1.5 MB
    for parts, word in (([('name="audio"', wav)], "0 parts named file"), ([], "0 parts named file"),
                        ([(named, wav), (named, wav)], "2 parts named file"), ([(named, "")], "empty")):
        status, body = transcribe(port, *parts)
        assert status == 400 and body["error"]["param"] == "file"
        assert word in body["error"]["message"]
    status, body = post(port, b"x", "/v1/audio/transcriptions", "multipart/form-data")
    assert status == 400 and b"boundary" in body


@pytest.mark.case("B40")
def test_addresses(port):
    """A slash too many loses the body, a watchdog's HEAD looks like an outage, a 404 is no JSON."""
    user = {"role": "user", "content": "how high"}
    chat = json.dumps({"messages": [user], "max_tokens": 9}).encode(), "application/json"
    for path, (body, kind) in (("/v1/chat/completions", chat),
                               ("/v1/audio/transcriptions", multipart(make_audio(0.5, 1)))):
        for other in (path, path + "/", "/" + path, path.replace("v1/", "v1//"), path + "?api=1"):
            assert post(port, body, other, kind)[0] == 200, other
    for path in ("/", "/health", "/v1/models", "/v1/models/", "/v1/models/run", "/v1/models/run/",
                 "//v1//models", "//"):
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
            ("POST", "/v1/v1/chat/completions", 404, "/v1/chat/completions"),
            ("GET", "/models", 404, "/v1/models"), ("GET", "/v1/models/gpt-9/", 404, "run"),
            ("PUT", "/v1/chat/completions", 405, "Method"),
            ("GET", "/v1/audio/transcriptions/", 405, "Method")):
        found, body = request(port, method, path, ["Host: localhost"])
        assert found == status and word in json.loads(body)["error"]["message"], (path, body)
    assert request(port, "HEAD", "/v1/chat/completions", ["Host: localhost"]) == (405, b"")


def test_sampling_settings(port):
    """A setting of the request changes nothing: seed, temperature, top_p, stop, penalties, max_tokens."""
    def say(**more):
        status, body = ask(port, messages=[{"role": "user", "content": "how high is it"}], **{"max_tokens": 40, **more})
        assert status == 200, body
        return body["choices"][0]
    plain = say()["message"]["content"]
    hot = say(temperature=2, seed=5)["message"]["content"]
    assert hot == say(temperature=2, seed=5)["message"]["content"] != say(temperature=2, seed=6)["message"]["content"]
    assert say(temperature=2, top_p=1e-9)["message"]["content"] == plain == say(temperature=0)["message"]["content"]
    assert say(presence_penalty=2, frequency_penalty=2)["message"]["content"] != plain
    stopped = say(stop=[plain[3:6], "nowhere"])
    assert stopped["message"]["content"] == plain[:plain.index(plain[3:6])] and stopped["finish_reason"] == "stop"
    assert say(max_completion_tokens=3, max_tokens=None)["finish_reason"] == "length"
    assert "usage" in ask(port, messages=[{"role": "user", "content": "x"}], max_tokens=10**9, temperature=None)[1]


def test_transcriptions_are_those_of_chat_py(client, port, ckpt, tmp_path):
    """A transcript differs from chat.py's, a long recording's end is missing, or a format of the answer fails."""
    (tmp_path / "a.wav").write_bytes(make_audio(20, 2))
    command = [sys.executable, "chat.py", f"--ckpt={ckpt}", f"--audio={tmp_path / 'a.wav'}", "--device=cpu"]
    done = subprocess.run(command, cwd=drill.ROOT, capture_output=True, encoding="utf-8")
    heard = " ".join(line for line in done.stdout.splitlines(True) if not line.startswith("setting ")).split()
    with open(tmp_path / "a.wav", "rb") as f:
        assert client.audio.transcriptions.create(model="x", file=f).text.split() == heard != []
    with open(tmp_path / "a.wav", "rb") as f:
        assert client.audio.transcriptions.create(model="x", file=f, response_format="text").split() == heard
    assert len(read_audio(str(tmp_path / "a.wav"))) == 320_000


def test_wrong_requests(port):
    """A client's mistake is a 500, a hang, or an answer; or the error does not say which field."""
    user = {"role": "user", "content": "x"}
    twice, once = (ask(port, messages=messages, max_tokens=9)[1] for messages in (
        [user, user], [{"role": "user", "content": "x\nx"}]))  # OpenAI takes two of a user's in a row
    assert (twice["choices"], twice["usage"]) == (once["choices"], once["usage"])
    clip = sound(make_audio(0.5, 1))
    twice, once = (ask(port, messages=messages, max_tokens=9)[1] for messages in (
        [{"role": "user", "content": [clip]}, user], [talk("x", clip)]))  # nor is a bare recording's question put in
    assert (twice["choices"], twice["usage"]) == (once["choices"], once["usage"])
    assert ask(port, messages=[{"role": "user", "content": [sound(make_audio(20, 1))]}] * 2)[0] == 413
    tool, path = {"role": "tool", "content": "x"}, {"data": "../secret.wav", "format": "wav"}
    cases = [({"messages": []}, "messages"), ({"messages": [user, tool]}, "messages.1.role"),
             ({"messages": [user], "top_p": 0}, "top_p"), ({"messages": [user], "n": 2}, "n"),
             ({"messages": [user], "tools": [{}]}, "tools"), ({"messages": [user], "seed": 2**70}, "seed"),
             ({"messages": [user], "max_tokens": 0}, "max_tokens"),
             ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"), ({}, "messages"),
             ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
             ({"messages": [talk("x", {"type": "input_audio"})]}, "messages.0.content.0"),
             ({"messages": [talk("x", {"type": "input_audio", "input_audio": path})]},
              "messages.0.content.0.input_audio.data"),
             ({"messages": [talk("x", sound(b"no sound"))]}, "messages.0.content.0.input_audio.data"),
             ({"messages": [{"role": "user", "content": "how " * 5000}]}, "messages")]
    for body, param in cases:
        status, answer = ask(port, **body)
        assert status == 400 and answer["error"]["param"].startswith(param), (body, status, answer)
        assert answer["error"]["type"] == "invalid_request_error" and answer["error"]["message"]
    assert post(port, b'{"messages": ' + b"[" * 100_000)[0] == 400 and post(port, b"\xff")[0] == 400
    assert post(port, b"{}", kind="text/plain")[0] == 415 and post(port, b"{}", "/v1/audio/transcriptions")[0] == 415
    assert post(port, *[multipart(b"")[0], "/v1/audio/transcriptions", multipart(b"")[1]])[0] == 400
    assert post(port, b"--xx--", "/v1/audio/transcriptions", "multipart/form-data; boundary=xx")[0] == 400
    too_long = {"messages": [talk("x", sound(make_audio(20, 1)), sound(make_audio(20, 1)))]}
    assert ask(port, **too_long)[0] == 413 and post(port, b"x" * 3_000_000)[0] == 413
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405),
                                 ("GET", "/v1/models/gpt-9", 404), ("GET", "/../serve.py", 404)):
        found, body = request(port, method, path, ["Host: localhost"])
        assert found == status and json.loads(body)["error"]["message"]


@pytest.mark.case("B31", "B32")
def test_only_its_own_page_may_ask(port, ckpt):
    """A page elsewhere uses a local server, by DNS rebinding or from its own origin; or a key is not asked for.

    Or `bearer` must be written Bearer (B31); or the log doesn't tell how to allow a name (B32).
    """
    at = f"127.0.0.1:{port}"
    assert request(port, "GET", "/health", [f"Host: {at}"])[0] == 200
    assert request(port, "GET", "/health", ["Host: localhost", "Origin: http://localhost"])[0] == 200
    for headers in (["Host: evil.example"], ["Host: 127.0.0.1.evil.example"], [], ["Host: localhost.evil.example:80"],
                    ["Host: [::1"], [f"Host: {at}", "Origin: http://evil.example"], [f"Host: {at}", "Origin: null"],
                    [f"Host: {at}", "Origin: http://127.0.0.1:1"]):
        assert request(port, "GET", "/v1/models", headers)[0] in (400, 403), headers
    page = request(port, "GET", "/", [f"Host: {at}"])[1].decode()
    assert "https://" not in page and "http://" not in page and "src=" not in page  # nothing from elsewhere
    server, locked = start_server(ckpt, "--api_key=s3cret", "--allow_hosts=my.name")
    try:
        own = "Host: my.name"
        for given, status in (
                ("Bearer s3cre", 401), ("Bearer s3cret", 200), ("Bearer \xe9", 401), ("s3cret", 401),
                ("bearer s3cret", 200), ("BEARER s3cret", 200), ("Bearer  s3cret ", 200),
                ("Bearer", 401), ("Bearer ", 401), ("Bearer undefined", 401), ("bearer S3CRET", 401),
                ("Bearers3cret", 401), ("Basic s3cret", 401), ("Basic OnMzY3JldA==", 401)):
            headers = [own, f"Authorization: {given}"]
            assert request(locked, "GET", "/v1/models", headers)[0] == status, given
        for path in ("/v1/models", "//v1/models", "/v1/models/", "/v1//models"):
            assert request(locked, "GET", path, [own])[0] == 401, path
        for path in ("/", "/health", "/health/"):
            assert request(locked, "HEAD", path, ["Host: localhost"])[0] == 200, path
        for host in ("host.docker.internal:8000", "Other.local", "a" * 90, "b d"):
            status, body = request(locked, "GET", "/health", [f"Host: {host}"])
            assert status == 403 and b"--allow_hosts" in body and host[:9] in body.decode()
        log = "".join(server.lines)
        assert "s3cre" not in log and "aaa" not in log and "b d" not in log
        for host in ("host.docker.internal", "Other.local"):
            assert f"--allow_hosts=my.name,{host}\n" in log
    finally:
        server.kill()


def test_logs_hold_no_content(ckpt):
    """What a request says, or a path that it made up, stands in the log; what 0.0.0.0 means does not."""
    server, port = start_server(ckpt, "--host=0.0.0.0")
    try:
        assert ask(port, messages=[{"role": "user", "content": "how high is it"}], max_tokens=5)[0] == 200
        request(port, "GET", "/secret-path", ["Host: localhost"])
        encoded = "name=file\r\nContent-Transfer-Encoding: secret", make_audio(0.5, 1)
        assert transcribe(port, encoded)[0] == 200
        end = time.time() + 10
        while "no such path" not in "".join(server.lines) and time.time() < end:
            time.sleep(0.05)
        log = "".join(server.lines)
        assert "anyone who reaches this machine can use it, and no key is asked for" in log
        assert "POST /v1/chat/completions 200" in log and "how high" not in log and "secret" not in log
    finally:
        server.kill()


def test_a_client_that_leaves_frees_its_slot(ckpt):
    """The server goes on writing for nobody; or a full queue hangs where it should say that it is busy."""
    server, port = start_server(ckpt, "--max_batch=1", "--max_queue=1", "--max_tokens=2000")
    body = json.dumps({"messages": [{"role": "user", "content": "how high is it"}], "stream": True, "max_tokens": 2000})
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    state = lambda: json.loads(request(port, "GET", "/health", ["Host: localhost"])[1])

    def until(running, waiting, seconds):
        end = time.time() + seconds
        while (now := state())["running"] != running or now["waiting"] != waiting:
            assert time.time() < end, now
    try:
        began = time.time()
        chunks = post(port, body.encode())[1].count(b"data: ")
        alone_s = time.time() - began
        assert chunks > 500, "the model ends by itself too soon to see who frees the slot"
        clients = []
        for waiting in (0, 1):
            clients.append(socket.create_connection(("127.0.0.1", port)))
            clients[-1].sendall(f"{head}{len(body)}\r\n\r\n{body}".encode())
            until(1, waiting, alone_s / 4)
        status, answer = post(port, body.encode())
        assert status == 503 and "busy" in json.loads(answer)["error"]["message"]
        for client in clients:
            client.close()
        until(0, 0, alone_s / 2)
    finally:
        server.kill()


def test_a_slow_body_is_refused_in_time(ckpt):
    """A client that never sends the rest of its headers or body keeps its place; a body of no length has no limit."""
    server, port = start_server(ckpt, "--request_timeout_s=1", "--max_body_mb=0.1")
    try:
        head = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        for more, data, status in (("Content-Length: 100", b"{", b" 408 "),
                                   ("Transfer-Encoding: chunked", b"30000\r\n" + b" " * 0x30000 + b"\r\n", b" 413 ")):
            with socket.create_connection(("127.0.0.1", port), 10) as s:
                s.sendall("\r\n".join([*head, more, "", ""]).encode() + data)
                assert status in s.recv(1000)
        for data in ("", "\r\n".join(head), "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET"):
            with socket.create_connection(("127.0.0.1", port), 10) as s:
                s.sendall(data.encode())
                assert b"".join(iter(lambda: s.recv(1000), b"")).startswith(b"HTTP/1.1 200" if "GET" in data else b"")
    finally:
        server.kill()


def test_one_request_costs_itself_alone(port, ckpt):
    """A few bytes take the server's memory or minutes, or fail what the others ask."""
    user = {"role": "user", "content": "how high is it"}
    for more in ({"temperature": 1e-40}, {"top_p": 1e-320}, {"temperature": 1e-4, "top_p": 1e-46, "max_tokens": 3}):
        assert ask(port, messages=[user], **more)[0] == 200, more
    for more, param in (({"stop": ["x"] * 5}, "stop"), ({"stop": "x" * 300}, "stop"),
                        ({"logit_bias": {"5": 1}}, "logit_bias"),
                        ({"response_format": {"type": "json_object"}}, "response_format.type"),
                        ({"messages": [{"role": "user", "content": [0] * 100_000}]}, "messages.0.content"),
                        ({"messages": [{"role": "user", "content": "how " * 400_000}]}, "messages")):
        status, body = ask(port, **{"messages": [user], **more})
        assert status == 400 and body["error"]["param"].startswith(param), body
    flac = io.BytesIO()
    soundfile.write(flac, np.zeros((192_000 * 20, 8), np.float32), 192_000, format="FLAC")  # 20 s in a few kB
    many = {"role": "user", "content": [sound(flac.getvalue(), "flac")] * 10}
    assert ask(port, messages=[many])[0] == 413
    form = b"multipart/form-data; charset=undefined; boundary=xx".decode()
    assert post(port, multipart(b"x")[0], "/v1/audio/transcriptions", form)[0] == 400


def test_many_at_once_say_what_each_says_alone(port):
    """Requests that are decoded together get another answer than alone, or share one."""
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
    """A crash, a wrong answer, a hang or memory that grows, under good, broken, huge, slow and cut-off requests."""
    result = drill.run_drill(ckpt, minutes=0.7)
    assert result["ok"] and result["answers_like_alone"] == 1.0 and len(result["seen"]) == 6, result


@pytest.mark.slow
def test_mutated_requests(ckpt):
    """A body or a recording with a few bytes changed brings a 500 or a hang (10,000 of them: tests/drill.py)."""
    result = drill.run_mutations(ckpt, 500)
    assert result["ok"] and result["statuses"]["200"] > 50 and result["statuses"]["400"] > 50, result


def test_wrong_settings_are_one_line(ckpt, port, tmp_path):
    """A user's mistake ends in a traceback."""
    for args, expected in (([f"--ckpt={tmp_path}"], "no checkpoint"), ([f"--ckpt={ckpt}", f"--port={port}"], "--port="),
                           ([f"--ckpt={ckpt}", "--host=no.such.invalid"], "host="), (["--max_batch=0"], "1 or more")):
        done = subprocess.run([sys.executable, "serve.py", *args], cwd=drill.ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.case("B33")
def test_two_servers_of_one_port(ckpt, tmp_path):
    """Two servers that start together both get the port, or neither; or it is tried after the load."""
    with socket.create_server(("127.0.0.1", 0)) as earlier:
        port = earlier.getsockname()[1]
        with socket.create_connection(earlier.getsockname()):
            earlier.accept()[0].close()  # the port is in TIME_WAIT, as after a server that was stopped
    command = [sys.executable, "serve.py", f"--ckpt={ckpt}", f"--port={port}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": drill.ROOT}
    servers = [subprocess.Popen(command, **pipes) for _ in range(2)]
    try:
        serves = [any("open http" in line for line in server.stdout) for server in servers]
        assert sorted(serves) == [False, True]
        second = servers[serves.index(False)]
        error = second.stderr.read()
        assert second.wait() == 2 and error.count("\n") == 1, error
        assert f"port={port}" in error and "another server" in error and "--port=" in error
        command[2] = f"--ckpt={tmp_path}"  # no run is there: loading would say so
        late = subprocess.run(command, cwd=drill.ROOT, capture_output=True, text=True)
        assert late.returncode == 2 and late.stderr.count("\n") == 1, late.stderr
        assert "another server" in late.stderr and "checkpoint" not in late.stderr
    finally:
        for server in servers:
            server.kill()
            server.communicate()


@pytest.mark.slow
def test_readme_examples(port, tmp_path):
    """What the README tells a client to type does not work."""
    text = (drill.ROOT / "README.md").read_text(encoding="utf-8").replace(":8000", f":{port}")
    script = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "openai" in block)
    (tmp_path / "clip.wav").write_bytes(make_audio(1.0, 1))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    curls = re.findall(r"^curl .*?[^\\]$", text, re.S | re.M)
    assert len(curls) >= 2
    for line in curls if shutil.which("curl") else ():
        answer = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True).stdout
        assert "error" not in json.loads(answer), (line, answer)


# ---- a real browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium whose microphone plays a file: half a second of silence, then a swelling tone."""
    if not BROWSER:
        pytest.skip("no Chromium here (apt install chromium): the browser test is skipped")
    sync_api = pytest.importorskip("playwright.sync_api")
    clip, wav = str(tmp_path_factory.mktemp("mic") / "mic.wav"), np.zeros(16_000 * 3)
    wav[8_000:40_000] = 0.3 * np.sin(np.arange(32_000) / 8)
    soundfile.write(clip, wav, 16_000, subtype="PCM_16")
    clip = os.environ.get("MICROPHONE_WAV", clip)
    with sync_api.sync_playwright() as play:
        yield play.chromium.launch(executable_path=BROWSER, args=[
            "--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-audio-capture={clip}"])


def open_page(browser, port, **settings):
    """-> a page with the chat in it, and the list of its errors."""
    page, errors = browser.new_context(**{"permissions": ["microphone"], **settings}).new_page(), []
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.set_default_timeout(15_000)
    page.goto(f"http://127.0.0.1:{port}/")
    return page, errors


@pytest.mark.slow
def test_record_send_and_read_the_answer(browser, port):
    """A person records, listens, asks, and no answer appears; or what was sent is not what was recorded."""
    page, errors = open_page(browser, port)
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
    assert "first token after" in page.locator(".time").inner_text() and page.locator(".turn.user audio").count() == 1
    part, text = sent[0]["messages"][0]["content"]
    wav = read_audio(base64.b64decode(part["input_audio"]["data"]))
    assert text["text"] == "Who is speaking?" and 1.5 < len(wav) / 16_000 < 8 and np.abs(wav).max() > 0.1
    page.get_by_role("textbox").fill("how high is it")
    page.get_by_role("button", name="Send").click()  # a second turn, with the first in it
    page.locator(".turn.assistant .time").nth(1).wait_for()
    assert [m["role"] for m in sent[1]["messages"]] == ["user", "assistant", "user"] and not errors, errors
    assert page.evaluate("urls.size") == 1  # the recording can be heard as long as it stands there
    page.get_by_role("button", name="New conversation").click()
    assert page.evaluate("urls.size") == 0 and page.locator("audio").count() == 0


@pytest.mark.slow
def test_the_page_says_what_is_wrong(browser, port, ckpt, tmp_path):
    """A denied or absent microphone, a wrong file, a silent one, a busy server or none at all leave the page dumb."""
    page, _ = open_page(browser, port)
    for name, expected in (("NotAllowedError", "denied"), ("NotFoundError", "no microphone")):
        denied = f"async () => {{ throw new DOMException('x', '{name}') }}"
        page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {denied} }}")
        page.get_by_role("button", name="Record", exact=True).click()
        page.locator("#note", has_text=expected).wait_for()
    (tmp_path / "x.wav").write_bytes(b"no sound")
    silent, out = tmp_path / "silent.wav", io.BytesIO()
    soundfile.write(out, np.zeros(16_000), 44_100, format="WAV")
    silent.write_bytes(out.getvalue())
    for path, expected in ((tmp_path / "x.wav", "no sound that this browser can read"), (silent, "silent")):
        page.set_input_files("#file", str(path))
        page.locator("#note", has_text=expected).wait_for()
    page.route("**/completions", lambda route: route.fulfill(status=503, json={"error": {"message": "x"}}))
    page.get_by_role("button", name="Send").click()
    page.get_by_text("The server is busy").wait_for()
    page.unroute("**/completions")
    page.route("**/completions", lambda route: route.abort())
    page.get_by_role("textbox").fill("x")
    page.keyboard.press("Enter")
    page.get_by_text("does not answer").wait_for()


@pytest.mark.slow
def test_narrow_and_dark(browser, port):
    """On a phone the page is wider than its screen, or dark mode is not dark; a control has no name for a reader."""
    page, errors = open_page(browser, port, viewport={"width": 320, "height": 560}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(23, 23, 22)"
    unnamed = "[...document.querySelectorAll('button')].filter(b => !b.textContent.trim() && !b.ariaLabel).length"
    assert page.evaluate(unnamed) == 0 and page.get_by_role("textbox", name="Message").count() == 1 and not errors
