"""Requests to OpenAI's API, read into Rows and recordings.

A field that would change the answer and can't be obeyed is refused; others are ignored.
"""
import base64
import logging
import os
from itertools import groupby
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, FailFast, Field
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import create_form_parser

from recordings import SAMPLE_RATE, TooLong, read_audio
from talk import Row, size

MAX_AUDIO_S = 30.0        # of the recordings of one turn
MAX_TRANSCRIPT_S = 600.0  # of a recording to transcribe
MAX_FORM_PARTS = 33       # a file and 32 fields
QUESTION = "answer the question"  # to recordings without words
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # its warnings quote the request


class Refused(Exception):
    """A request that gets an error: HTTP status, and the fields of OpenAI's errors."""

    def __init__(self, status, message, param=None, code=None):
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.status = status
        self.error = {"message": message, "type": kind, "param": param, "code": code}


# --- chats
class Sound(BaseModel):
    data: str  # base64 or a data: URI; the bytes decide of which format it is


def as_part(x):
    """Return a part in any spelling of OpenAI's APIs as one of type text or input_audio."""
    kind = x.get("type") if isinstance(x, dict) else None
    if kind in ("input_text", "output_text", "refusal"):
        return {"type": "text", "text": x.get("text") or x.get("refusal") or ""}
    held = x.get(kind, x) if kind in ("input_audio", "audio_url", "file") else None
    if isinstance(held, dict) and kind != "input_audio":
        held = held.get("url") or held.get("file_data")
    if isinstance(held, str):
        return {"type": "input_audio", "input_audio": {"data": held}}
    return x


class Part(BaseModel):
    type: Literal["text", "input_audio"]
    text: str = ""
    input_audio: Sound | None = None


AnyPart = Annotated[Part, BeforeValidator(as_part)]
AsParts = BeforeValidator(lambda x: [{"type": "text", "text": x}] if isinstance(x, str) else x)
AsList = BeforeValidator(lambda x: [x] if isinstance(x, str) else x)
StopString = Annotated[str, Field(max_length=256)]


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[list[AnyPart], Field(max_length=64), AsParts] | None = None


class StreamOptions(BaseModel):
    include_usage: bool | None = False


