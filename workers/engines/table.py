"""A deterministic toy model: exact, instant, with scriptable latency and faults. For tests and overheads.

Logits are rows of a fixed random table, picked by a rolling hash of the whole token path, so any mistake in the
tree, the cache or the positions shows as other tokens. A drafter's table agrees with the target's in part.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hetero.workers.engines.base import EngineLimits, Hinted, Ledger, Outcome, Row, check_rows
from hetero.workers.engines.kv_slots import saved_under
from hetero.workers.errors import Aborted, TooManyLeaves
from hetero.workers.sampling.logits_processors import Logits

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class TableSpec:
    """A table model. ``agreement`` 1 gives the target's own logits, less mixes in independent ones.

    ``latency`` is called with the number of rows of a forward and returns seconds; ``fault`` with the number
    of the forward (from 0) and the rows' tokens, and may raise EngineError or return "nan" to spoil the logits.
    ``early``: agreement of the early exit's logits with the final ones (0: there is none).
    """

    vocabulary: int = 64
    context: int = 4096
    seed: int = 0
    agreement: float = 1.0
    sharpness: float = 2.0
    sequences: int = 64
    rows: int = 512
    chunk: int = 512
    draft_nodes: int = 512
    early: float = 0.0
    latency: Callable[[int], float] | None = None
    fault: Callable[[int, list[int]], str | None] | None = None


class TableEngine:
    """The engine of a TableSpec."""

    def __init__(self, spec: TableSpec) -> None:
        self.spec = spec
        self.limits = EngineLimits(
            spec.vocabulary,
            spec.context,
            spec.rows,
            spec.chunk,
            spec.sequences,
            draft_nodes=spec.draft_nodes,
            early_exit=spec.early > 0,
        )
        shape = (min(1024, (1 << 23) // spec.vocabulary), spec.vocabulary)
        own = np.random.default_rng([spec.seed, 1]).standard_normal(shape)
        other = np.random.default_rng([spec.seed, 2]).standard_normal(shape)
        share = spec.agreement
        mixed = own * share + other * (1.0 - share**2) ** 0.5
        self._table = (spec.sharpness * mixed).astype(np.float32)
        self._early = (spec.sharpness * (mixed * spec.early + other * (1.0 - spec.early**2) ** 0.5)).astype(np.float32)
        self._ledgers: dict[int, Ledger] = {}
        self._paths: dict[int, dict[int, int]] = {}  # per sequence: node -> hash of its token path
        self._trails: dict[int, list[int]] = {}  # per sequence: that hash after each committed token
        self._saved: dict[int, list[int]] = {}
        self._forwards = 0
        self._aborted = threading.Event()

    def prefill(self, seq: int, tokens: Sequence[int]) -> Outcome:
        ledger = self._ledgers.get(seq)
        if ledger is None:
            if len(self._ledgers) >= self.limits.sequences:
                raise TooManyLeaves(f"all {self.limits.sequences} sequences of the engine are open")
            ledger = Ledger()
        ledger.check_prefill(tokens, self.limits)
        spoilt = self._forward(list(tokens))
        path = self._paths.get(seq, {0: 0})[0]
        trail = self._trails.setdefault(seq, [])
        for token in tokens:
            path = _step(path, token)
            trail.append(path)
        self._ledgers[seq] = ledger
        self._paths[seq] = {0: path}
        ledger.length += len(tokens)
        return self._outcome([path], spoilt)

    def extend(self, rows: Sequence[Row], hinted: Hinted | None = None) -> Outcome:
        check_rows(rows, self.limits)
        by_seq: dict[int, list[Row]] = {}
        for row in rows:
            by_seq.setdefault(row.seq, []).append(row)
        entered: list[tuple[Ledger, list[Row]]] = []
        try:
            for seq, own in by_seq.items():
                ledger = self._ledgers.get(seq, Ledger())
                ledger.append(own, self.limits)
                entered.append((ledger, own))
            early = (lambda: hinted(self._exit(rows))) if hinted is not None and self.spec.early else None
            spoilt = self._forward([row.token for row in rows], early)
        except BaseException:
            for ledger, own in entered:
                ledger.undo(own)
            raise
        found = []
        for row in rows:
            paths = self._paths[row.seq]
            paths[row.node] = _step(paths[row.parent], row.token)
            found.append(paths[row.node])
        return self._outcome(found, spoilt)

    def commit(self, seq: int, node: int, keep: Collection[int] = ()) -> None:
        ledger = self._ledgers.get(seq, Ledger())
        path, _ = ledger.commit(node, keep)
        paths = self._paths[seq]
        self._trails[seq] += [paths[n] for n in path]
        self._paths[seq] = {n: paths[n] for n in (node, *ledger.nodes)}

    def close(self, seq: int) -> None:
        self._ledgers.pop(seq, None)
        self._paths.pop(seq, None)
        self._trails.pop(seq, None)

    def save(self, seq: int, key: int, length: int) -> None:
        self._saved[key] = self._trails[seq][:length]

    def load(self, seq: int, key: int, length: int) -> None:
        saved = saved_under(self._saved, key)
        if len(self._ledgers) >= self.limits.sequences:
            raise TooManyLeaves(f"all {self.limits.sequences} sequences of the engine are open")
        trail = saved[:length]
        self._ledgers[seq] = Ledger().opened(length)
        self._trails[seq] = trail
        self._paths[seq] = {0: trail[-1]}

    def drop(self, key: int) -> None:
        self._saved.pop(key, None)

    def abort(self) -> None:
        self._aborted.set()

    def shutdown(self) -> None:
        self._ledgers.clear()
        self._paths.clear()

    @property
    def used_cells(self) -> int:
        return sum(ledger.length + len(ledger.nodes) for ledger in self._ledgers.values())

    def _exit(self, rows: Sequence[Row]) -> Outcome:
        """The outcome of rows in flight by the table of the early exit."""
        paths: dict[tuple[int, int], int] = {}
        for row in rows:
            above = paths.get((row.seq, row.parent))
            above = self._paths[row.seq][row.parent] if above is None else above
            paths[row.seq, row.node] = _step(above, row.token)
        return _TableOutcome(self._early, list(paths.values()), False)

    def _forward(self, tokens: list[int], early: Callable[[], None] | None = None) -> bool:
        number, self._forwards = self._forwards, self._forwards + 1
        self._aborted.clear()
        seconds = self.spec.latency(len(tokens)) if self.spec.latency else 0.0
        for half in range(2):
            if seconds > 0 and self._aborted.wait(seconds / 2):
                raise Aborted("the forward was aborted")
            if half == 0 and early is not None:
                early()
        return self.spec.fault is not None and self.spec.fault(number, tokens) == "nan"

    def _outcome(self, paths: list[int], spoilt: bool) -> Outcome:
        return _TableOutcome(self._table, paths, spoilt)


class _TableOutcome(Outcome):
    def __init__(self, table: Logits, paths: list[int], spoilt: bool) -> None:
        self._table, self._paths, self._spoilt = table, paths, spoilt

    def logits(self, row: int) -> Logits:
        if self._spoilt:
            return np.full(self._table.shape[1], np.nan, dtype=np.float32)
        found: Logits = self._table[self._paths[row] % len(self._table)]
        return found


def drafter_spec(target: TableSpec, agreement: float) -> TableSpec:
    """A drafter's spec over the target's vocabulary: its logits correlate with the target's by ``agreement``."""
    return replace(target, agreement=agreement, latency=None, fault=None, early=0.0)


def _step(path: int, token: int) -> int:
    """A rolling 64-bit hash (splitmix64 finaliser) of the path and the next token."""
    x = (path * 0x9E3779B97F4A7C15 + token + 1) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
