"""An answer as a row of blocks, for clients that know it so: reasoning, text and calls, one after another."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from hetero.gateway.chat.reader import Piece


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

    def take(self, pieces: Iterable[Piece], last: bool) -> Iterator[Change]:
        """What pieces of the answer change, in their order; ``last``: it is over."""
        for piece in pieces:
            if piece.kind == "call":
                yield from self._begin("call", piece.id, piece.text)
            elif piece.kind == "arguments":
                if self._open is not None:
                    yield from self._more(self._open, piece.text)
            else:
                yield from self._grow(piece.kind, piece.text)
        if last:
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
