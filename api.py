"""Requests to OpenAI's API, read into Rows and recordings.

A field that would change the answer and can't be obeyed is refused; others are ignored.
"""
import base64
import logging
import math
import os
import re
import textwrap
from datetime import datetime, timedelta
from itertools import chain, groupby
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, FailFast, Field, ValidationError
from pydantic_core import PydanticCustomError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import create_form_parser

from recordings import SAMPLE_RATE, TooLong, read_audio
from talk import Row, size

MAX_AUDIO_S = 30.0        # of the recordings of one turn
MAX_TRANSCRIPT_S = 600.0  # of a recording to transcribe
MAX_FORM_PARTS = 33       # a file and 32 fields
SEGMENT_S = 6.0           # of a segment with its times, at most
LINE = 42                 # characters of a line of subtitles; a segment has two
QUESTION = "answer the question"  # to recordings without words
FORMATS = {"json": "", "text": "", "verbose_json": "times", "srt": "subtitles", "vtt": "subtitles"}
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # its warnings quote the request


class Refused(Exception):
    """A request that gets an error: HTTP status, and the fields of OpenAI's errors."""

    def __init__(self, status, message, param=None, code=None):
        self.status = status
        self.error = {"message": message, "param": param, "code": code,
                      "type": "server_error" if status >= 500 else "invalid_request_error"}


def rule(holds, message):
    """Make a validator: what doesn't hold is refused with the message."""
    def check(x):
        if not holds(x):
            raise PydanticCustomError("rule", message)
        return x

    return AfterValidator(check)


def as_refused(e, n_skip=0):
    """Return a Refused that tells pydantic's first error, without n_skip parts of its place."""
    error = e.errors()[0]
    place, wrong = ".".join(map(str, error["loc"][n_skip:])), error["msg"]
    if error["type"] == "json_invalid" or not place:
        return Refused(400, f"send a JSON object, of type application/json: {wrong}")
    return Refused(400, f"{place}: {wrong}", place)


# --- chats
class Sound(BaseModel):
    data: str  # base64 or a data: URI; the bytes decide of which format it is


def as_part(x):
    """Return a part in any of OpenAI's spellings as type text or input_audio."""
    kind = x.get("type") if isinstance(x, dict) else None
    if kind in ("input_text", "output_text", "refusal"):
        return {"type": "text", "text": x.get("text") or x.get("refusal") or ""}
    held = x.get(kind, x) if kind in ("input_audio", "audio_url", "file", "input_file") else None
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
AsMessages = BeforeValidator(
    lambda x: [{"role": "user", "content": x}] if isinstance(x, str) else x)
Unset = Annotated[Any, rule(lambda x: not x, "it can't be obeyed here: leave it out")]


def is_text(x):
    held = x and (x.get("format") or x)
    return not isinstance(held, dict) or held.get("type", "text") == "text"


AsText = Annotated[dict | None, rule(is_text, "this model writes plain text, no JSON")]


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[list[AnyPart], Field(max_length=64), AsParts] | None = None


Messages = Annotated[list[Message], FailFast(), Field(min_length=1, max_length=1000)]


class ChatRequest(BaseModel):
    field: ClassVar = "messages"
    messages: Messages
    stream: bool | None = False
    stream_options: dict | None = None
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=4),
                    AsList] | None = None
    seed: int | None = Field(None, ge=-2**63, lt=2**63)
    presence_penalty: Unset = None
    frequency_penalty: Unset = None
    n: Literal[1] | None = None
    logprobs: Unset = None
    tool_choice: Annotated[Any, rule(lambda x: x in (None, "", "auto", "none"),
                                     "this model calls no tools: give auto or none")] = None
    modalities: list[Literal["text"]] | None = None
    response_format: AsText = None
    logit_bias: Unset = None


class ResponsesRequest(ChatRequest):
    field: ClassVar = "input"
    messages: Annotated[Messages, AsMessages] = Field(alias="input")
    max_tokens: int | None = Field(None, ge=1, alias="max_output_tokens")
    response_format: AsText = Field(None, alias="text")
    instructions: str | None = None
    previous_response_id: Unset = None
    conversation: Unset = None
    background: Unset = None


