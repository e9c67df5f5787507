"""The sequences a verifier has: in the engine, waiting for a place in it, and lately ended."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from hetero.workers.decoding.target_sequence import TargetSequence

_REMEMBERED = 4096  # ended sequences


class Roster:
    """``active`` sequences stand in order of least recent service."""

    def __init__(self, places: int) -> None:
        """``places``: sequences the engine holds at once."""
        self.active: dict[int, TargetSequence] = {}
        self._places = places
        self._queue: deque[TargetSequence] = deque()
        self._ended: OrderedDict[int, None] = OrderedDict()

    def __iter__(self) -> Iterator[TargetSequence]:
        yield from self.active.values()
        yield from self._queue

    @property
    def counts(self) -> tuple[int, int]:
        """Sequences (with a place, waiting for one); may be asked from any thread."""
        return len(self.active), len(self._queue)

    @property
    def waiting(self) -> set[int]:
        """Sequences without a place."""
        return {sequence.seq for sequence in self._queue}

    def find(self, seq: int) -> TargetSequence | None:
        """A sequence, wherever it stands."""
        return self.active.get(seq) or next((sequence for sequence in self._queue if sequence.seq == seq), None)

    def ended(self, seq: int) -> bool:
        """Whether a sequence ended of late: a frame seen before must begin none again."""
        return seq in self._ended

    def enqueue(self, sequence: TargetSequence) -> None:
        """A new sequence waits for a place."""
        self._queue.append(sequence)

    def admit(self) -> list[TargetSequence]:
        """Give free places to those that wait longest; returns them."""
        admitted = []
        while self._queue and len(self.active) < self._places:
            sequence = self._queue.popleft()
            self.active[sequence.seq] = sequence
            admitted.append(sequence)
        return admitted

    def serve(self, sequence: TargetSequence) -> None:
        """It gets its turn: it moves to the end of the order of service."""
        self.active[sequence.seq] = self.active.pop(sequence.seq)

    def end(self, seq: int) -> TargetSequence | None:
        """A sequence is over; returns it if it had a place."""
        self._ended[seq] = None
        if len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)
        sequence = self.active.pop(seq, None)
        if sequence is None:
            self._queue = deque(waiting for waiting in self._queue if waiting.seq != seq)
        return sequence
