"""Answers of OpenAI's API, whole or as events: chat completions, and responses without a memory.

https://platform.openai.com/docs/api-reference/responses
"""
import time
import uuid

from talk import Text, size


class Answer:
    """The answer to a ChatRequest: a Row that is being continued, and its Text."""

    def __init__(self, row, ask, talker, model):
        self.row, self.text = row, Text(talker.tok, talker.plain, ask.stop or [])
        self.with_usage = (ask.stream_options or {}).get("include_usage")
        self.base = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()),
                     "model": model}

    async def pieces(self, tokens):
        """Yield the text piece by piece as its tokens come."""
        async for token in tokens:
            if piece := self.text.add(token):
                yield piece
            if self.text.stopped:
                break
        await tokens.aclose()
        yield self.text.add()

    def end(self):
        """Return why the answer ended, and the tokens of the prompt and of the answer."""
        reason = "stop" if self.text.stopped else self.row.ended
        return reason, size(self.row.prompt), len(self.text.ids)

    def whole(self):
        """Return the answer and its usage when all its pieces have come."""
        reason, n_prompt, n_answer = self.end()
        usage = {"prompt_tokens": n_prompt, "completion_tokens": n_answer,
                 "total_tokens": n_prompt + n_answer}
        message = {"role": "assistant", "content": self.text.shown, "refusal": None}
        return self.base | {"object": "chat.completion", "usage": usage,
                            "choices": choices(reason, message=message)}

    async def events(self, pieces):
        chunk = self.base | {"object": "chat.completion.chunk"}
        if self.with_usage:
            chunk["usage"] = None
        delta = {"role": "assistant"}
        async for piece in pieces:
            if piece or delta:
                yield chunk | {"choices": choices(delta=delta | {"content": piece})}
                delta = {}
        yield chunk | {"choices": choices(self.end()[0], delta={})}
        if self.with_usage:
            yield chunk | {"choices": [], "usage": self.whole()["usage"]}
        yield "[DONE]"


def choices(reason=None, **content):
    return [{"index": 0, **content, "logprobs": None, "finish_reason": reason}]


class Response(Answer):
    """The answer to a ResponsesRequest."""

    def __init__(self, row, ask, talker, model):
        super().__init__(row, ask, talker, model)
        self.n_events = 0
        self.item = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant"}
        self.base = {"id": f"resp_{uuid.uuid4().hex}", "object": "response", "model": model,
                     "created_at": int(time.time()), "error": None, "tools": [],
                     "tool_choice": "auto", "parallel_tool_calls": False}

    def whole(self):
        reason, n_in, n_out = self.end()
        status, details = "completed", None
        if reason == "length":
            status, details = "incomplete", {"reason": "max_output_tokens"}
        counts = {"input_tokens": n_in, "input_tokens_details": {"cached_tokens": 0},
                  "output_tokens": n_out, "output_tokens_details": {"reasoning_tokens": 0},
                  "total_tokens": n_in + n_out}
        output = [self.item | {"status": status, "content": [part(self.text.shown)]}]
        return self.base | {"status": status, "incomplete_details": details, "usage": counts,
                            "output": output}

    def event(self, kind, **fields):
        self.n_events += 1
        return {"type": f"response.{kind}", "sequence_number": self.n_events - 1, **fields}

    async def events(self, pieces):
        event = self.event
        at = {"item_id": self.item["id"], "output_index": 0, "content_index": 0}
        item = self.item | {"status": "in_progress", "content": []}
        async for piece in pieces:
            if not self.n_events:  # an error before the first piece has its own status
                begun = self.base | {"status": "in_progress", "output": []}
                yield event("created", response=begun)
                yield event("output_item.added", output_index=0, item=item)
                yield event("content_part.added", **at, part=part(""))
            yield event("output_text.delta", **at, delta=piece, logprobs=[])
        response = self.whole()
        yield event("output_text.done", **at, text=self.text.shown, logprobs=[])
        yield event("content_part.done", **at, part=part(self.text.shown))
        yield event("output_item.done", output_index=0, item=response["output"][0])
        yield event(response["status"], response=response)


def part(text):
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
