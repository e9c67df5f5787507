"""A target and a head as tables: features tell which token they are of, and the head checks that they were meant so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from hetero.workers.engines.base import Features, OnEarlyExit, Outcome, Row
from hetero.workers.engines.table import TableEngine, TableSpec
from hetero.workers.errors import EngineError

WIDTH = 2  # a token, and its position


class TellingTable(TableEngine):
    """A target."""

    def __init__(self, spec: TableSpec) -> None:
        super().__init__(spec)
        self.limits = replace(self.limits, features=WIDTH)

    def prefill(self, seq: int, tokens: Sequence[int], every: bool = False) -> Outcome:
        outcome = super().prefill(seq, tokens, every)
        first = self._sequences[seq].ledger.length - len(tokens)
        return _Told(outcome, [(token, first + at) for at, token in enumerate(tokens)])

    def extend(self, rows: Sequence[Row], on_early_exit: OnEarlyExit | None = None) -> Outcome:
        outcome = super().extend(rows, on_early_exit)
        return _Told(outcome, [(row.token, self._sequences[row.seq].ledger.position(row.node)) for row in rows])


class HeadTable(TableEngine):
    """A head. Of a committed token with features before it, ``informed`` counts them, of others ``blind``."""

    informed = blind = 0  # of all heads
    begun: ClassVar[list[int]] = []  # where they began in their sequences

    def __init__(self, spec: TableSpec) -> None:
        super().__init__(replace(spec, lasting=False))
        self.limits = replace(self.limits, prefixes=False, drafts_from=WIDTH)
        self._told: dict[int, dict[int, tuple[int, int]]] = {}
        self._tokens: dict[int, dict[int, int]] = {}  # of committed places
        self._shift: dict[int, int] = {}  # tokens that were left out

    def inform(self, seq: int, first: int, features: Features) -> None:
        assert features.shape[1] == WIDTH
        for at, (token, position) in enumerate(features.astype(int).tolist(), first):
            self._told.setdefault(seq, {})[at] = token, position

    def prefill(self, seq: int, tokens: Sequence[int], every: bool = False) -> Outcome:
        first = self._sequences[seq].ledger.length if seq in self._sequences else 0
        outcome = super().prefill(seq, tokens, every)
        for at, token in enumerate(tokens, first):
            self._came(seq, at, token)
        return outcome

    def extend(self, rows: Sequence[Row], on_early_exit: OnEarlyExit | None = None) -> Outcome:
        outcome = super().extend(rows, on_early_exit)
        for row in rows:
            if row.committed:
                self._came(row.seq, self._sequences[row.seq].ledger.position(row.node), row.token)
        return outcome

    def close(self, seq: int) -> None:
        super().close(seq)
        for held in (self._told, self._tokens, self._shift):
            held.pop(seq, None)

    def _came(self, seq: int, place: int, token: int) -> None:
        known = self._tokens.setdefault(seq, {})
        known[place] = token
        told = self._told.get(seq, {}).get(place)
        if told is None:
            HeadTable.blind += 1
            return
        HeadTable.informed += 1
        before, position = told
        if place == 0:
            HeadTable.begun.append(position + 1)
        shift = self._shift.setdefault(seq, position + 1 - place)
        if position + 1 - place != shift or (place and before != known.get(place - 1, before)):
            raise EngineError(f"node at {place} of {seq} was told {told}, and is behind {known.get(place - 1)}")


class _Told(Outcome):
    def __init__(self, outcome: Outcome, told: list[tuple[int, int]]) -> None:
        self._outcome, self._told = outcome, told

    def logits(self, row: int):
        return self._outcome.logits(row)

    def features(self, rows: Sequence[int]) -> Features:
        return np.array([self._told[row] for row in rows], np.float16)
