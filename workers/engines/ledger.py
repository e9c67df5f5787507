"""An engine's books: which nodes it holds of each sequence, and what a call may ask of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, Protocol, TypeVar

from hetero.workers.engines.base import EngineLimits, Row
from hetero.workers.errors import EngineError, KvFull, UnknownNode, Unsupported


class Ledger:
    """What an engine holds of one sequence: the committed prefix up to ``tip``, and the nodes below it."""

    __slots__ = ("length", "nodes", "tip")

    def __init__(self) -> None:
        self.length = 0  # tokens up to and with the tip
        self.tip = 0  # the committed node; 0 is the end of the prefilled prefix
        self.nodes: dict[int, tuple[int, int]] = {}  # node -> (parent, position), parents first

    def __contains__(self, node: int) -> bool:
        return node in self.nodes or (node == self.tip and self.length > 0)

    def position(self, node: int) -> int:
        """Position of the tip or of a node below it."""
        return self.length - 1 if node == self.tip else self.nodes[node][1]

    def path(self, node: int) -> list[int]:
        """Nodes below the tip on the way to ``node``, top down."""
        path = []
        while node != self.tip:
            path.append(node)
            node = self.nodes[node][0]
        return path[::-1]

    def check_prefill(self, tokens: Sequence[int], limits: EngineLimits) -> None:
        """Raises EngineError when a chunk cannot be appended to the prefix."""
        if self.tip or self.nodes:
            raise EngineError("prefill after extend: the prefix is complete once nodes hang on it")
        if not 0 < len(tokens) <= limits.chunk:
            raise EngineError(f"a prefill chunk has 1 to {limits.chunk} tokens, not {len(tokens)}")
        if self.length + len(tokens) > limits.context:
            raise KvFull(f"{self.length + len(tokens)} tokens exceed the context of {limits.context}")
        check_tokens(tokens, limits)

    def opened(self, length: int) -> Ledger:
        """This ledger, new, with a prefix of ``length`` tokens."""
        self.length = length
        return self

    def append(self, rows: Sequence[Row], limits: EngineLimits) -> list[int]:
        """Enter rows of this sequence in order; returns their positions. Raises before anything changed."""
        new: dict[int, tuple[int, int]] = {}
        for row in rows:
            if row.parent not in self and row.parent not in new:
                raise UnknownNode(f"sequence {row.seq}: node {row.node} hangs on unknown node {row.parent}")
            if row.node <= row.parent or row.node in self.nodes or row.node in new:
                raise UnknownNode(f"sequence {row.seq}: node id {row.node} is not new")
            above = new[row.parent][1] if row.parent in new else self.position(row.parent)
            if above + 1 >= limits.context:
                raise KvFull(f"position {above + 1} exceeds the context of {limits.context}")
            new[row.node] = (row.parent, above + 1)
        self.nodes.update(new)
        return [position for _, position in new.values()]

    def undo(self, rows: Sequence[Row]) -> None:
        """Take back ``append`` after a failed forward."""
        for row in rows:
            self.nodes.pop(row.node, None)

    def commit(self, node: int, keep: Collection[int]) -> tuple[list[int], list[int]]:
        """Move the tip down to ``node``; returns (the path committed, the nodes dropped)."""
        if node not in self:
            raise UnknownNode(f"commit of node {node}, which is not at or below the committed node {self.tip}")
        path = self.path(node)
        kept: dict[int, tuple[int, int]] = {}
        for other, entry in self.nodes.items():
            if other in keep and (entry[0] == node or entry[0] in kept):
                kept[other] = entry
        if len(kept) != len(keep):
            raise UnknownNode(f"commit of node {node}: not all of {sorted(keep)} hang below it")
        dropped = [other for other in self.nodes if other not in kept and other not in path]
        self.length = self.position(node) + 1
        self.nodes = kept
        self.tip = node
        return path, dropped


def check_rows(rows: Sequence[Row], limits: EngineLimits) -> None:
    """Bounds of one ``extend`` call. Raises EngineError before native code sees a number."""
    if not 0 < len(rows) <= limits.rows:
        raise EngineError(f"a forward has 1 to {limits.rows} rows, not {len(rows)}")
    for row in rows:
        if not 0 <= row.token < limits.vocabulary:
            raise EngineError(f"token {row.token} is outside the vocabulary of {limits.vocabulary}")
    if limits.exact:
        if len({row.seq for row in rows}) != 1:
            raise Unsupported("exact mode runs one sequence a forward")
        if any(below.parent != above.node for above, below in pairwise(rows)):
            raise Unsupported("exact mode checks chains, not trees")


def check_tokens(tokens: Sequence[int], limits: EngineLimits) -> None:
    """Bounds of prompt tokens. Raises EngineError."""
    for token in tokens:
        if not 0 <= token < limits.vocabulary:
            raise EngineError(f"token {token} is outside the vocabulary of {limits.vocabulary}")


class Booked(Protocol):
    """A sequence as an engine keeps it."""

    ledger: Ledger

    def undo(self, rows: Sequence[Row]) -> None:
        """Take rows back that were entered for a forward that failed."""


_Booked = TypeVar("_Booked", bound=Booked)


@dataclass(frozen=True, slots=True)
class Entry(Generic[_Booked]):
    """One sequence's part of an ``extend``: its rows, their places in the call, and their positions."""

    sequence: _Booked
    rows: list[Row]
    places: list[int]
    positions: list[int]

    def committed(self, wanted: bool = True) -> Entry[_Booked]:
        """The rows that are committed, or those that are not."""
        return self.part([n for n, row in enumerate(self.rows) if row.committed is wanted])

    def part(self, at: Sequence[int]) -> Entry[_Booked]:
        """Some of the rows."""
        rows = [self.rows[n] for n in at]
        return Entry(self.sequence, rows, [self.places[n] for n in at], [self.positions[n] for n in at])


@contextmanager
def entered(
    rows: Sequence[Row], limits: EngineLimits, find: Callable[[int], _Booked]
) -> Iterator[list[Entry[_Booked]]]:
    """The rows of an ``extend`` by sequence, entered in the books; taken back when the forward within fails.

    ``find``: an open sequence, or raises UnknownNode. Raises EngineError before anything changed.
    """
    check_rows(rows, limits)
    by_seq: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        by_seq.setdefault(row.seq, []).append(place)
    entries: list[Entry[_Booked]] = []
    try:
        for seq, places in by_seq.items():
            sequence = find(seq)
            own = [rows[place] for place in places]
            entries.append(Entry(sequence, own, places, sequence.ledger.append(own, limits)))
        yield entries
    except BaseException:
        for entry in entries:
            entry.sequence.undo(entry.rows)
        raise


def row_order(entries: Sequence[Entry[_Booked]]) -> list[int]:
    """Of each row of the call, its index when the sequences' rows stand one after another."""
    order = [place for entry in entries for place in entry.places]
    found = [0] * len(order)
    for index, place in enumerate(order):
        found[place] = index
    return found


def in_order(entries: Sequence[Entry[_Booked]]) -> list[Row]:
    """The rows of a call as they came."""
    placed = {place: row for entry in entries for place, row in zip(entry.places, entry.rows, strict=True)}
    return [placed[place] for place in sorted(placed)]
