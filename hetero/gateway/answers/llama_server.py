"""Answers as llama-server's ``/completion`` gives them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hetero.errors import SequenceFailed
from hetero.gateway.answers.answer import Answer, Dialect, event
from hetero.gateway.answers.choice import Choice, Part
from hetero.gateway.answers.errors import failure, kind_of
from hetero.gateway.answers.logprobs import logprob_shape
from hetero.gateway.answers.stats import merged, timings
from hetero.gateway.requests.openai import CompletionRequest
from hetero.workers.wire.messages import Logprob


class LlamaServer(Dialect):
    """Of one request."""

    def __init__(self, asked: CompletionRequest) -> None:
        self._asked = asked

    def whole(self, answer: Answer) -> dict[str, Any]:
        choice = answer.choices[0]
        probable = self._probable(choice, choice.logprobs)
        return {**self._head(answer, choice, choice.echo + choice.text), **self._end(answer, choice), **probable}

    def begin(self, answer: Answer) -> Iterable[str]:
        if answer.choices[0].echo:
            yield event({**self._head(answer, answer.choices[0], answer.choices[0].echo), "stop": False})

    def part(self, answer: Answer, part: Part) -> Iterable[str]:
        choice = answer.choices[0]
        text = part.text("text")
        if text or part.logprobs:
            probable = self._probable(choice, part.logprobs)
            yield event({**self._head(answer, choice, text), "stop": False, **probable})
        if part.reason is not None:
            yield event({**self._head(answer, choice, ""), **self._end(answer, choice)})

    def failed(self, answer: Answer, error: SequenceFailed) -> Iterable[str]:
        yield event(failure(str(error), kind_of(error), code=error.code))

    def _head(self, answer: Answer, choice: Choice, text: str) -> dict[str, Any]:
        counts = {"tokens_predicted": choice.tokens, "tokens_evaluated": sum(answer.prompts)}
        return {"index": 0, "content": text, "tokens": [], "id_slot": 0, **counts}

    def _end(self, answer: Answer, choice: Choice) -> dict[str, Any]:
        stats = merged(answer.stats)
        kind = "limit" if choice.reason == "length" else "word" if choice.stop else "eos"
        return {
            "stop": True,
            "model": answer.model,
            "stop_type": kind,
            "stopping_word": choice.stop or "",
            "truncated": False,
            "has_new_line": "\n" in choice.text,
            "tokens_cached": stats.cached_n,
            "generation_settings": self._asked.model_dump(exclude_none=True, exclude={"prompt"}, mode="json"),
            "timings": timings(stats),
        }

    def _probable(self, choice: Choice, found: Sequence[Logprob]) -> dict[str, Any]:
        if self._asked.logprobs is None:
            return {}

        return {"completion_probabilities": logprob_shape(choice, found, ids=True)}
