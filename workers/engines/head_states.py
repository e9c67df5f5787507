"""What a head knows of one sequence: the target's states, and its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from hetero.workers.engines.base import Row

State = TypeVar("State")


@dataclass(slots=True)
class HeadStates(Generic[State]):
    """``true``: the target's, before the tokens at these places, until those are committed; ``own``: the head's, that
    it left at the nodes it holds."""

    true: dict[int, State] = field(default_factory=dict)
    own: dict[int, State] = field(default_factory=dict)

    def before(self, row: Row, place: int) -> State | None:
        """What a row is drafted from: the target's, the head's own, or none that is known."""
        found = self.true.get(place) if row.committed else None
        return found if found is not None else self.own.get(row.parent)

    def divided(self, rows: Sequence[Row], places: Sequence[int]) -> tuple[list[int], list[int]]:
        """Which rows of a call can be evaluated now, and which only behind those: whose state comes of them."""
        asked = {row.node for row in rows}
        now: list[int] = []
        later: list[int] = []
        held: set[int] = set()
        for at, (row, place) in enumerate(zip(rows, places, strict=True)):
            known = row.parent not in asked or (row.committed and place in self.true)
            if known and row.parent not in held:
                now.append(at)
            else:
                later.append(at)
                held.add(row.node)
        return now, later

    def committed(self, node: int, keep: Collection[int], length: int) -> None:
        """A sequence of so many tokens ends in ``node`` now; of what hangs below it ``keep`` stays."""
        self.own = {kept: state for kept, state in self.own.items() if kept == node or kept in keep}
        self.true = {place: state for place, state in self.true.items() if place >= length}
