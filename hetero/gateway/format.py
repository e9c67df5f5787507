"""Answers in OpenAI's shapes."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from hetero.client import Piece
from workers.wire.messages import Stats


class Answer:
    """The envelope of one answer: its id, time, model and kind."""

    def __init__(self, chat: bool, model: str) -> None:
        self._chat = chat
        self._id = ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
        self._created = int(time.time())
        self._model = model
        self._begun = False

    def whole(self, text: str, last: Piece) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        content = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": last.reason}
        assert last.stats is not None
        return {
            **self._head("chat.completion" if self._chat else "text_completion"),
            "choices": [choice],
            "usage": usage(last.stats),
            "timings": timings(last.stats),
        }

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """One chunk of a stream; the last carries the reason and the timings."""
        content: dict[str, Any] = {"text": piece.text}
        if self._chat:
            delta = {} if self._begun else {"role": "assistant"}
            if piece.text or not self._begun:
                delta["content"] = piece.text
            content = {"delta": delta}
        self._begun = True
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": piece.reason}
        found = {**self._head(self._chunk_kind), "choices": [choice]}
        if piece.stats is not None:
            found["timings"] = timings(piece.stats)
        return found

    def usage_chunk(self, stats: Stats) -> dict[str, Any]:
        """The extra chunk that ``stream_options.include_usage`` asks for."""
        return {**self._head(self._chunk_kind), "choices": [], "usage": usage(stats)}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


def usage(stats: Stats) -> dict[str, Any]:
    """OpenAI's token counts."""
    return {
        "prompt_tokens": stats.prompt_n,
        "completion_tokens": stats.predicted_n,
        "total_tokens": stats.prompt_n + stats.predicted_n,
    }


def timings(stats: Stats) -> dict[str, Any]:
    """llama.cpp's timings, and the number of target forwards."""

    def rate(count: int, milliseconds: float) -> float:
        return round(1e3 * count / milliseconds, 3) if milliseconds > 0 else 0.0

    return {
        "prompt_n": stats.prompt_n,
        "prompt_ms": round(stats.prompt_ms, 3),
        "prompt_per_second": rate(stats.prompt_n, stats.prompt_ms),
        "predicted_n": stats.predicted_n,
        "predicted_ms": round(stats.predicted_ms, 3),
        "predicted_per_second": rate(stats.predicted_n - stats.resumed_n, stats.predicted_ms),
        "draft_n": stats.draft_n,
        "draft_n_accepted": stats.draft_n_accepted,
        "draft_wait_ms": round(stats.waited_ms, 3),
        "target_forwards_n": stats.forwards_n,
        "speculation": _speculation(stats),
    }


def _speculation(stats: Stats) -> str:
    """One line on whether drafts were used, and why not where they were not."""
    if stats.plain_n:
        return f"off for {stats.plain_n} of {stats.predicted_n} tokens: it was slower than plain decoding"
    return "on" if stats.draft_n else "off"


def failure(message: str, kind: str, param: str | None = None, code: str | int | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def event(body: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


DONE = "data: [DONE]\n\n"
ALIVE = ": alive\n\n"
