"""OpenAI's Responses API, without a memory: its requests as chats, and its answers.

https://platform.openai.com/docs/api-reference/responses
"""
import time
import uuid
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from api import NO_JSON, ChatRequest, Message, Messages, Unset, is_text, rule


def as_messages(x):
    return [{"role": "user", "content": x}] if isinstance(x, str) else x


class ResponsesRequest(ChatRequest):
    field: ClassVar = "input"
    messages: Annotated[Messages, BeforeValidator(as_messages)] = Field(alias="input")
    max_tokens: int | None = Field(None, ge=1, alias="max_output_tokens")
    response_format: Annotated[dict | None, rule(
        lambda x: is_text((x or {}).get("format")), NO_JSON)] = Field(None, alias="text")
    instructions: str | None = None
    previous_response_id: Unset = None
    conversation: Unset = None
    background: Unset = None

    def named(self):
        told = [("instructions", Message(role="system", content=self.instructions))]
        return told * bool(self.instructions) + super().named()


class Response:
    """The answer to a ResponsesRequest, whole or as events."""

    def __init__(self, model):
        self.n_events = 0
        self.item = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant"}
        self.base = {"id": f"resp_{uuid.uuid4().hex}", "object": "response", "model": model,
                     "created_at": int(time.time()), "error": None, "tools": [],
                     "tool_choice": "auto", "parallel_tool_calls": False}

    def whole(self, text, reason, usage):
        """Return the response; reason, usage: of a chat's answer."""
        status, details = "completed", None
        if reason == "length":
            status, details = "incomplete", {"reason": "max_output_tokens"}
        n_in, n_out, n = usage.values()
        counts = {"input_tokens": n_in, "input_tokens_details": {"cached_tokens": 0},
                  "output_tokens": n_out, "output_tokens_details": {"reasoning_tokens": 0},
                  "total_tokens": n}
        output = [self.item | {"status": status, "content": [part(text)]}]
        return self.base | {"status": status, "incomplete_details": details, "usage": counts,
                            "output": output}

    def event(self, kind, **fields):
        self.n_events += 1
        return {"type": f"response.{kind}", "sequence_number": self.n_events - 1, **fields}

    async def events(self, pieces, end):
        """Yield events as the text's pieces come; end(): a chat's reason and usage."""
        event, text = self.event, ""
        at = {"item_id": self.item["id"], "output_index": 0, "content_index": 0}
        item = self.item | {"status": "in_progress", "content": []}
        async for piece in pieces:
            if not self.n_events:  # an error before the first piece has its own status
                begun = self.base | {"status": "in_progress", "output": []}
                yield event("created", response=begun)
                yield event("output_item.added", output_index=0, item=item)
                yield event("content_part.added", **at, part=part(""))
            text += piece
            yield event("output_text.delta", **at, delta=piece, logprobs=[])
        response = self.whole(text, *end())
        yield event("output_text.done", **at, text=text, logprobs=[])
        yield event("content_part.done", **at, part=part(text))
        yield event("output_item.done", output_index=0, item=response["output"][0])
        yield event(response["status"], response=response)


def part(text):
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
