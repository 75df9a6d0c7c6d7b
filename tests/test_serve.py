"""serve.py as its clients meet it: the openai package, what agents send, wrong requests."""
import base64
import json
import re
import resource
import socket
from email import message_from_bytes

import numpy as np
import openai
import pytest
from drill import CHAT, TRANSCRIBE, file_bytes, make_audio, post, said, sound, start_server, user
from test_audiobench import make_run

from api import Message, read_turn
from files import read_lines

CLIP = make_audio(0.5, 1)
LOCAL = "Host: localhost"
USER = {"role": "user", "content": "how high"}
FILE = 'name="file"; filename="a.wav"'  # of a form: what follows `form-data; `


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("serve") / "run")


@pytest.fixture(scope="module")
def server(ckpt):
    server, port = start_server(ckpt, "--max_tokens=400", "--max_body_mb=2", "--host=0.0.0.0")
    if hasattr(resource, "prlimit"):  # Linux
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (0, 0))  # no upload goes to the disk
    yield server, port
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
def port(server):
    return server[1]


@pytest.fixture(scope="module")
def client(port):
    url = f"http://127.0.0.1:{port}/v1"
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def request(port, method, path, *headers, body=b""):
    """A request with just these headers -> (status, body, headers)."""
    with socket.create_connection(("127.0.0.1", port), 10) as s:
        lines = [f"{method} {path} HTTP/1.1", "Connection: close", *headers,
                 f"Content-Length: {len(body)}", "", ""]
        s.sendall("\r\n".join(lines).encode() + body)
        data = b"".join(iter(lambda: s.recv(65536), b""))
    answer, _, body = data.partition(b"\r\n\r\n")
    return int(answer.split()[1]), body, message_from_bytes(answer.partition(b"\r\n")[2])


def send(port, body, path=CHAT):
    """-> (status, body) of a request of JSON."""
    status, data = post(port, json.dumps(body).encode(), path)
    return status, json.loads(data)


def ask(port, *messages, **more):
    return send(port, {"messages": messages, **more})


def error_of(status, body):
    """The param and message of an answer, which has to be a refusal with 400."""
    assert status == 400 and body["error"]["type"] == "invalid_request_error", body
    return body["error"]["param"], body["error"]["message"]


def answer(port, *messages, **more):
    """The choices and usage of an answer to messages, dicts or (role, content): it must succeed."""
    messages = [message if isinstance(message, dict) else dict(zip(("role", "content"), message))
                for message in messages]
    status, body = ask(port, *messages, **{"max_tokens": 9, **more})
    assert status == 200, (messages, more, body)
    return body["choices"], body["usage"]


def hear(port, part):
    """What is said of a recording, so hot that the answer shows which one it was."""
    return answer(port, user(part), temperature=2, seed=1, max_tokens=60)


def refused(port, *messages, **more):
    """The param and message of a chat that is refused with 400."""
    return error_of(*ask(port, *messages, **more))


def transcribe(port, *parts, path=TRANSCRIBE):
    """-> (status, body) of a form of parts (head, bytes or str)."""
    body = b""
    for head, data in parts:
        data = data if isinstance(data, bytes) else data.encode()
        body += f"--xx\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
    kind = "multipart/form-data; boundary=xx"
    status, body = post(port, body + b"--xx--\r\n", path, kind)
    return status, json.loads(body)