def make_row(ask, talker, max_tokens):
    """Make the Row of a ChatRequest, of max_tokens at most; or Refused."""
    if not talker.can_chat:
        raise Refused(400, "this model only transcribes: use /v1/audio/transcriptions")
    messages = read_messages(ask, talker)
    too_long = Refused(400, f"more than the model's {talker.limit} tokens: begin a new "
                       "conversation", ask.field, "context_length_exceeded")
    if sum(len(text) for _, text, _ in messages) > 50 * talker.limit:
        raise too_long  # don't even count the tokens
    prompt = talker.prompt(messages)
    room = talker.limit - size(prompt)
    if room < 1:
        raise too_long
    wanted = ask.max_completion_tokens or ask.max_tokens or max_tokens
    temperature = ask.temperature or 0.0
    return Row(prompt, min(wanted, max_tokens, room), temperature if temperature > 1e-3 else 0.0,
               top_p=max(ask.top_p or 1.0, 1e-6), stop_ids=talker.stop_ids(),
               seed=int.from_bytes(os.urandom(7)) if ask.seed is None else ask.seed)


def read_messages(ask, talker):
    """Join the Messages of each speaker -> [(role, text, Recording or None)]; or Refused.

    The words of a system or a tool are the user's.
    """
    left_s = talker.limit * talker.projector.stack / 50 if talker.ears else 0.0
    turns, all_named = [], [(f"{ask.field}.{i}", each) for i, each in enumerate(ask.messages)]
    if told := getattr(ask, "instructions", None):
        all_named.insert(0, ("instructions", Message(role="system", content=told)))
    for is_answer, named in groupby(all_named, lambda pair: pair[1].role == "assistant"):
        text, wavs = read_turn(named, min(left_s, MAX_AUDIO_S), bool(talker.ears))
        left_s -= seconds(wavs)
        sound = talker.record(*wavs) if wavs else None
        if is_answer and not turns:
            turns.append(("user", "", None))
        turns.append(("assistant" if is_answer else "user", text, sound))
    if is_answer:
        raise Refused(400, "the last message must be from the user", ask.field)
    return turns


def read_turn(named, most_s, has_ears):
    """Read [(where, Message)] of one speaker -> (text, [wav]), most_s seconds at most."""
    texts, wavs, roles, has_question = [], [], set(), False
    for name, message in named:
        parts = message.content or []
        for k, part in enumerate(parts):
            at = f"{name}.content.{k}"
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
    data = re.sub("^data:[^,]*;base64,", "", data, flags=re.IGNORECASE)
    try:
        data = base64.b64decode(data, validate=True)
    except ValueError as e:
        raise Refused(400, "data is neither base64 nor a data: URI with ;base64 before the comma: "
                      f"{e}", param) from None
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
    """Read a multipart body, in memory alone -> {name: str}, but "file": bytes; or Refused."""
    parts, in_memory = [], {"MAX_MEMORY_FILE_SIZE": float("inf")}

    def keep(part):
        if len(parts) == MAX_FORM_PARTS:
            raise Refused(400, f"the form has more than {MAX_FORM_PARTS} parts")
        value = part.file_object.getvalue() if hasattr(part, "file_object") else part.value or b""
        name = (part.field_name or b"").decode("latin1")
        parts.append((name, value if name == "file" else value.decode("latin1")))

    try:
        parser = create_form_parser({"Content-Type": content_type}, keep, keep, in_memory)
        parser.write(body)
        parser.finalize()
    except FormParserError as e:
        raise Refused(400, f"the form can't be read: {e}") from None
    n_files = [name for name, _ in parts].count("file")
    if n_files != 1:
        raise Refused(400, f"the form has {n_files} parts named file: send one", "file")
    times = [value for name, value in parts if name.startswith("timestamp_granularities")]
    return dict(parts) | {"timestamp_granularities": times}


class TranscriptionRequest(BaseModel):
    file: bytes = b""
    input_audio: Sound | None = None
    response_format: Annotated[Literal[*FORMATS],
                               BeforeValidator(lambda x: str(x or "json").lower())] = "json"
    stream: Annotated[bool, BeforeValidator(lambda x: x or False)] = False
    timestamp_granularities: list[Literal["word", "segment"]] | None = None


