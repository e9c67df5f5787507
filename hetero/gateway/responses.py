"""Answers in OpenAI's shapes."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from hetero.gateway.client import Delta
from hetero.gateway.tools import CallReader
from hetero.workers.wire.messages import Logprob, Round, Stats


class Choice:
    """One choice of an answer as it grows: what of it to show in the next chunk, and all of it at the end."""

    def __init__(self, index: int, pieces: Sequence[bytes], *, chat: bool, echo: str = "", tools: bool = False) -> None:
        """``pieces``: bytes of each token; ``echo``: text to begin with; ``tools``: calls are read out of it."""
        self.stats: Stats | None = None
        self._index = index
        self._pieces = pieces
        self._chat = chat
        self._reader = CallReader() if tools else None
        self._text = ""
        self._unsent = echo
        self._told = 0  # calls shown in chunks
        self._begun = False
        self._logprobs: list[Logprob] = []
        self._reason: str | None = None
        self._offset = len(echo)  # of the next token's text, for the completions route

    def take(self, delta: Delta) -> list[Logprob]:
        """More of it came; returns the logprobs that came with it."""
        text = delta.text
        if self._reader is not None:
            text = self._reader.feed(text)
            if delta.reason is not None:
                text += self._reader.finish()
        self._unsent += text
        self._logprobs += delta.logprobs
        if delta.reason is not None:
            called = self._reader is not None and self._reader.calls and delta.reason == "stop"
            self._reason = "tool_calls" if called else delta.reason
            self.stats = delta.stats
        return delta.logprobs

    def whole(self, wanted: bool) -> dict[str, Any]:
        """The finished choice; ``wanted``: with logprobs."""
        text = self._unsent
        logprobs = self._shape(self._logprobs) if wanted else None
        content: dict[str, Any] = {"text": text}
        if self._chat:
            calls = self._reader.calls if self._reader is not None else []
            message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
            content = {"message": {**message, "tool_calls": calls} if calls else message}
        return {"index": self._index, **content, "logprobs": logprobs, "finish_reason": self._reason}

    def part(self, logprobs: list[Logprob], wanted: bool, anyway: bool) -> dict[str, Any] | None:
        """What a chunk shows of it since the last one; None: nothing, unless one is wanted ``anyway``."""
        calls = self._reader.calls[self._told :] if self._reader is not None else []
        if not (self._unsent or calls or logprobs or self._reason is not None or anyway):
            return None
        text, self._unsent = self._unsent, ""
        content: dict[str, Any] = {"text": text}
        if self._chat:
            delta: dict[str, Any] = {} if self._begun else {"role": "assistant", "content": ""}
            if text:
                delta["content"] = text
            if calls:
                delta["tool_calls"] = [{"index": self._told + n, **call} for n, call in enumerate(calls)]
            content = {"delta": delta}
        self._told += len(calls)
        self._begun = True
        shaped = self._shape(logprobs) if wanted and logprobs else None
        return {"index": self._index, **content, "logprobs": shaped, "finish_reason": self._reason}

    def _shape(self, found: list[Logprob]) -> dict[str, Any]:
        if self._chat:
            return {"content": [self._chat_logprob(entry) for entry in found], "refusal": None}
        offsets = []
        for entry in found:
            offsets.append(self._offset)
            self._offset += len(self._word(entry.token))
        return {
            "tokens": [self._word(entry.token) for entry in found],
            "token_logprobs": [entry.value for entry in found],
            "top_logprobs": [{self._word(token): value for token, value in entry.top} for entry in found],
            "text_offset": offsets,
        }

    def _chat_logprob(self, entry: Logprob) -> dict[str, Any]:
        top = [self._token(token, value) for token, value in entry.top]
        return {**self._token(entry.token, entry.value), "top_logprobs": top}

    def _token(self, token: int, value: float) -> dict[str, Any]:
        return {"token": self._word(token), "logprob": value, "bytes": list(self._pieces[token])}

    def _word(self, token: int) -> str:
        return self._pieces[token].decode(errors="replace")


class Reply:
    """The envelope of one answer: its id, time, model and kind."""

    def __init__(self, chat: bool, model: str, choices: list[Choice], logprobs: bool) -> None:
        self.choices = choices
        self._chat = chat
        self._id = ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
        self._created = int(time.time())
        self._model = model
        self._logprobs = logprobs

    def whole(self, prompts: Sequence[int]) -> dict[str, Any]:
        """The body of an answer that is not streamed; ``prompts``: tokens of each prompt."""
        stats = merged(self._stats)
        return {
            **self._head("chat.completion" if self._chat else "text_completion"),
            "choices": [choice.whole(self._logprobs) for choice in self.choices],
            "usage": usage(prompts, self._stats),
            "timings": timings(stats),
        }

    def chunk(self, index: int, delta: Delta, windows: bool) -> dict[str, Any] | None:
        """The chunk that a delta of one choice makes, if any; its last carries the reason and the timings.
        ``windows``: it is to tell of the window that brought it."""
        choice = self.choices[index]
        windows = windows and delta.round is not None
        part = choice.part(choice.take(delta), self._logprobs, anyway=windows)
        if part is None:
            return None
        found = {**self._head(self._chunk_kind), "choices": [part]}
        if delta.stats is not None:
            found["timings"] = timings(delta.stats)
        if windows and delta.round is not None:
            found["window"] = window(delta.round, len(delta.tokens))
        return found

    def usage_chunk(self, prompts: Sequence[int]) -> dict[str, Any]:
        """The extra chunk that ``stream_options.include_usage`` asks for."""
        return {**self._head(self._chunk_kind), "choices": [], "usage": usage(prompts, self._stats)}

    @property
    def _stats(self) -> list[Stats]:
        return [choice.stats for choice in self.choices if choice.stats is not None]

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


_ECHO = 2000  # characters of an error


def usage(prompts: Sequence[int], stats: Sequence[Stats]) -> dict[str, Any]:
    """OpenAI's token counts: a prompt counts once, however many choices it has."""
    completion = sum(one.predicted_n for one in stats)
    return {
        "prompt_tokens": sum(prompts),
        "completion_tokens": completion,
        "total_tokens": sum(prompts) + completion,
        "prompt_tokens_details": {"cached_tokens": min(sum(one.cached_n for one in stats), sum(prompts))},
    }