def test_openai_client(client):
    """Broken: the openai package: models, recordings in two turns, streams, usage, errors."""
    assert [model.id for model in client.models.list()] == ["run"]
    assert client.models.retrieve("run").id == "run"
    question = user(sound(CLIP), "how high")
    given = dict(model="x", temperature=0, max_tokens=9)
    one = client.chat.completions.create(messages=[question], **given)
    text = one.choices[0].message.content
    assert text and one.usage.completion_tokens == 9 and one.choices[0].finish_reason == "length"
    given["messages"] = [question, {"role": "assistant", "content": text},
                         user(sound(make_audio(0.5, 1, "MP3"), "mp3"), "red")]
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
    asks, low, red = ("user", "how high"), ("system", "low"), ("developer", "old red")
    for messages, right in (
            ([low, asks], "low\n\nhow high"), ([asks, red], "how high\n\nold red"),
            ([low, red, low, asks], "low\n\nold red\n\nlow\n\nhow high"),
            ([("system", ""), ("system", None), asks], "how high"), ([low], "low"),
            ([asks, asks], "how high\nhow high")):
        named = [("", Message(role=role, content=text)) for role, text in messages]
        assert read_turn(named, 1.0, True) == (right, []), messages
    assert answer(port, low, asks) != answer(port, asks)
    right = answer(port, asks, ("assistant", "red"), ("user", "old red\n\nhow high"))
    assert answer(port, asks, ("assistant", "red"), red, asks) == right
    clip = sound(CLIP)  # without words it is asked api.py's QUESTION
    right = answer(port, user(clip, "low\n\nanswer the question"))
    assert answer(port, low, user(clip)) == right != answer(port, user(clip))
    assert refused(port, {"role": "system", "content": [clip]})[0] == "messages.0.content.0"


@pytest.mark.case("B26")
def test_base64_as_clients_write_it(port):
    """Broken: line ends in base64 or a data: URI are refused; or what is no base64 passes."""
    text, wrapped = base64.b64encode(CLIP).decode(), base64.encodebytes(CLIP).decode()
    part = lambda data: {"type": "input_audio", "input_audio": {"data": data}}
    right = hear(port, part(text))
    assert right != hear(port, sound(make_audio(0.5, 2))) and "\n" in wrapped[:100]
    for data in (wrapped.replace("\n", "\r\n"), f"  {text}\t",
                 f"DATA:audio/x-wav;codecs=1;BASE64,{wrapped}"):
        assert hear(port, part(data)) == right, data[:60]
    for data, word in (("data:audio/wav," + text, ";base64"), (text[:-1], "base64"),
                       (CLIP.hex(), "audio"), ("", "empty")):
        param, message = refused(port, user(part(data)))
        assert param == "messages.0.content.0.input_audio.data" and word in message, message


@pytest.mark.case("B13", "B27")
def test_the_bytes_decide_what_a_sound_is(port):
    """Broken: a sound is refused for its label, or a refusal doesn't say what can be read."""
    part = sound(make_audio(0.5, 1, "MP3"))
    right = hear(port, part)
    for label in ("mpeg", "wav", "", None):
        part["input_audio"]["format"] = label
        assert hear(port, part) == right, label
    del part["input_audio"]["format"]
    assert hear(port, part) == right
    url = f"data:audio/mpeg;base64,{part['input_audio']['data']}"
    for other in ({"type": "audio_url", "audio_url": {"url": url}},
                  {"type": "file", "file": {"file_data": url, "filename": "a.mp3"}},
                  {"type": "input_file", "file_data": url},
                  {"type": "input_audio", "input_audio": url}):
        assert hear(port, other) == right, other["type"]
    url = {"type": "audio_url", "audio_url": {"url": "https://example.org/a.wav"}}
    assert "fetches nothing" in refused(port, user(url))[1]
    _, message = refused(port, user(sound(b"<html>"), "x"))
    assert all(name in message for name in ("wav", "mp3", "flac", "ogg")), message
    found = transcribe(port, ('name="file"; filename="clip.mp3"', b"<html>"))
    assert error_of(*found)[1] == message