def read_upload(content_type, body, has_word_times):
    """Read a transcription's form or JSON -> (float32 (n,) at 16 kHz, request); or Refused."""
    try:
        if content_type.lower().startswith("application/json"):
            ask = TranscriptionRequest.model_validate_json(body)
        else:
            ask = TranscriptionRequest.model_validate(read_form(content_type, body))
    except ValidationError as e:
        raise as_refused(e) from None
    if ask.stream and FORMATS[ask.response_format] == "subtitles":
        raise Refused(400, "a stream has events, no subtitles: leave stream out", "stream")
    can_time = has_word_times and ask.response_format == "verbose_json"
    if "word" in (ask.timestamp_granularities or []) and not can_time:
        raise Refused(400, "words have times in verbose_json alone, and only where the model can "
                      "tell them: ask for segments", "timestamp_granularities")
    if not ask.input_audio:
        return decode(ask.file, MAX_TRANSCRIPT_S, "file"), ask
    return decode_base64(ask.input_audio.data, MAX_TRANSCRIPT_S, "input_audio.data"), ask


def write_transcript(ask, wav, pieces, language):
    """Return the [Piece] of wav (n,) as a TranscriptionRequest asks for them, str or dict."""
    kind = ask.response_format
    said = [piece for piece in pieces if piece.text]
    text = language.space.join(piece.text for piece in said)
    if kind == "text" and not ask.stream:
        return text + "\n"
    cut = sum(map(cut_in_segments, said), [])
    if FORMATS[kind] == "subtitles":
        return write_subtitles(kind, cut)
    length_s = seconds([wav])
    answer = {"text": text, "is_cut": any(piece.is_cut for piece in pieces),
              "usage": {"type": "duration", "seconds": math.ceil(length_s)}}
    if kind != "verbose_json":
        return answer
    segments = [{"id": i, "seek": 0, "text": f" {piece.text}", "tokens": [], "temperature": 0.0,
                 **span(piece)} for i, piece in enumerate(cut)]
    answer |= {"task": "transcribe", "language": language.code, "segments": segments,
               "duration": round(length_s, 2)}
    if "word" in (ask.timestamp_granularities or []):
        words = chain.from_iterable(piece.words for piece in said)
        answer["words"] = [{"word": word.text, **span(word)} for word in words]
    return answer


def span(said):
    return {"start": round(said.start_s, 2), "end": round(said.end_s, 2)}


def cut_in_segments(piece):
    """Halve a Piece, at a pause of its words, until it fits in two lines and SEGMENT_S."""
    text, words, n = piece.text, piece.words, 0
    length_s = piece.end_s - piece.start_s
    is_short = len(words) < 2 or length_s <= SEGMENT_S
    if is_short and len(text) <= 2 * LINE and len(textwrap.wrap(text, LINE)) <= 2:
        return [piece]
    half = text.rfind(" ", 1, len(text) // 2 + 1)
    half = len(text) // 2 if half < 0 else half
    end_s = start_s = piece.start_s + length_s * half / len(text)
    if len(words) > 1:
        n = max(range(1, len(words)), key=lambda i: words[i].start_s - words[i - 1].end_s
                - abs(2 * i / len(words) - 1))
        end_s, start_s = words[n - 1].end_s, words[n].start_s
        half = len(" ".join(word.text for word in words[:n]))
    first = piece._replace(text=text[:half], end_s=end_s, words=words[:n])
    last = piece._replace(text=text[half:].strip(), start_s=start_s, words=words[n:])
    return cut_in_segments(first) + cut_in_segments(last)


def write_subtitles(kind, pieces):
    """Return the text of a file of kind srt or vtt."""
    def clock(time_s):
        at = datetime.min + timedelta(milliseconds=round(1000 * time_s))
        return at.time().isoformat("milliseconds").replace(".", "." if kind == "vtt" else ",")

    cues = [f"{i}\n{clock(piece.start_s)} --> {clock(piece.end_s)}\n"
            f"{textwrap.fill(piece.text, LINE)}\n" for i, piece in enumerate(pieces, 1)]
    return "\n".join(cues if kind == "srt" else ["WEBVTT\n", *cues])
