"""serve.py: transcripts in all forms, the Responses API, other origins."""
import io
import json
import re

import numpy as np
import pytest
import soundfile
from drill import make_audio, post, sound, start_server, user
from test_audiobench import make_run
from test_serve import (TRANSCRIBE, answer, ckpt, client, head, port, serve,  # noqa: F401
                        server)

from api import LINE, TranscriptionRequest, cut_in_segments, write_transcript
from language import ENGLISH
from talk import Piece, Word


def test_pages_of_other_origins(serve, port):
    """Broken: another origin's page may ask, or --allow_origins= doesn't let its browser do it."""
    notes, evil = {"Origin": "app://my.notes"}, {"Origin": "http://evil.example"}
    asks = {"Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type"}
    assert head(port, "OPTIONS", TRANSCRIBE, **notes, **asks)[0] == 403
    _, port = serve("--allow_origins=https://a.b, app://My.notes", "--api_key=k")
    for method, given, status in (
            ("OPTIONS", notes | asks, 200), ("OPTIONS", evil | asks, 400), ("GET", evil, 403),
            ("GET", notes | {"Authorization": "Bearer k"}, 200), ("GET", notes, 401)):
        found, headers = head(port, method, "/v1/models", **given)
        allowed = notes["Origin"] if given["Origin"] == notes["Origin"] else None
        assert (found, headers["access-control-allow-origin"]) == (status, allowed), given
        right = asks["Access-Control-Request-Headers"] if method == "OPTIONS" else None
        assert headers["access-control-allow-headers"] == right


def test_transcripts_with_times(client):
    """Broken: segments lack words, overlap, are too long or begin in a pause; or subtitles do."""
    rng, file = np.random.default_rng(0), io.BytesIO()
    level = np.repeat([1e-4] + 3 * [0.1, 1e-4], [16_000] + 3 * [56_000, 12_000])
    soundfile.write(file, rng.normal(0, 1, len(level)) * level, 16_000, format="WAV")
    given = {"model": "x", "file": ("a.wav", file.getvalue())}
    create = client.audio.transcriptions.create
    found = create(**given, response_format="verbose_json", timestamp_granularities=["segment"])
    assert found.duration == 13.75 and found.is_cut in (True, False) and found.usage.seconds == 14
    assert found.text.split() == " ".join(each.text for each in found.segments).split() != []
    times = [time for each in found.segments for time in (each.start, each.end)]
    assert times == sorted(times) and [times[0], times[-1]] == pytest.approx([1, 13], abs=0.15)
    assert all(0 < each.end - each.start <= 6 for each in found.segments)
    srt, vtt = (create(**given, response_format=kind) for kind in ("srt", "vtt"))
    assert vtt == "WEBVTT\n\n" + re.sub(r"(\d),(\d{3}\b)", r"\1.\2", srt)
    assert srt.count(" --> ") == len(found.segments)


def test_segments_fit_two_lines():
    """Broken: a subtitle is wider than the screen, loses words, or its time is wrong."""
    for text in ("so it was " * 20, "so it was " * 8 + "it's", "no"):
        said = text.split() if len(text) > 99 else []  # the words with times
        times = np.linspace(3602.5, 3608.5, len(said) + 1)
        words = [*map(Word, said, times, times[1:])]
        cues = cut_in_segments(Piece(text.strip(), False, 3602.5, 3608.5, words))
        assert sum((cue.words for cue in cues), []) == words
        for cue in cues[:len(words)]:
            assert (cue.start_s, cue.end_s) == (cue.words[0].start_s, cue.words[-1].end_s)
        assert " ".join(cue.text for cue in cues) == text.strip()
        times = [cue.end_s - cue.start_s for cue in cues]
        assert sum(times) == pytest.approx(6) and min(times) > 0.6
        assert all(len(cue.text) <= 2 * LINE for cue in cues)
        ask = TranscriptionRequest(response_format="srt")
        lines = write_transcript(ask, [], cues, ENGLISH).split("\n")
        assert lines[1].startswith("01:00:02,500 --> 01:00:0") and max(map(len, lines)) <= LINE


def test_words_with_times(tmp_path):
    """Broken: words are missing or out of order, or segments and cues don't begin with a word."""
    server, port = start_server(make_run(tmp_path / "run", ctc=260))
    ask = sound(make_audio(13, 2)) | {"timestamp_granularities": ["word"]}
    try:
        (wrong, _), (right, body) = (
            post(port, json.dumps(ask | {"response_format": kind}).encode(), TRANSCRIBE)
            for kind in ("json", "verbose_json"))
    finally:
        server.kill()
    assert (wrong, right) == (400, 200)
    found = json.loads(body)
    words = found["words"]
    assert " ".join(each["word"] for each in words) == found["text"] != ""
    times = [0, *(each[end] for each in words for end in ("start", "end")), 13]
    assert times == sorted(times)
    for end in ("start", "end"):
        assert {each[end] for each in found["segments"]} <= {each[end] for each in words}


def test_streamed_and_json_transcripts(client, port):
    """Broken: a stream loses a piece or comes at once; a JSON body is heard as another file."""
    given = {"model": "x", "file": ("a.wav", make_audio(20, 2))}
    *deltas, last = client.audio.transcriptions.create(**given, stream=True)
    last = last.to_dict()
    assert len(deltas) > 1 and "".join(each.delta for each in deltas) == last["text"] != ""
    body = sound(given["file"][1]) | {"model": "x"}
    status, found = post(port, json.dumps(body).encode(), TRANSCRIBE)
    assert json.loads(found) | {"type": last["type"]} == last
    for wrong, param in (({}, "file"), ({"input_audio": {"data": "?"}}, "input_audio.data"),
                         (body | {"response_format": 3}, "response_format")):
        status, found = post(port, json.dumps(wrong).encode(), TRANSCRIBE)
        assert status == 400 and json.loads(found)["error"]["param"] == param, found


def test_responses(client, port):
    """Broken: the Responses API answers otherwise than a chat, or its stream or refusals do."""
    content = [sound(make_audio(0.5, 1)), {"type": "input_text", "text": "how high"}]
    for instructions, items, messages in (
            ("low", [{"role": "user", "content": content}], [("system", "low"), ("user", content)]),
            (None, "how high", [("user", "how high")])):
        right = answer(port, *messages)[0][0]["message"]["content"]
        given = dict(model="x", instructions=instructions, input=items, max_output_tokens=9)
        whole = client.responses.create(**given)
        assert whole.output_text == right != "" and whole.usage.output_tokens == 9
        assert whole.incomplete_details.reason == "max_output_tokens"
        with client.responses.stream(**given) as stream:
            events = list(stream)
        assert events[-1].response.output_text == right and len(events) > 9
        assert [each.sequence_number for each in events] == list(range(len(events)))
    for wrong, param in (({"input": []}, "input"), ({"input": [{}]}, "input.0.role"),
                         ({"instructions": "a", "input": [user(sound(b"x"))]},
                          "input.0.content.0.input_audio.data"),
                         ({"input": "a", "text": {"format": {"type": "json_schema"}}}, "text"),
                         ({"input": "a", "previous_response_id": "x"}, "previous_response_id")):
        status, body = post(port, json.dumps(wrong).encode(), "/v1/responses")
        assert status == 400 and json.loads(body)["error"]["param"] == param, body