@pytest.mark.case("B28")
def test_what_agents_send(port):
    """Broken: empty content is refused; or a refusal doesn't name the field and its limit."""
    right = answer(port, USER, ("assistant", ""), ("user", "low"))
    for reply in ({"content": None}, {}, {"content": []}, {"refusal": None, "audio": None}):
        assert answer(port, USER, {"role": "assistant", **reply}, user("low")) == right, reply
    call = {"role": "assistant", "tool_calls": [{}]}
    assert answer(port, USER, call, ("tool", "low"), tools=[{}], tool_choice="auto") == right
    greeted = answer(port, ("assistant", "red"), ("system", "low"))
    assert greeted == answer(port, ("user", ""), ("assistant", "red"), ("user", "low"))
    first = "messages.0.content"
    for messages, param, word in (
            ([], "messages", "at least 1"), ([USER, call], "messages", "last message"),
            ([{"role": "x", "content": "a"}], "messages.0.role", "'user'"),
            ([user({"type": "image_url"})], f"{first}.0.type", "'text'"),
            ([user({"type": "input_audio"})], f"{first}.0", "input_audio"),
            ([user(*[0] * 100_000)], first, "64"),
            ([user("how " * 5000)], "messages", "new conversation"),
            ([user("how " * 400_000)], "messages", "new conversation")):
        found, message = refused(port, *messages)
        assert found == param and word in message, message
    for param, value, word in (
            ("max_tokens", 0, "or equal to 1"), ("n", 2, "1"), ("stop", list("abcde"), "at most 4"),
            ("tool_choice", "required", "no tools"), ("presence_penalty", 1, "leave it"),
            ("response_format", {"type": "json_object"}, "plain text")):
        found, message = refused(port, USER, **{param: value})
        assert found == param and word in message, message
    for body in (b'{"messages": ' + b"[" * 100_000, b"\xff", b"[1]"):
        assert post(port, body)[0] == 400
    status, body = post(port, b"{}", kind="text/plain")
    assert status == 400 and b"application/json" in body


@pytest.mark.case("B29")
def test_empty_optional_fields(port):
    """Broken: an empty optional field is an error; or one that changes the answer is ignored."""
    right = answer(port, USER)
    empty = ("stop", "temperature", "top_p", "seed", "n", "tools", "stream", "stream_options",
             "max_completion_tokens", "response_format", "logit_bias")
    for more in (dict.fromkeys(empty),
                 {"stop": [""], "tools": [], "model": "", "logit_bias": {}, "presence_penalty": 0}):
        assert answer(port, USER, **more) == right, more
    file = FILE, make_audio(2.0, 2)
    heard = transcribe(port, file)
    assert heard[0] == 200 and heard[1]["text"] and heard[1]["is_cut"] in (True, False)
    fields = [(f'name="{field}"', value) for field, value in (
        ("language", ""), ("prompt", "Kansas, " * 300), ("stream", "false"),
        ("response_format", "JSON"), ("timestamp_granularities[]", "segment"))]
    assert transcribe(port, *fields, file) == heard
    for param, value in (("response_format", "diarized_json"), ("stream", "maybe"),
                         ("timestamp_granularities[]", "word")):
        found = transcribe(port, file, (f'name="{param}"', value))
        assert error_of(*found)[0] == param.strip("[]")
    srt = ('name="stream"', "True"), ('name="response_format"', "SRT")
    for parts, words in ((srt, "no subtitles"), ([('name="f"', "x")] * 40, "more than 33 parts")):
        assert words in error_of(*transcribe(port, file, *parts))[1]


@pytest.mark.case("B30")
def test_a_file_without_a_filename(port):
    """Broken: a form's file is refused, changed or written to the disk for its head."""
    wav = make_audio(2.0, 2)
    heard = transcribe(port, (FILE, wav))
    for head in ('name="file"', 'name="file"; filename=""\r\nContent-Type: audio/wav',
                 "name=file; filename*=UTF-8''gr%C3%B6%C3%9Fe.wav",
                 'name="file"; filename="gr\u00f6\u00dfe \u65e5\u672c.wav"'):
        assert transcribe(port, ('name="model"', "m"), (head, wav)) == heard, head
    noise = np.random.default_rng(0).normal(0, 0.1, (48_000, 8))
    large = file_bytes(noise, subtype="FLOAT", rate=96_000)
    assert transcribe(port, ('name="file"', large))[0] == 200  # 1.5 MB
    for parts, word in (([('name="audio"', wav)], "0 parts named file"), ([(FILE, "")], "empty"),
                        ([(FILE, wav), (FILE, wav)], "2 parts named file")):
        param, message = error_of(*transcribe(port, *parts))
        assert param == "file" and word in message
    for kind in ("multipart/form-data", "multipart/form-data; charset=undefined; boundary=xx", "x"):
        assert post(port, b"x", TRANSCRIBE, kind)[0] == 400


