"""What a tokenizer knows of its tokens: their bytes, and which end a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from hetero.workers.sampling.grammar import Grammars


@dataclass(frozen=True)
class Vocabulary:
    """Each token's bytes, the tokens that end a text, and ``encode``,
    the model's tokens of a text without special ones."""

    pieces: Sequence[bytes]
    ends: frozenset[int]
    encode: Callable[[str], list[int]] | None = None

    @cached_property
    def grammars(self) -> Grammars:
        """For outputs that must obey a grammar."""
        return Grammars(self.pieces, self.ends, self.encode)

    def __len__(self) -> int:
        return len(self.pieces)
