"""A deterministic toy model: exact, instant, with scriptable latency and faults. For tests and overheads.

Logits are rows of a fixed random table, picked by a rolling hash of the whole token path, so any mistake in the
tree, the cache or the positions shows as other tokens. A drafter's table agrees with the target's in part.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hetero.workers.engines.base import EngineLimits, OnEarlyExit, Outcome, Row
from hetero.workers.engines.kv_slots import saved_under
from hetero.workers.engines.ledger import Ledger, entered
from hetero.workers.errors import Aborted, EngineError, TooManyLeaves, UnknownNode
from hetero.workers.sampling.logits_processors import Logits

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class TableSpec:
    """A table model. ``agreement`` 1 gives the target's own logits, less mixes in independent ones.

    ``latency`` is called with the number of rows of a forward and returns seconds; ``fault`` with the number
    of the forward (from 0) and the rows' tokens, and may raise EngineError or return "nan" to spoil the logits.
    ``early``: agreement of the early exit's logits with the final ones (0: there is none); ``lasting``: as in
    ``EngineLimits``, where it is not, a commit of what was a guess when it was evaluated is refused.
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
    lasting: bool = True
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
            lasting=spec.lasting,
        )
        shape = (min(1024, (1 << 23) // spec.vocabulary), spec.vocabulary)
        own = np.random.default_rng([spec.seed, 1]).standard_normal(shape)
        other = np.random.default_rng([spec.seed, 2]).standard_normal(shape)
        share = spec.agreement
        mixed = own * share + other * (1.0 - share**2) ** 0.5
        self._table = (spec.sharpness * mixed).astype(np.float32)
        self._early = (spec.sharpness * (mixed * spec.early + other * (1.0 - spec.early**2) ** 0.5)).astype(np.float32)
        self._sequences: dict[int, _TableSequence] = {}
        self._saved: dict[int, list[int]] = {}
        self._forwards = 0
        self._aborted = threading.Event()

    def prefill(self, seq: int, tokens: Sequence[int], every: bool = False) -> Outcome:
        sequence = self._sequences.get(seq) or self._new()
        sequence.ledger.check_prefill(tokens, self.limits)
        spoilt = self._forward(list(tokens))
        path = sequence.paths[0]
        for token in tokens:
            path = _step(path, token)
            sequence.trail.append(path)
        sequence.paths = {0: path}
        sequence.ledger.length += len(tokens)
        self._sequences[seq] = sequence
        return self._outcome(sequence.trail[-len(tokens) :] if every else [path], spoilt)

    def extend(self, rows: Sequence[Row], on_early_exit: OnEarlyExit | None = None) -> Outcome:
        with entered(rows, self.limits, self._open) as entries:
            for entry in entries:
                entry.sequence.exact.update(row.node for row in entry.rows if row.committed)
                for row in entry.rows:
                    entry.sequence.paths[row.node] = _step(entry.sequence.paths[row.parent], row.token)
            found = [self._sequences[row.seq].paths[row.node] for row in rows]
            early = None
            if on_early_exit is not None and self.spec.early:
                shown = on_early_exit

                def early() -> None:
                    shown(_TableOutcome(self._early, found, False))

            spoilt = self._forward([row.token for row in rows], early)
        return self._outcome(found, spoilt)

    def commit(self, seq: int, node: int, keep: Collection[int] = ()) -> None:
        sequence = self._open(seq)
        path, _ = sequence.ledger.commit(node, keep)
        if not self.spec.lasting and not sequence.exact.issuperset(path):
            raise EngineError(f"node {node} is committed as it was guessed")
        sequence.exact.intersection_update(sequence.ledger.nodes)
        sequence.trail += [sequence.paths[n] for n in path]
        sequence.paths = {n: sequence.paths[n] for n in (node, *sequence.ledger.nodes)}

    def close(self, seq: int) -> None:
        self._sequences.pop(seq, None)

    def save_prefix(self, seq: int, key: int, length: int) -> None:
        self._saved[key] = self._open(seq).trail[:length]

    def load_prefix(self, seq: int, key: int, length: int) -> None:
        saved = saved_under(self._saved, key)
        sequence = self._new()
        sequence.trail = saved[:length]
        sequence.paths = {0: sequence.trail[-1]}
        sequence.ledger.opened(length)
        self._sequences[seq] = sequence

    def drop_prefix(self, key: int) -> None:
        self._saved.pop(key, None)

    def abort(self) -> None:
        self._aborted.set()

    def shutdown(self) -> None:
        self._sequences.clear()

    @property
    def used_cells(self) -> int:
        return sum(held.ledger.length + len(held.ledger.nodes) for held in self._sequences.values())

    @property
    def saved_prefixes(self) -> int:
        """Prefixes kept aside, for tests of leaks."""
        return len(self._saved)

    def forget_prefixes(self) -> None:
        """Lose what was kept aside: a fault, for tests."""
        self._saved.clear()

    def _open(self, seq: int) -> _TableSequence:
        sequence = self._sequences.get(seq)
        if sequence is None:
            raise UnknownNode(f"sequence {seq} is not open")
        return sequence

    def _new(self) -> _TableSequence:
        if len(self._sequences) >= self.limits.sequences:
            raise TooManyLeaves(f"all {self.limits.sequences} sequences of the engine are open")
        return _TableSequence()

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


@dataclass(slots=True)
class _TableSequence:
    """A sequence's books, the hash of the token path to each of its nodes, and that after each committed token; which
    nodes were committed when they were evaluated."""

    ledger: Ledger = field(default_factory=Ledger)
    paths: dict[int, int] = field(default_factory=lambda: {0: 0})
    trail: list[int] = field(default_factory=list)
    exact: set[int] = field(default_factory=set)

    def undo(self, rows: Sequence[Row]) -> None:
        """Take rows back that were entered for a forward that failed."""
        self.ledger.undo(rows)
        for row in rows:
            self.paths.pop(row.node, None)
            self.exact.discard(row.node)


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