@pytest.mark.case("B40")
def test_addresses(port):
    """Broken: a slash too many loses the body, HEAD looks like an outage, a 404 is no JSON."""
    chat = {"messages": [USER], "max_tokens": 9}
    for path in ("/v1/chat/completions/", "//v1//chat/completions", "/v1/chat/completions?a=1"):
        assert send(port, chat, path)[0] == 200, path
    path = f"/{TRANSCRIBE}/"
    assert transcribe(port, (FILE, CLIP), path=path)[0] == 200
    html = request(port, "GET", "/", LOCAL)[1]  # it may lie in a proxy's folder
    assert b'"v1/chat' in html and b'"/v1' not in html and b'fetch("/' not in html
    for path in ("/", "/health", "/v1/models/", "//v1//models/run"):
        status, body, headers = request(port, "HEAD", path, LOCAL)
        assert (status, body) == (200, b"") and int(headers["content-length"]) > 0, path
    for method, path, status, allow in (
            ("OPTIONS", "/v1/models/", 204, "GET, HEAD"), ("OPTIONS", "/x", 404, None),
            ("OPTIONS", TRANSCRIBE, 204, "POST"), ("PUT", "/health", 405, "GET, HEAD")):
        found, _, headers = request(port, method, path, LOCAL)
        assert (found, headers["allow"]) == (status, allow and f"{allow}, OPTIONS"), path
    for method, path, status, word in (
            ("POST", "/chat/completions", 404, "/v1/chat/completions"),
            ("GET", "/v1/models/gpt-9/", 404, "run"), ("PUT", TRANSCRIBE, 405, "Method")):
        found, body, _ = request(port, method, path, LOCAL)
        assert found == status and word in json.loads(body)["error"]["message"], (path, body)


def test_the_page_in_chinese(port):
    """Broken: a text of the page is not in assets/page.zh.txt any more, or a browser gets none."""
    pages = [request(port, "GET", "/", LOCAL, f"Accept-Language: {code}")[1].decode()
             for code in ("en", "zh-CN,zh;q=0.9")]
    rows = [line.split(" | ") for line in read_lines("assets/page.zh.txt")]
    for english, chinese in rows:
        assert english in pages[0] and chinese in pages[1], english
    notes = [set(re.findall('note."[^"]+"', html)) for html in pages]
    assert len(notes[0]) > 5 and notes[0].isdisjoint(notes[1])


def test_sampling_settings(port):
    """Broken: a setting of the request changes nothing, or an extreme one fails."""
    def say(**more):
        choices, _ = answer(port, ("user", "how high is it"), **{"max_tokens": 40, **more})
        return choices[0]["message"]["content"], choices[0]["finish_reason"]
    plain, hot = say(), say(temperature=2, seed=5)
    assert hot == say(temperature=2, seed=5) != say(temperature=2, seed=6)
    for more in ({"temperature": 2, "top_p": 1e-9}, {"temperature": 1e-40}, {"top_p": 1e-320}):
        assert say(**more) == plain, more
    text, end = plain[0], plain[0].index(plain[0][3:6])
    assert say(stop=[text[3:6], "nowhere"]) == (text[:end], "stop")
    streamed = {"messages": [user("how high is it")], "stop": text[3:6], "stream": True}
    assert said(post(port, json.dumps(streamed).encode())[1]) == text[:end]
    assert say(max_completion_tokens=3, max_tokens=None)[1] == "length"
