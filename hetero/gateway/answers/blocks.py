"""An answer as a row of blocks: reasoning, text and calls, one after another."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from hetero.gateway.chat.reader import Piece

Kind = Literal["reasoning", "text", "call"]


@dataclass
class Block:
    """One of them, by its ``index`` among all and its ``number`` among those of its kind; of a call ``text`` are the
    arguments."""

    index: int
    number: int
    kind: Kind
    text: str = ""
    id: str = ""
    name: str = ""
    key: str = field(default_factory=lambda: secrets.token_hex(12))

    @property
    def arguments(self) -> Any:
        """A call's, read; of one cut short what there is, as text."""
        try:
            return json.loads(self.text) if self.text else {}
        except (ValueError, RecursionError):
            return {"partial_json": self.text}


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

    def of(self, kind: Kind) -> list[Block]:
        """Those of a kind."""
        return [block for block in self.all if block.kind == kind]

    def text(self, kind: Kind) -> str:
        """What those of a kind say together."""
        return "".join(block.text for block in self.of(kind))

    def take(self, pieces: Iterable[Piece], last: bool) -> Iterator[Change]:
        """What pieces of the answer change, in their order; ``last``: it is over."""
        for piece in pieces:
            kind: Kind = "call" if piece.kind == "arguments" else piece.kind
            if piece.kind == "call" or self._open is None or self._open.kind != kind:
                yield from self._end()
                self._open = Block(len(self.all), len(self.of(kind)), kind)
                if piece.kind == "call":
                    self._open.id, self._open.name = piece.id, piece.text
                self.all.append(self._open)
                yield Change("begun", self._open)
            if piece.kind != "call":
                self._open.text += piece.text
                yield Change("more", self._open, piece.text)
        if last:
            yield from self._end()

    def _end(self) -> Iterator[Change]:
        if self._open is not None:
            block, self._open = self._open, None
            yield Change("over", block)
