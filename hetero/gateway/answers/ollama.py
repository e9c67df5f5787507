"""Answers as Ollama gives them: JSON, a line each."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from hetero.errors import SequenceFailed
from hetero.gateway.answers.answer import Answer, Dialect
from hetero.gateway.answers.blocks import Block
from hetero.gateway.answers.choice import Choice, Part
from hetero.gateway.answers.logprobs import logprob_shape
from hetero.gateway.answers.stats import merged
from hetero.workers.wire.messages import Logprob


class Ollama(Dialect):
    """Of one request: a chat, or the text of one question."""

    media = "application/x-ndjson"
    alive = ""

    def __init__(self, chat: bool, logprobs: bool = False) -> None:
        self._chat, self._logprobs = chat, logprobs

    def whole(self, answer: Answer) -> dict[str, Any]:
        choice = answer.choices[0]
        found = {
            **self._head(answer),
            **self._said(choice.text, choice.blocks.text("reasoning"), choice.blocks.of("call")),
            **_end(answer, choice),
        }
        return {**found, **self._probable(choice, choice.logprobs)}

    def part(self, answer: Answer, part: Part) -> Iterable[str]:
        choice = answer.choices[part.index]
        text, reasoning = part.text("text"), part.text("reasoning")
        # Its clients want the arguments of a call whole.
        over = [change.block for change in part.changes if change.what == "over"]
        calls = [block for block in over if block.kind == "call"]
        if text or reasoning or calls or part.logprobs:
            said = self._said(text, reasoning, calls)
            yield _line({**self._head(answer), **said, "done": False, **self._probable(choice, part.logprobs)})
        if part.reason is not None:
            yield _line({**self._head(answer), **self._said("", "", []), **_end(answer, choice)})

    def failed(self, answer: Answer, error: SequenceFailed) -> Iterable[str]:
        yield _line({"error": str(error)})

    def _head(self, answer: Answer) -> dict[str, Any]:
        return {"model": answer.model, "created_at": now()}

    def _said(self, text: str, reasoning: str, calls: list[Block]) -> dict[str, Any]:
        thought = {"thinking": reasoning} if reasoning else {}
        if not self._chat:
            return {"response": text, **thought}
        message: dict[str, Any] = {"role": "assistant", "content": text, **thought}
        if calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "function": {"index": call.number, "name": call.name, "arguments": call.arguments},
                }
                for call in calls
            ]
        return {"message": message}

    def _probable(self, choice: Choice, found: list[Logprob]) -> dict[str, Any]:
        return {"logprobs": logprob_shape(choice, found)} if self._logprobs else {}


def now() -> str:
    """This moment, as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _line(body: dict[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")) + "\n"


def _end(answer: Answer, choice: Choice) -> dict[str, Any]:
    """The last words: why it ended, and what it cost (nanoseconds)."""
    stats = merged(answer.stats)
    return {
        "done": True,
        "done_reason": "length" if choice.reason == "length" else "stop",
        "total_duration": int(1e9 * (time.monotonic() - answer.began)),
        "load_duration": 0,
        "prompt_eval_count": sum(answer.prompts),
        "prompt_eval_duration": int(1e6 * stats.prompt_ms),
        "eval_count": choice.tokens,
        "eval_duration": int(1e6 * stats.predicted_ms),
    }
