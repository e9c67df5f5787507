"""One model's tokens in another's: equal bytes are the same token, the others are spelt.

Only what stands for equal bytes can be proposed (Timor et al. 2025, "Accelerating LLM Inference with Lossless
Speculative Decoding Algorithms for Heterogeneous Vocabularies", token-level intersection).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hetero.workers.models.vocabulary import Vocabulary


@dataclass(frozen=True)
class Translation:
    """From the tokens of ``asked``, whose ids others speak, to those of ``own``.

    ``same``: of each of the former the one of the latter with equal bytes, or the same control token; -1: none has.
    ``ids``: own tokens by their bytes, of which the ``longest`` has so many.
    """

    asked: Vocabulary
    own: Vocabulary
    same: NDArray[np.int64]
    ids: Mapping[bytes, int]
    longest: int

    def spelt(self, token: int) -> list[int]:
        """Own tokens that together have a token's bytes, the longest first; at least one."""
        if (same := int(self.same[token])) >= 0:
            return [same]
        text, found = self.asked.named(token), []
        while text:
            sizes = range(min(len(text), self.longest), 0, -1)
            length = next((n for n in sizes if text[:n] in self.ids), 0)
            if length:
                found.append(self.ids[text[:length]])
            text = text[max(1, length) :]
        return found or [self.ids.get(b" ", 0)]

    def of(self, tokens: Sequence[int]) -> list[int]:
        """Own tokens of a text: as its own tokenizer has them where that can be told, else each token's."""
        pieces = self.asked.pieces
        if self.own.encode is not None and all(pieces[token] for token in tokens):
            text = b"".join(pieces[token] for token in tokens)
            try:
                found = self.own.encode(text.decode())
            except UnicodeError:  # it begins or ends within a character
                found = []
            if found and b"".join(self.own.pieces[token] for token in found) == text:
                return found
        return [own for token in tokens for own in self.spelt(token)]

    @cached_property
    def _pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        asked = np.flatnonzero(self.same >= 0)
        return asked, self.same[asked]

    def logits(self, own: NDArray[np.float32]) -> NDArray[np.float32]:
        """A row of own logits in the asked tokens; those it has not are impossible."""
        found = np.full(len(self.same), -np.inf, np.float32)
        asked, theirs = self._pairs
        found[asked] = own[theirs]
        return found

    def share(self, tokens: Sequence[int]) -> float:
        """Of a text, the share of tokens that could be proposed."""
        return float(np.mean(self.same[np.asarray(tokens, np.int64)] >= 0)) if len(tokens) else 0.0


def translation(asked: Vocabulary, own: Vocabulary) -> Translation:
    """From one vocabulary to another."""
    ids, names = _ids(own), {name: token for token, name in own.names.items()}
    same = np.full(len(asked), -1, np.int64)
    bytes_, usual = _bytes(asked), _ids(asked)
    for token, piece in enumerate(asked.pieces):
        if token not in bytes_ or usual[piece] == token:  # a byte that has another token is spelt so by accident only
            same[token] = ids.get(piece, -1) if piece else names.get(asked.names.get(token, b""), -1)
    # What ends a text in one ends it in the other, under whatever name.
    free = sorted(own.ends - set(same[sorted(asked.ends)].tolist()))
    for end in sorted(asked.ends):
        if same[end] < 0 and free:
            same[end] = free[0]
    return Translation(asked, own, same, ids, max(map(len, ids), default=1))


def _ids(vocabulary: Vocabulary) -> dict[bytes, int]:
    """The token of each piece; of several alike the first, one for a bare byte only where there is no other."""
    found: dict[bytes, int] = {}
    bytes_ = _bytes(vocabulary)
    every = range(len(vocabulary))
    for token in (*(t for t in every if t not in bytes_), *bytes_):
        if piece := vocabulary.pieces[token]:
            found.setdefault(piece, token)
    return found


def _bytes(vocabulary: Vocabulary) -> range:
    """The tokens for bare bytes that SentencePiece sets beside those of words: 256 in a row."""
    pieces = vocabulary.pieces
    for first in range(len(pieces) - 255):
        if pieces[first] == b"\x00" and all(pieces[first + n] == bytes([n]) for n in range(256)):
            return range(first, first + 256)
    return range(0)
