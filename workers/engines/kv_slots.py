"""Which cells of a preallocated KV cache hold which nodes: the prefix in order of position, draft tokens behind it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from hetero.workers.engines.base import Row
from hetero.workers.engines.ledger import Ledger
from hetero.workers.errors import KvFull, TooManyLeaves, UnknownNode

_Saved = TypeVar("_Saved")


@dataclass(slots=True)
class SlotSequence:
    """A sequence's nodes, its slot in the cache, and the cell of each node below the tip."""

    slot: int
    ledger: Ledger = field(default_factory=Ledger)
    cells: dict[int, int] = field(default_factory=dict)

    def free_cells(self, count: int, capacity: int) -> list[int]:
        """The first cells behind the prefix that no node holds. Raises KvFull."""
        taken = set(self.cells.values())
        found: list[int] = []
        cell = self.ledger.length
        while len(found) < count:
            if cell >= capacity:
                raise KvFull(f"no KV cells are left for {count} more rows")
            if cell not in taken:
                found.append(cell)
            cell += 1
        return found

    def enter(self, rows: Sequence[Row], cells: Sequence[int]) -> None:
        """The rows' nodes have these cells now."""
        self.cells.update((row.node, cell) for row, cell in zip(rows, cells, strict=False))

    def undo(self, rows: Sequence[Row]) -> None:
        """Take rows back that were entered for a forward that failed."""
        self.ledger.undo(rows)
        for row in rows:
            self.cells.pop(row.node, None)

    def path_cells(self, node: int) -> list[int]:
        """Cells of the nodes below the tip on the way to ``node``, top down."""
        return [self.cells[n] for n in self.ledger.path(node)]

    def commit(self, node: int, keep: Collection[int]) -> tuple[list[int], list[int]]:
        """``Engine.commit`` of the bookkeeping; returns the cells to move, (from, to), to close the gaps."""
        first = self.ledger.length
        path, _ = self.ledger.commit(node, keep)
        kept = list(self.ledger.nodes)
        old = [self.cells[n] for n in (*path, *kept)]
        new = list(range(first, first + len(old)))
        self.cells = dict(zip(kept, new[len(path) :], strict=True))
        return old, new


def saved_under(saved: Mapping[int, _Saved], key: int) -> _Saved:
    """What was saved under ``key``. Raises UnknownNode."""
    if key not in saved:
        raise UnknownNode(f"no prefix is saved under {key}")
    return saved[key]


class Slots:
    """The sequences of a cache of ``count`` slots."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count))[::-1]
        self._count = count
        self._held: dict[int, SlotSequence] = {}

    def __getitem__(self, seq: int) -> SlotSequence:
        """An open sequence. Raises UnknownNode."""
        held = self._held.get(seq)
        if held is None:
            raise UnknownNode(f"sequence {seq} is not open")
        return held

    def __contains__(self, seq: int) -> bool:
        return seq in self._held

    def to_prefill(self, seq: int) -> SlotSequence:
        """An open sequence, or the makings of a new one until ``keep`` enters it. Raises TooManyLeaves."""
        held = self._held.get(seq)
        if held is None:
            if not self._free:
                raise TooManyLeaves(f"all {self._count} sequences of the engine are open")
            held = SlotSequence(self._free[-1])
        return held

    def open(self, seq: int, length: int) -> SlotSequence:
        """A new sequence with a prefix of ``length`` tokens, whose cells the caller fills. Raises TooManyLeaves."""
        held = self.to_prefill(seq)
        held.ledger.opened(length)
        self.keep(seq, held)
        return held

    def keep(self, seq: int, held: SlotSequence) -> None:
        """The sequence is open from now on."""
        if seq not in self._held:
            self._held[seq] = held
            self._free.remove(held.slot)

    def close(self, seq: int) -> None:
        """Free a sequence's slot; closing an unknown one does nothing."""
        held = self._held.pop(seq, None)
        if held is not None:
            self._free.append(held.slot)

    @property
    def used_cells(self) -> int:
        """Cells that hold something."""
        return sum(held.ledger.length + len(held.cells) for held in self._held.values())
