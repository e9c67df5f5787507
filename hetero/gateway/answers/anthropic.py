"""Answers as Anthropic's Messages API has them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from hetero.errors import SequenceFailed
from hetero.gateway.answers.answer import Answer, Dialect, event
from hetero.gateway.answers.blocks import Block
from hetero.gateway.answers.choice import Choice, Part

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class Messages(Dialect):
    """Of one request."""

    alive = event({"type": "ping"}, "ping")

    def whole(self, answer: Answer) -> dict[str, Any]:
        choice = answer.choices[0]
        return {
            **self._head(answer),
            "content": [_block(block) for block in choice.blocks.all],
            **_ended(choice),
            "usage": _usage(answer),
        }

    def begin(self, answer: Answer) -> Iterable[str]:
        usage = {**_usage(answer), "output_tokens": 0}
        message = {**self._head(answer), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        yield event({"type": "message_start", "message": message}, "message_start")
        yield self.alive

    def part(self, answer: Answer, part: Part) -> Iterable[str]:
        for change in part.changes:
            block = change.block
            match change.what:
                case "begun":
                    empty = _block(replace(block, text=""))
                    yield _told("content_block_start", index=block.index, content_block=empty)
                case "more":
                    yield _told("content_block_delta", index=block.index, delta=_delta(block, change.text))
                case "over":
                    if block.kind == "reasoning":
                        signature = {"type": "signature_delta", "signature": _SIGNATURE}
                        yield _told("content_block_delta", index=block.index, delta=signature)
                    yield _told("content_block_stop", index=block.index)

    def end(self, answer: Answer) -> Iterable[str]:
        yield _told("message_delta", delta=_ended(answer.choices[0]), usage=_usage(answer))
        yield _told("message_stop")

    def failed(self, answer: Answer, error: SequenceFailed) -> Iterable[str]:
        yield _told("error", error={"type": "api_error", "message": str(error)})

    def _head(self, answer: Answer) -> dict[str, Any]:
        return {"id": f"msg_{answer.key}", "type": "message", "role": "assistant", "model": answer.model}


_SIGNATURE = "hetero"  # reasoning is not encrypted here; clients want one to give it back


def _told(kind: str, **more: Any) -> str:
    return event({"type": kind, **more}, kind)


def _ended(choice: Choice) -> dict[str, Any]:
    reason = "stop_sequence" if choice.stop else _REASONS.get(choice.reason or "stop", "end_turn")
    return {"stop_reason": reason, "stop_sequence": choice.stop or None}


def _usage(answer: Answer) -> dict[str, Any]:
    found = answer.usage
    cached = found["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": found["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": found["completion_tokens"],
    }


def _block(block: Block) -> dict[str, Any]:
    match block.kind:
        case "reasoning":
            return {"type": "thinking", "thinking": block.text, "signature": _SIGNATURE if block.text else ""}
        case "text":
            return {"type": "text", "text": block.text}
    return {"type": "tool_use", "id": block.id, "name": block.name, "input": block.arguments}


def _delta(block: Block, text: str) -> dict[str, Any]:
    match block.kind:
        case "reasoning":
            return {"type": "thinking_delta", "thinking": text}
        case "text":
            return {"type": "text_delta", "text": text}
    return {"type": "input_json_delta", "partial_json": text}