def merged(stats: Sequence[Stats]) -> Stats:
    """The counts of several choices together; they ran side by side, so times are the longest one's."""
    if len(stats) == 1:
        return stats[0]
    longest = max((len(one.accepted_at) for one in stats), default=0)
    counts = {
        name: sum(getattr(one, name) for one in stats)
        for name in Stats.__struct_fields__
        if name.endswith("_n") or name == "draft_n_accepted"
    }
    times = {name: max(getattr(one, name) for one in stats) for name in Stats.__struct_fields__ if name.endswith("_ms")}
    places = [sum(one.accepted_at[n] for one in stats if n < len(one.accepted_at)) for n in range(longest)]
    return Stats(**counts, **times, accepted_at=places)


def timings(stats: Stats) -> dict[str, Any]:
    """llama.cpp's timings, and the number of target forwards."""

    def rate(count: int, milliseconds: float) -> float:
        return round(1e3 * count / milliseconds, 3) if milliseconds > 0 else 0.0

    evaluated = stats.prompt_n - stats.cached_n
    return {
        "cache_n": stats.cached_n,
        "prompt_n": evaluated,
        "prompt_ms": round(stats.prompt_ms, 3),
        "prompt_per_second": rate(evaluated, stats.prompt_ms),
        "predicted_n": stats.predicted_n,
        "predicted_ms": round(stats.predicted_ms, 3),
        "predicted_per_second": rate(stats.predicted_n - stats.resumed_n, stats.predicted_ms),
        "plain_per_second": rate(1, stats.plain_token_ms),
        "draft_n": stats.draft_n,
        "draft_n_accepted": stats.draft_n_accepted,
        "draft_wait_ms": round(stats.waited_ms, 3),
        "target_forwards_n": stats.forwards_n,
        "speculation": _speculation(stats),
    }


def window(found: Round, tokens: int) -> dict[str, Any]:
    """What a chunk tells of the window that brought its ``tokens``."""
    return {
        "tokens": tokens,
        "drafted": found.drafted,
        "accepted": found.accepted,
        "forward_ms": round(found.forward_ms, 3),
        "waited_ms": round(found.waited_ms, 3),
        "draft_ms": round(found.draft_ms, 3),
    }


def _speculation(stats: Stats) -> str:
    """One line on whether drafts were used, and why not where they were not."""
    decided = stats.predicted_n - stats.resumed_n
    if stats.alone_n and stats.alone_n >= decided:
        return "off: no drafter"
    why = []
    if stats.alone_n:
        why.append(f"off for {stats.alone_n} of {stats.predicted_n} tokens: no drafter")
    if stats.plain_n:
        why.append(f"off for {stats.plain_n} of {stats.predicted_n} tokens: it was slower than plain decoding")
    return "; ".join(why) or ("on" if stats.draft_n else "off")


def failure(message: str, kind: str, param: str | None = None, code: str | int | None = None) -> dict[str, Any]:
    """OpenAI's error object. What a request said is echoed in part at most."""
    if len(message) > _ECHO:
        message = f"{message[:_ECHO]}..."
    return {"error": {"message": message, "type": kind, "param": param and param[:_ECHO], "code": code}}


def event(body: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


DONE = "data: [DONE]\n\n"
ALIVE = ": alive\n\n"
