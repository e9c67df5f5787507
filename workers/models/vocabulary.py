"""What a tokenizer knows of its tokens: their bytes or names, and which end a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from hetero.workers.sampling.grammar import Grammars


@dataclass(frozen=True)
class Vocabulary:
    """Each token's bytes, the tokens that end a text, ``encode``, the model's tokens of a text without special ones,
    and the ``names`` of control tokens, which have no bytes."""

    pieces: Sequence[bytes]
    ends: frozenset[int]
    encode: Callable[[str], list[int]] | None = None
    names: Mapping[int, bytes] = field(default_factory=dict)

    def named(self, token: int) -> bytes:
        """A token's bytes, of a control token its name."""
        return self.pieces[token] or self.names.get(token, b"")

    @cached_property
    def grammars(self) -> Grammars:
        """For outputs that must obey a grammar."""
        return Grammars(self.pieces, self.ends, self.encode)

    def __len__(self) -> int:
        return len(self.pieces)
