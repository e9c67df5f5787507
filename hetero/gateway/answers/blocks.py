"""An answer as a row of blocks, for clients that know it so: reasoning, text and calls, one after another."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from hetero.gateway.answers.choice import Choice, Part


@dataclass
class Block:
    """One of them; of a call ``text`` are the arguments."""

    index: int
    kind: Literal["reasoning", "text", "call"]
    text: str = ""
    id: str = ""
    name: str = ""
    key: str = field(default_factory=lambda: secrets.token_hex(12))


@dataclass(frozen=True)
class Change:
    """What becomes of a block: it is begun, more of it comes, or it is over."""

    what: Literal["begun", "more", "over"]
    block: Block
    text: str = ""


class Blocks:
    """Those of one answer, as it grows."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open: Block | None = None

    def take(self, part: Part) -> Iterator[Change]:
        """What a part changes."""
        if part.reasoning:
            yield from self._grow("reasoning", part.reasoning)
        if part.text:
            yield from self._grow("text", part.text)
        for call in part.calls:
            if call.name:
                yield from self._begin("call", call.id, call.name)
            if call.arguments and self._open is not None:
                yield from self._more(self._open, call.arguments)
        if part.reason is not None:
            yield from self._end()

    def _grow(self, kind: Literal["reasoning", "text"], text: str) -> Iterator[Change]:
        if self._open is None or self._open.kind != kind:
            yield from self._begin(kind)
        assert self._open is not None
        yield from self._more(self._open, text)

    def _more(self, block: Block, text: str) -> Iterator[Change]:
        block.text += text
        yield Change("more", block, text)

    def _begin(
        self, kind: Literal["reasoning", "text", "call"], name: str = "", function: str = ""
    ) -> Iterator[Change]:
        yield from self._end()
        self._open = Block(len(self.all), kind, "", name, function)
        self.all.append(self._open)
        yield Change("begun", self._open)

    def _end(self) -> Iterator[Change]:
        if self._open is not None:
            block, self._open = self._open, None
            yield Change("over", block)


def blocks_of(choice: Choice) -> list[Block]:
    """Those of a whole answer. One that says nothing has an empty text."""
    found = Blocks()
    whole = Part(0, choice.tokens, choice.text, choice.reasoning, choice.calls, reason=choice.reason)
    for _ in found.take(whole):
        pass
    return found.all