class ChatRequest(BaseModel):
    messages: Annotated[list[Message], FailFast(), Field(min_length=1, max_length=1000)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: Annotated[list[StopString], Field(max_length=4), AsList] | None = None
    seed: int | None = Field(None, ge=-2**63, lt=2**63)
    presence_penalty: float | None = Field(None, ge=0, le=0)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    tool_choice: str | dict | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    response_format: dict | None = None
    logit_bias: dict | None = Field(None, max_length=0)


def make_row(ask, talker, max_tokens):
    """Make the Row of a ChatRequest, of max_tokens at most; or Refused."""
    if not talker.can_chat:
        raise Refused(400, "this model only transcribes: use /v1/audio/transcriptions")
    if ask.tool_choice not in (None, "", "auto", "none"):
        raise Refused(400, "this model calls no tools: give auto or none", "tool_choice")
    if (ask.response_format or {}).get("type", "text") != "text":
        raise Refused(400, "this model writes plain text, no JSON", "response_format")
    messages = read_messages(ask.messages, talker)
    too_long = Refused(400, f"more than the model's {talker.limit} tokens: begin a new "
                       "conversation", "messages", "context_length_exceeded")
    if sum(len(text) for _, text, _ in messages) > 50 * talker.limit:
        raise too_long  # don't even count the tokens
    try:
        prompt = talker.prompt(messages)
    except ValueError as e:
        raise Refused(400, str(e), "messages") from None
    room = talker.limit - size(prompt)
    if room < 1:
        raise too_long
    wanted = ask.max_completion_tokens or ask.max_tokens or max_tokens
    temperature = ask.temperature or 0.0
    return Row(prompt, min(wanted, max_tokens, room), temperature if temperature > 1e-3 else 0.0,
               top_p=max(ask.top_p or 1.0, 1e-6), stop_ids=talker.stop_ids(),
               seed=int.from_bytes(os.urandom(7)) if ask.seed is None else ask.seed)


def read_messages(messages, talker):
    """Join the Messages of each speaker -> [(role, text, Recording or None)]; or Refused.

    The words of a system or a tool are the user's.
    """
    left_s = talker.limit * talker.projector.stack / 50 if talker.ears else 0.0
    turns = []
    by_speaker = groupby(enumerate(messages), lambda pair: pair[1].role == "assistant")
    for is_answer, numbered in by_speaker:
        text, wavs = read_turn(numbered, min(left_s, MAX_AUDIO_S), bool(talker.ears))
        left_s -= seconds(wavs)
        sound = talker.record(*wavs) if wavs else None
        if is_answer and not turns:
            turns.append(("user", "", None))
        turns.append(("assistant" if is_answer else "user", text, sound))
    if is_answer:
        raise Refused(400, "the last message must be from the user", "messages")
    return turns


def read_turn(numbered, most_s, has_ears):
    """Read [(number, Message)] of one speaker -> (text, [wav]), most_s seconds at most."""
    texts, wavs, roles, has_question = [], [], set(), False
    for i, message in numbered:
        parts = message.content or []
        for k, part in enumerate(parts):
            at = f"messages.{i}.content.{k}"
            is_sound = part.type == "input_audio"
            if is_sound != bool(part.input_audio) or (is_sound and message.role != "user"):
                raise Refused(400, "only a user's part of type input_audio holds input_audio", at)
            if is_sound and not has_ears:
                raise Refused(400, "this model takes no audio", at)
            if is_sound:
                wavs.append(decode_base64(part.input_audio.data, most_s - seconds(wavs),
                                          f"{at}.input_audio.data"))
        texts.append("\n".join(part.text for part in parts if part.text))
        roles.add(message.role)
        has_question |= message.role == "user" and texts[-1] != ""
    if wavs and not has_question:
        texts.append(QUESTION)
    between = "\n\n" if roles & {"system", "developer"} else "\n"
    return between.join(filter(None, texts)), wavs


def seconds(wavs):
    return sum(map(len, wavs)) / SAMPLE_RATE


def decode_base64(data, max_s, param):
    """Decode a sound in base64, with line ends or as a data: URI -> float32 (n,); or Refused."""
    data = "".join(data.split())
    if data[:4].lower() == "http":
        raise Refused(400, "this server fetches nothing: send the sound as a data: URI", param)
    if data[:5].lower() == "data:":
        head, _, data = data.partition(",")
        if not head.lower().endswith(";base64"):
            raise Refused(400, "a data: URI must have ;base64 before the comma", param)
    try:
        data = base64.b64decode(data, validate=True)
    except ValueError as e:
        raise Refused(400, f"data is neither base64 nor a data: URI: {e}", param) from None
    return decode(data, max_s, param)


def decode(data, max_s, param):
    """Decode a sound file's bytes, max_s seconds at most -> float32 (n,) at 16 kHz; or Refused."""
    try:
        return read_audio(data, max(max_s, 0.0))
    except TooLong as e:
        raise Refused(413, str(e), param, "audio_too_long") from None
    except ValueError as e:
        raise Refused(400, str(e), param, "invalid_audio") from None


# --- transcriptions
def read_form(content_type, body):
    """Read a multipart body, in memory alone -> {name: bytes} with a "file"; or Refused."""
    parts, in_memory = [], {"MAX_MEMORY_FILE_SIZE": float("inf")}

    def keep(part):
        if len(parts) == MAX_FORM_PARTS:
            raise Refused(400, f"the form has more than {MAX_FORM_PARTS} parts")
        value = part.file_object.getvalue() if hasattr(part, "file_object") else part.value
        parts.append((part.field_name or b"", value))

    try:
        parser = create_form_parser({"Content-Type": content_type}, keep, keep, in_memory)
        parser.write(body)
        parser.finalize()
    except FormParserError as e:
        raise Refused(400, f"the form can't be read: {e}") from None
    n_files = [name for name, _ in parts].count(b"file")
    if n_files != 1:
        raise Refused(400, f"the form has {n_files} parts named file: send one", "file")
    return dict(parts)


def read_upload(content_type, body):
    """Read a transcription's form -> (float32 (n,) at 16 kHz, b"json" or b"text"); or Refused."""
    form = read_form(content_type, body)
    if form.get(b"stream", b"").lower() in (b"true", b"1"):
        raise Refused(400, "a transcript comes in one piece: leave stream out", "stream")
    kind = form.get(b"response_format", b"").lower() or b"json"
    if kind not in (b"json", b"text"):
        raise Refused(400, "response_format is json or text", "response_format")
    return decode(form[b"file"], MAX_TRANSCRIPT_S, "file"), kind
