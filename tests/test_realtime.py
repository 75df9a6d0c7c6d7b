"""Live transcripts: the protocol, who may listen, broken messages, what a pass hears again."""
import json
import random
import socket
import time
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from drill import LIVE, append, listen, make_speech
from test_serve import ckpt, port, request, serve, server  # noqa: F401 (fixtures)
from websockets.exceptions import ConnectionClosed, InvalidStatus

from language import Language
from live import FRAME, LEFT, RIGHT, STEP, Live
from talk import Talker

KEY = "openai-insecure-api-key."
TEXT = "conversation.item.input_audio_transcription"
COMMIT, CLEAR = {"type": "input_audio_buffer.commit"}, {"type": "input_audio_buffer.clear"}
VOICE, SILENCE = make_speech(2.5, 24_000), np.zeros(24_000)


def update(detection, **more):
    given = {"turn_detection": detection, "format": {"type": "audio/pcm", "rate": 24_000}, **more}
    return {"type": "session.update", "session": {
        "type": "transcription", "audio": {"input": given}, "include": [f"{TEXT}.open"]}}


def tell(ws, *messages):
    for message in messages:
        ws.send(message if isinstance(message, str | bytes) else json.dumps(message))


def hear(ws, last):
    """The events up to one of type `last`."""
    events = [json.loads(ws.recv(300))]
    while events[-1]["type"] != last:
        events.append(json.loads(ws.recv(300)))
    return events


def end_others(port):
    """Wait until a session has a place again: the server noticed that another is over."""
    for _ in range(100):
        with suppress(InvalidStatus), listen(port) as ws:
            return hear(ws, "session.created")
        time.sleep(0.1)


def test_a_session(port):
    """Broken: an event, its order, an id; silence is speech; a word is lost between passes."""
    buffer = "input_audio_buffer"
    with listen(port) as ws:
        tell(ws, *map(append, np.split(np.concatenate([SILENCE, VOICE, SILENCE]), 50)))
        events = [event for event in hear(ws, f"{TEXT}.completed") if "delta" not in event]
        assert [event["type"] for event in events] == [
            "session.created", f"{buffer}.speech_started", f"{buffer}.speech_stopped",
            f"{buffer}.committed", f"{TEXT}.completed"]
        assert 600 < events[1]["audio_start_ms"] < 1000 < 3300 < events[2]["audio_end_ms"] < 3800
        first = events[-1]["item_id"]
        assert {event["item_id"] for event in events[1:]} == {first}
        assert events[-1]["transcript"] and 2.4 < events[-1]["usage"]["seconds"] < 3.5
        tell(ws, update(None), append(VOICE), CLEAR, append(VOICE), append(VOICE), COMMIT)
        events = hear(ws, f"{TEXT}.completed")
        kinds = [event["type"] for event in events]
        assert {"session.updated", f"{buffer}.cleared", f"{TEXT}.open"} < set(kinds)
        assert events[-1]["usage"]["seconds"] == 5 and f"{buffer}.speech_started" not in kinds
        assert events[kinds.index(f"{buffer}.committed")]["previous_item_id"] == first


def test_errors_are_events(port):
    """Broken: a wrong message ends the session, or its error doesn't tell the event and field."""
    form = "session.audio.input.format"
    with listen(port) as ws:
        hear(ws, "session.created")
        for message, param, word in (
                ("[" * 9999, None, "JSON"), (b"", None, "JSON"), ("[]", None, "object"),
                ({"type": "response.create"}, "type", "input_audio_buffer.append"),
                (append(VOICE, audio="a"), "audio", "base64"), (COMMIT, None, "0.1 s"),
                (append(VOICE, audio="AAAA"), "audio", "16-bit"),
                (update(None, format={"type": "audio/pcmu"}), f"{form}.type", "audio/pcm"),
                (update(None, format={"type": "audio/pcm", "rate": 16_000}), f"{form}.rate", "24"),
                (append(np.zeros(900_000)), None, "more than 2 MB")):
            is_event = isinstance(message, dict)
            tell(ws, message | {"event_id": "mine"} if is_event else message)
            error = hear(ws, "error")[-1]["error"]
            assert error["param"] == param and word in error["message"], error
            assert error["event_id"] == ("mine" if is_event and "MB" not in word else None)


