"""Which cells of a preallocated KV cache hold which nodes: the prefix in order of position, guesses behind it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from workers.engines.base import Ledger, Row
from workers.errors import KvFull


@dataclass(slots=True)
class Held:
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
