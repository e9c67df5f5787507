"""One answer, and what a dialect makes of it for its clients."""

from __future__ import annotations

import json
import secrets
import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hetero.errors import SequenceFailed
from hetero.gateway.answers.choice import Choice, Part
from hetero.gateway.answers.stats import usage
from hetero.workers.wire.messages import Stats


@dataclass
class Answer:
    """``prompts``: tokens of each prompt. ``best``: of each prompt's choices so many are shown, 0: all."""

    model: str
    choices: list[Choice]
    prompts: Sequence[int]
    fingerprint: str = ""
    best: int = 0
    key: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    began: float = field(default_factory=time.monotonic)

    @property
    def stats(self) -> list[Stats]:
        """Of the choices that are over."""
        return [choice.stats for choice in self.choices if choice.stats is not None]

    @property
    def usage(self) -> dict[str, Any]:
        """OpenAI's token counts, so far."""
        return usage(self.prompts, self.stats, self.choices)

    @property
    def shown(self) -> list[Choice]:
        """The choices that are, in their order."""
        if not self.best:
            return self.choices
        each = len(self.choices) // len(self.prompts)
        found = []
        for first in range(0, len(self.choices), each):
            ranked = sorted(self.choices[first : first + each], key=lambda choice: -choice.mean_logprob)
            found += ranked[: self.best]
        return found


class Dialect(Protocol):
    """How a kind of clients is answered."""

    media: str = "text/event-stream"
    alive: str = ": alive\n\n"  # what is sent when nothing else was for a while

    @abstractmethod
    def whole(self, answer: Answer) -> dict[str, Any]:
        """The body of an answer that is not streamed."""

    def begin(self, answer: Answer) -> Iterable[str]:
        """What a stream begins with, before there is any token."""
        return ()

    @abstractmethod
    def part(self, answer: Answer, part: Part) -> Iterable[str]:
        """What a stream shows of a part."""

    def end(self, answer: Answer) -> Iterable[str]:
        """What it ends with."""
        return ()

    @abstractmethod
    def failed(self, answer: Answer, error: SequenceFailed) -> Iterable[str]:
        """What it ends with when the sequence cannot go on."""


def event(body: dict[str, Any], name: str = "") -> str:
    """A server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
