"""Finished sequences that an engine keeps as prefixes of later ones: which there are, which to use, which to drop."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hetero.workers.decoding.feature_run import FeatureRun
from hetero.workers.decoding.kv_cursor import KvCursor
from hetero.workers.decoding.protocol import DropPrefix, LoadPrefix, Operation, SavePrefix
from hetero.workers.engines.base import Features

_MOST = 256  # prefixes: each is compared with each prompt
_LEAST = 16  # tokens below which a prefix is not worth its copy


@dataclass(frozen=True, slots=True, eq=False)
class _Prefix:
    key: int
    tokens: NDArray[np.int64]
    features: Features | None = None  # for heads, of all of them


class PrefixCache:
    """The prefixes one engine keeps, least recently used first out. The engine does what the operations say, in order.

    In exact mode a row's bits depend on the chunks its prompt was evaluated in: there only whole chunks from the
    start count (``step`` is their size), and only of prompts.
    """

    def __init__(self, budget: int, step: int = 1) -> None:
        """``budget``: tokens to keep at most, over all prefixes."""
        self._budget, self._step = budget, step
        self._held: list[_Prefix] = []  # least recently used first
        self._keys = itertools.count(1)

    @property
    def facts(self) -> tuple[int, int]:
        """(prefixes, tokens in them)."""
        return len(self._held), sum(len(prefix.tokens) for prefix in self._held)

    def retire(self, cursor: KvCursor, tokens: Sequence[int], features: FeatureRun | None = None) -> list[Operation]:
        """Keep a sequence that is about to be closed, with its ``tokens`` as far as the engine has them, and their
        ``features``, if all are known."""
        keep, length = cursor.settle()
        whole = features is not None and features.first == 0 and features.end >= length
        saves = self.save(cursor.seq, tokens[:length], features.since(0) if features is not None and whole else None)
        return [keep, *saves] if saves else []

    def save(self, seq: int, tokens: Sequence[int], features: Features | None = None) -> list[SavePrefix | DropPrefix]:
        """Keep a sequence that is about to be closed, of which the engine holds ``tokens``."""
        size = len(tokens) // self._step * self._step
        if not _LEAST <= size <= self._budget:
            return []
        kept_too = features[:size].copy() if features is not None else None
        new = _Prefix(next(self._keys), np.array(tokens[:size], np.int64), kept_too)
        for prefix in self._held:
            if self._common(prefix, new.tokens) == size:  # it is held already
                self._held.remove(prefix)
                self._held.append(prefix)
                return []
        found: list[SavePrefix | DropPrefix] = []
        for prefix in self._held:
            if self._common(prefix, new.tokens) == len(prefix.tokens):  # what it holds, the new one holds too
                found.append(DropPrefix(prefix.key))
        room = self._budget - size
        dropped = {operation.key for operation in found}
        kept: list[_Prefix] = []
        for prefix in reversed([prefix for prefix in self._held if prefix.key not in dropped]):
            room -= len(prefix.tokens)
            if room >= 0 and len(kept) < _MOST - 1:
                kept.append(prefix)
            else:
                found.append(DropPrefix(prefix.key))
        self._held = [*reversed(kept), new]
        return [*found, SavePrefix(seq, new.key, size)]

    def load(self, seq: int, prompt: Sequence[int]) -> LoadPrefix | None:
        """How to begin a sequence with what its prompt shares with a prefix. Its last token is left to evaluate."""
        if not self._held:
            return None
        wanted = np.array(prompt[:-1], np.int64)
        sizes = [self._common(prefix, wanted) // self._step * self._step for prefix in self._held]
        best = max(range(len(sizes)), key=lambda n: (sizes[n], n))
        if sizes[best] < _LEAST:
            return None
        prefix = self._held.pop(best)
        self._held.append(prefix)
        return LoadPrefix(seq, prefix.key, sizes[best])

    def features(self, load: LoadPrefix) -> Features | None:
        """Those of the tokens that are loaded, if they are known."""
        found = next((prefix.features for prefix in self._held if prefix.key == load.key), None)
        return found[: load.length] if found is not None else None

    def forget(self, key: int) -> DropPrefix:
        """A prefix turned out to be of no use."""
        self._held = [prefix for prefix in self._held if prefix.key != key]
        return DropPrefix(key)

    @staticmethod
    def _common(prefix: _Prefix, tokens: NDArray[np.int64]) -> int:
        size = min(len(prefix.tokens), len(tokens))
        differing = np.flatnonzero(prefix.tokens[:size] != tokens[:size])
        return int(differing[0]) if len(differing) else size
