"""OpenAI's Responses API, without a memory: its requests as chats, and its answers.

https://platform.openai.com/docs/api-reference/responses
"""
import time
import uuid
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, FailFast, Field

from api import ChatRequest, Message, NoJSON, rule

FORGETS = rule(lambda x: not x, "this server keeps no answers: send the whole conversation")
AT_ONCE = rule(lambda x: not x, "this server answers at once: leave it out")


def as_messages(x):
    """Return the items of `input` as messages; what other models thought or called is empty."""
    if isinstance(x, str):
        return [{"role": "user", "content": x}]
    return [as_message(item) for item in x] if isinstance(x, list) else x


def as_message(item):
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "function_call_output":
        return {"role": "tool", "content": item.get("output")}
    return {"role": "assistant"} if kind in ("function_call", "reasoning") else item


class ResponsesRequest(ChatRequest):
    field: ClassVar = "input"
    messages: Annotated[list[Message], FailFast(), Field(min_length=1, max_length=1000),
                        BeforeValidator(as_messages)] = Field(alias="input")
    max_tokens: int | None = Field(None, ge=1, alias="max_output_tokens")
    response_format: Annotated[dict | None, NoJSON, BeforeValidator(
        lambda x: x.get("format") if isinstance(x, dict) else x)] = Field(None, alias="text")
    instructions: str | None = None
    previous_response_id: Annotated[Any, FORGETS] = None
    conversation: Annotated[Any, FORGETS] = None
    background: Annotated[Any, AT_ONCE] = None

    def named(self):
        told = [("instructions", Message(role="system", content=self.instructions))]
        return told * bool(self.instructions) + super().named()


class Response:
    """The answer to a ResponsesRequest, whole or as events."""

    def __init__(self, ask, model):
        self.n_events = 0
        self.item = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant"}
        self.base = {
            "id": f"resp_{uuid.uuid4().hex}", "object": "response", "created_at": int(time.time()),
            "model": model, "error": None, "incomplete_details": None, "metadata": {},
            "instructions": ask.instructions, "parallel_tool_calls": False, "tool_choice": "auto",
            "tools": [], "temperature": ask.temperature, "top_p": ask.top_p}

    def part(self, text):
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def whole(self, text, reason, usage):
        """Return the response; reason, usage: of a chat's answer."""
        is_short = reason == "length"
        status = "incomplete" if is_short else "completed"
        counts = {"input_tokens": usage["prompt_tokens"],
                  "input_tokens_details": {"cached_tokens": 0},
                  "output_tokens": usage["completion_tokens"],
                  "output_tokens_details": {"reasoning_tokens": 0},
                  "total_tokens": usage["total_tokens"]}
        item = self.item | {"status": status, "content": [self.part(text)]}
        details = {"reason": "max_output_tokens"} if is_short else None
        return self.base | {"status": status, "incomplete_details": details, "usage": counts,
                            "output": [item]}

    def event(self, kind, **fields):
        self.n_events += 1
        return {"type": f"response.{kind}", "sequence_number": self.n_events - 1, **fields}

    async def events(self, pieces, end):
        """Yield events as the text's pieces come; end(): a chat's reason and usage."""
        begun = self.base | {"status": "in_progress", "output": [], "usage": None}
        item = self.item | {"status": "in_progress", "content": []}
        at = {"item_id": self.item["id"], "output_index": 0, "content_index": 0}
        text = ""
        yield self.event("created", response=begun)
        yield self.event("in_progress", response=begun)
        yield self.event("output_item.added", output_index=0, item=item)
        yield self.event("content_part.added", **at, part=self.part(""))
        async for piece in pieces:
            text += piece
            if piece:
                yield self.event("output_text.delta", **at, delta=piece, logprobs=[])
        response = self.whole(text, *end())
        yield self.event("output_text.done", **at, text=text, logprobs=[])
        yield self.event("content_part.done", **at, part=self.part(text))
        yield self.event("output_item.done", output_index=0, item=response["output"][0])
        yield self.event(response["status"], response=response)
