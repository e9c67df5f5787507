"""Answers in OpenAI's shapes: completions, and chats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hetero.errors import SequenceFailed
from hetero.gateway.answers.answer import Answer, Dialect, event
from hetero.gateway.answers.choice import Choice, Part
from hetero.gateway.answers.errors import failure, kind_of
from hetero.gateway.answers.logprobs import logprob_shape
from hetero.gateway.answers.stats import merged, timings, window
from hetero.gateway.requests.fields import StreamOptions
from hetero.workers.wire.messages import Logprob

_DONE = "data: [DONE]\n\n"


class _OpenAI(Dialect):
    """What both share."""

    kind = chunk_kind = prefix = ""

    def __init__(self, options: StreamOptions | None, logprobs: bool) -> None:
        self._options = options or StreamOptions()
        self._logprobs = logprobs

    def whole(self, answer: Answer) -> dict[str, Any]:
        return {
            **self._head(answer, self.kind),
            "choices": [{"index": n, **self._choice(choice)} for n, choice in enumerate(answer.shown)],
            "usage": answer.usage,
            "timings": timings(merged(answer.stats)),
        }

    def part(self, answer: Answer, part: Part) -> Iterable[str]:
        windows = self._options.include_windows and part.round is not None
        content = self._content(answer.choices[part.index], part)
        logprobs = self._logprobs and (bool(part.logprobs) or self._owes(answer.choices[part.index]))
        if content is None and not (logprobs or part.reason is not None or windows):
            return
        choice = answer.choices[part.index]
        shown = {
            "index": part.index,
            **(content if content is not None else self._nothing),
            "logprobs": self._shape(choice, part.logprobs) if logprobs else None,
            "finish_reason": part.reason,
        }
        found = {**self._head(answer, self.chunk_kind), "choices": [shown]}
        if part.stats is not None:
            found["timings"] = timings(part.stats)
        if windows and part.round is not None:
            found["window"] = window(part.round, part.fresh)
        if self._options.continuous_usage_stats:
            found["usage"] = answer.usage
        elif self._options.include_usage:
            found["usage"] = None
        yield event(found)

    def end(self, answer: Answer) -> Iterable[str]:
        if self._options.include_usage:
            yield event({**self._head(answer, self.chunk_kind), "choices": [], "usage": answer.usage})
        yield _DONE

    def failed(self, answer: Answer, error: SequenceFailed) -> Iterable[str]:
        yield event(failure(str(error), kind_of(error), code=error.code))

    def _head(self, answer: Answer, kind: str) -> dict[str, Any]:
        return {
            "id": self.prefix + answer.key,
            "object": kind,
            "created": answer.created,
            "model": answer.model,
            "system_fingerprint": answer.fingerprint,
        }

    _nothing: dict[str, Any]

    def _owes(self, choice: Choice) -> bool:
        """Whether logprobs are due that came with no part."""
        return False

    def _choice(self, choice: Choice) -> dict[str, Any]:
        raise NotImplementedError

    def _content(self, choice: Choice, part: Part) -> dict[str, Any] | None:
        """What a chunk shows of a part; None: nothing."""
        raise NotImplementedError

    def _shape(self, choice: Choice, found: Sequence[Logprob]) -> dict[str, Any]:
        raise NotImplementedError


class Chat(_OpenAI):
    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"
    _nothing: dict[str, Any] = {"delta": {}}  # noqa: RUF012

    def begin(self, answer: Answer) -> Iterable[str]:
        for choice in answer.choices:
            delta = {"role": "assistant", "content": ""}
            shown = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
            usage = {"usage": None} if self._options.include_usage else {}
            yield event({**self._head(answer, self.chunk_kind), "choices": [shown], **usage})

    def _choice(self, choice: Choice) -> dict[str, Any]:
        calls = choice.blocks.of("call")
        message: dict[str, Any] = {"role": "assistant", "content": choice.text or (None if calls else "")}
        if reasoning := choice.blocks.text("reasoning"):
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.text}}
                for call in calls
            ]
        logprobs = self._shape(choice, choice.logprobs) if self._logprobs else None
        return {"message": message, "logprobs": logprobs, "finish_reason": choice.reason}

    def _content(self, choice: Choice, part: Part) -> dict[str, Any] | None:
        delta: dict[str, Any] = {}
        if reasoning := part.text("reasoning"):
            delta["reasoning_content"] = reasoning
        if text := part.text("text"):
            delta["content"] = text
        if calls := _calls(part):
            delta["tool_calls"] = calls
        return {"delta": delta} if delta else None

    def _shape(self, choice: Choice, found: Sequence[Logprob]) -> dict[str, Any]:
        return {"content": logprob_shape(choice, found), "refusal": None}


def _calls(part: Part) -> list[dict[str, Any]]:
    """What a part adds to calls, one entry for each: its name first, arguments as they come."""
    found: dict[int, dict[str, Any]] = {}
    for change in part.changes:
        block = change.block
        if block.kind != "call" or change.what == "over":
            continue
        entry = found.setdefault(block.number, {"index": block.number, "function": {"arguments": ""}})
        if change.what == "begun":
            entry |= {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": ""}}
        entry["function"]["arguments"] += change.text
    return list(found.values())


class Completion(_OpenAI):
    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl-"
    _nothing: dict[str, Any] = {"text": ""}  # noqa: RUF012

    def __init__(self, options: StreamOptions | None, logprobs: bool) -> None:
        super().__init__(options, logprobs)
        self._offsets: dict[int, int] = {}  # of each choice's next token
        self._echoed: set[int] = set()

    def _choice(self, choice: Choice) -> dict[str, Any]:
        found = self._shape(choice, choice.logprobs) if self._logprobs else None
        return {"text": choice.echo + choice.text, "logprobs": found, "finish_reason": choice.reason}

    def _owes(self, choice: Choice) -> bool:
        return choice.silent and choice.index not in self._offsets and choice.reason is not None

    def _content(self, choice: Choice, part: Part) -> dict[str, Any] | None:
        text = part.text("text")
        if choice.index not in self._echoed:
            self._echoed.add(choice.index)
            text = choice.echo + text
        return {"text": text} if text else None

    def _shape(self, choice: Choice, found: Sequence[Logprob]) -> dict[str, Any]:
        """OpenAI's old one. The prompt's tokens come first where it is echoed, the first of them without a value."""

        def word(token: int) -> str:
            return choice.vocabulary.named(token).decode(errors="replace")

        at = self._offsets.get(choice.index)
        entries: list[tuple[int, Logprob | None]] = [(entry.token, entry) for entry in found]
        if at is None and choice.prompt_logprobs:
            prompt = [(entry.token, entry) for entry in choice.prompt_logprobs]
            entries = [(choice.prompt[0], None), *prompt, *entries]
            at = 0
        elif at is None:
            at = len(choice.echo)
        offsets = []
        for token, _ in entries:
            offsets.append(at)
            at += len(choice.vocabulary.pieces[token].decode(errors="replace"))  # control tokens are not in the text
        self._offsets[choice.index] = at
        return {
            "tokens": [word(token) for token, _ in entries],
            "token_logprobs": [entry and entry.value for _, entry in entries],
            "top_logprobs": [entry and {word(t): value for t, value in entry.top} for _, entry in entries],
            "text_offset": offsets,
        }
