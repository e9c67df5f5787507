"""Signs of life of a worker: whether its loop turns, and whether its forward takes as long as forwards take."""

from __future__ import annotations

import time
from collections.abc import Callable

_LEAST = 60.0  # seconds a forward may always take
_UNKNOWN = 600.0  # seconds the first forward may take: kernels are compiled, weights read from disk
_TIMES = 20.0  # of the predicted time, after which a forward counts as stuck


class ForwardTimes:
    """How long a forward of so many rows took at most, to tell a stuck one from a long one."""

    def __init__(self) -> None:
        self._slowest: dict[int, float] = {}  # by the power of two the rows fill

    def add(self, rows: int, seconds: float) -> None:
        """A forward of ``rows`` took so long."""
        size = rows.bit_length()
        self._slowest[size] = max(seconds, self._slowest.get(size, 0.0))

    def limit(self, rows: int) -> float:
        """Seconds after which a forward of ``rows`` is stuck.

        A wider forward takes no less than a narrower one, and no more than as many narrow ones as hold its rows: each
        size that was seen bounds the time of every other.
        """
        bounds = [
            seconds * max(1.0, rows / (1 << size >> 1)) if rows.bit_length() != size else seconds
            for size, seconds in self._slowest.items()
        ]
        return max(_LEAST, _TIMES * min(bounds)) if bounds else _UNKNOWN


class Pulse:
    """Written by a worker's two threads, read by whoever asks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times = ForwardTimes()
        self._turned: float | None = None  # when the loop last came around
        self._forward: tuple[float, int] | None = None  # the one under way: since when, of how many rows

    def turned(self) -> None:
        """The socket thread came around."""
        self._turned = self._clock()

    def begins(self, rows: int) -> None:
        """A forward of ``rows`` begins."""
        self._forward = (self._clock(), rows)

    def ends(self, well: bool) -> None:
        """It is over; ``well``: it did its work, so that its time counts."""
        if self._forward is not None and well:
            since, rows = self._forward
            self._times.add(rows, self._clock() - since)
        self._forward = None

    def trouble(self, patience: float) -> str:
        """Why this worker counts as hung: its loop has not turned for ``patience`` seconds, or its forward is stuck.
        Else ""."""
        now, forward = self._clock(), self._forward
        if forward is not None:
            since, rows = forward
            limit = self._times.limit(rows)
            if now - since > limit:
                return f"a forward of {rows} rows has run for {now - since:.0f} s, where {limit:.0f} s is most"
            if self._turned is not None and since >= self._turned:
                return ""  # a drafter's quick forward runs within a turn
        if self._turned is not None and now - self._turned > patience:
            return f"its loop has not turned for {now - self._turned:.0f} s"
        return ""