@pytest.mark.case("B31")
def test_who_may_listen(port, serve):
    """Broken: a WebSocket skips the checks of requests, or there are more sessions than allowed."""
    server, locked = serve("--api_key=s3cret", "--max_batch=1")
    header, name = {"additional_headers": {"Authorization": "Bearer s3cret"}}, KEY
    for at, path, status, given in (
            (locked, LIVE, 401, {}), (locked, LIVE, 401, {"subprotocols": [f"{name}s3cre"]}),
            (locked, LIVE, 401, {"subprotocols": ["s3cret"]}), (locked, "/v1/models", 404, header),
            (locked, "/v1/realtime", 400, header), (port, LIVE, 403, {"origin": "http://x.org"})):
        with pytest.raises(InvalidStatus) as e:
            listen(at, path, **given)
        assert e.value.response.status_code == status, (path, given)
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
               "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
    assert request(port, "GET", LIVE, "Host: evil.example", *upgrade)[0] == 403
    with listen(locked, subprotocols=["realtime", f"{name}s3cret"]) as ws:
        assert hear(ws, "session.created") and ws.subprotocol == "realtime"
        with pytest.raises(InvalidStatus) as e:
            listen(locked, **header)
        assert e.value.response.status_code == 503
    assert "s3cre" not in "".join(server.lines)


def test_slow_and_broken_clients(serve):
    """Broken: a client that says nothing, reads nothing or leaves keeps its place for ever."""
    server, port = serve("--request_timeout_s=1", "--max_batch=1")
    with listen(port) as ws, pytest.raises(ConnectionClosed):  # it says nothing
        hear(ws, "never")
    with listen(port) as ws:
        tell(ws, append(VOICE), append(VOICE))
        ws.socket.shutdown(socket.SHUT_RDWR)  # it leaves in the middle
    assert end_others(port)
    time.sleep(0.5)
    with listen(port, max_queue=1) as ws, pytest.raises((ConnectionClosed, TimeoutError)):
        ws.socket.settimeout(9)
        while True:  # it reads nothing
            tell(ws, update(None, transcription={"prompt": "x" * 100_000}))
    assert end_others(port) and "Error" not in "".join(server.lines)


def test_mutated_messages(port):
    """Broken: one of 2,000 mutated messages ends a session, or the server."""
    rng, good = random.Random(0), [json.dumps(message) for message in (
        update(None), update({"type": "server_vad", "threshold": 0.3}), append(VOICE[:300]),
        COMMIT, CLEAR)]
    with listen(port) as ws:
        for _ in range(2000):
            text = list(rng.choice(good))
            for _ in range(rng.randrange(1, 4)):
                at, new = rng.randrange(len(text)), rng.choice('"{]9\ud7ff')
                text[at:at + rng.randrange(3)] = [new, "", "null"][rng.randrange(3)]
            tell(ws, "".join(text))
            with suppress(TimeoutError):  # nothing is left unread
                while True:
                    ws.recv(0)
        tell(ws, update(None, transcription={"model": "last"}))
        while "last" not in str(hear(ws, "session.updated")[-1]):
            pass


def test_passes_tell_all_words_once(ckpt):
    """Broken: a settled word changes, comes twice or not at all; the encoder hears all again."""
    talker, live = Talker(ckpt, device="cpu"), Live()
    wav, features, heard = make_speech(8), talker.features, []
    talker.features = lambda wavs: heard.append(len(wavs[0])) or features(wavs)
    passes = [live.listen(talker, part, False) for part in np.split(wav, 8)]
    assert max(heard) <= LEFT + RIGHT + STEP + FRAME
    passes.append(live.listen(talker, wav[:0], True))
    assert passes[-1].all and len(heard) == 8 and len(live.wav) == 0
    assert passes[-1].all == sum((each.settled for each in passes), [])


def test_half_an_hour_stays_small():
    """Broken: a long utterance keeps its sound, features or words."""
    talker = SimpleNamespace(piece_s=9.75, language=Language("en"))
    talker.features = lambda wavs: [np.ones((len(wavs[0]) // FRAME, 2, 512), np.float16)]
    talker.write_features = lambda feats, cut, said: [f"{len(feats[0])} words"]
    live, wav = Live(), np.random.default_rng(0).normal(0, 0.1, 5 * 16_000).astype(np.float32)
    for step in range(360):
        live.listen(talker, wav * (step % 7 > 0), False)
        assert len(live.wav) < 10 * 16_000 and len(live.feats) < 10 * 50
    assert 150 < len(live.listen(talker, wav, True).all) < 1000
