"""Answers as OpenAI's Responses API has them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from hetero.errors import SequenceFailed
from hetero.gateway.answers.answer import Answer, Dialect, event
from hetero.gateway.answers.blocks import Block, Change
from hetero.gateway.answers.choice import Part
from hetero.gateway.answers.errors import failure, kind_of
from hetero.gateway.answers.logprobs import logprob_shape
from hetero.gateway.requests.responses import ResponsesRequest

_PREFIX = {"reasoning": "rs_", "text": "msg_", "call": "fc_"}


class Responses(Dialect):
    """Of one request."""

    def __init__(self, asked: ResponsesRequest) -> None:
        self._asked = asked
        self._weighed = bool(asked.top_logprobs) or "message.output_text.logprobs" in asked.include
        self._number = -1

    def whole(self, answer: Answer) -> dict[str, Any]:
        return self._response(answer, answer.choices[0].blocks.all)

    def begin(self, answer: Answer) -> Iterable[str]:
        yield self._told("response.created", response=self._response(answer, None))
        yield self._told("response.in_progress", response=self._response(answer, None))

    def part(self, answer: Answer, part: Part) -> Iterable[str]:
        choice = answer.choices[0]
        logprobs = logprob_shape(choice, part.logprobs) if self._weighed else []
        for change in part.changes:
            yield from self._changed(change, logprobs)
            if change.block.kind == "text" and change.what == "more":
                logprobs = []  # of one part they are told once

    def end(self, answer: Answer) -> Iterable[str]:
        found = self._response(answer, answer.choices[0].blocks.all)
        yield self._told(f"response.{found['status']}", response=found)

    def failed(self, answer: Answer, error: SequenceFailed) -> Iterable[str]:
        found = self._response(answer, answer.choices[0].blocks.all)
        told = failure(str(error), kind_of(error), code=error.code)["error"]
        found |= {"status": "failed", "error": {"code": "server_error", "message": told["message"]}}
        yield self._told("response.failed", response=found)

    def _changed(self, change: Change, logprobs: list[dict[str, Any]]) -> Iterable[str]:
        block = change.block
        where = {"item_id": _PREFIX[block.kind] + block.key, "output_index": block.index}
        inner = {**where, "content_index": 0}
        match change.what, block.kind:
            case "begun", _:
                empty = replace(block, text="")
                item = _item(empty, "in_progress")
                if block.kind != "call":
                    item["content"] = []
                yield self._told("response.output_item.added", output_index=block.index, item=item)
                if block.kind != "call":
                    yield self._told("response.content_part.added", **inner, part=_content(empty))
            case "more", "call":
                yield self._told("response.function_call_arguments.delta", **where, delta=change.text)
            case "more", "text":
                yield self._told("response.output_text.delta", **inner, delta=change.text, logprobs=logprobs)
            case "more", _:
                yield self._told("response.reasoning_text.delta", **inner, delta=change.text)
            case _, "call":
                done = {**where, "arguments": block.text, "name": block.name}
                yield self._told("response.function_call_arguments.done", **done)
                yield self._done(block)
            case _, "text":
                yield self._told("response.output_text.done", **inner, text=block.text, logprobs=[])
                yield self._told("response.content_part.done", **inner, part=_content(block))
                yield self._done(block)
            case _:
                yield self._told("response.reasoning_text.done", **inner, text=block.text)
                yield self._told("response.content_part.done", **inner, part=_content(block))
                yield self._done(block)

    def _done(self, block: Block) -> str:
        return self._told("response.output_item.done", output_index=block.index, item=_item(block, "completed"))

    def _told(self, kind: str, **more: Any) -> str:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number, **more}, kind)

    def _response(self, answer: Answer, blocks: list[Block] | None) -> dict[str, Any]:
        """The whole object; ``blocks``: None while it runs."""
        asked, reason = self._asked, answer.choices[0].reason
        cut = blocks is not None and reason == "length"
        shown = blocks or []
        output = [_item(block, "incomplete" if cut and block is shown[-1] else "completed") for block in shown]
        texts = [item["content"][0] for item in output if item["type"] == "message"]
        if self._weighed and texts:
            texts[-1]["logprobs"] = logprob_shape(answer.choices[0], answer.choices[0].logprobs)
        status = "in_progress" if blocks is None else "incomplete" if cut else "completed"
        reasoning = asked.reasoning.effort if asked.reasoning is not None else None
        form = asked.text.format if asked.text is not None else None
        shape: dict[str, Any] = {"type": "text"}
        if form is not None and form.json_schema is not None:
            schema = form.json_schema
            shape = {"type": "json_schema", "name": schema.name, "schema": schema.schema_, "strict": schema.strict}
        elif form is not None:
            shape = {"type": form.type}
        return {
            "id": f"resp_{answer.key}",
            "object": "response",
            "created_at": answer.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": answer.model,
            "output": output,
            "parallel_tool_calls": asked.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": reasoning, "summary": None},
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": shape},
            "tool_choice": asked.tool_choice,
            "tools": asked.tools,
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": _usage(answer) if blocks is not None else None,
            "metadata": asked.metadata,
        }


def _item(block: Block, status: str) -> dict[str, Any]:
    head = {"id": _PREFIX[block.kind] + block.key, "status": status}
    match block.kind:
        case "call":
            call = {"call_id": block.id, "name": block.name, "arguments": block.text}
            return {"type": "function_call", **head, **call}
        case "text":
            return {"type": "message", **head, "role": "assistant", "content": [_content(block)]}
    return {"type": "reasoning", **head, "summary": [], "content": [_content(block)]}


def _content(block: Block) -> dict[str, Any]:
    if block.kind == "text":
        return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": block.text}


def _usage(answer: Answer) -> dict[str, Any]:
    found = answer.usage
    return {
        "input_tokens": found["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": found["prompt_tokens_details"]["cached_tokens"]},
        "output_tokens": found["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": found["completion_tokens_details"]["reasoning_tokens"]},
        "total_tokens": found["total_tokens"],
    }
