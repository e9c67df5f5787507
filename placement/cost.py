"""Arithmetic of speculation: measured speeds, how many rows to check, whether waiting for more draft pays.

The goodput rule of SmartSpec (Liu et al. 2024): with ``rate`` the long-run committed tokens a second, waits
included, a second is worth ``rate`` tokens; a row or a wait pays while it brings more than it takes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass


class Average:
    """An exponentially weighted mean that starts at its first sample."""

    __slots__ = ("_weight", "value")

    def __init__(self, weight: float = 0.2) -> None:
        self._weight = weight
        self.value: float | None = None

    def add(self, sample: float) -> None:
        self.value = sample if self.value is None else self.value + self._weight * (sample - self.value)

    def __call__(self, default: float) -> float:
        return default if self.value is None else self.value


class Rate:
    """Things a second in the long run: a ratio of decayed sums (a mean of ratios would flatter)."""

    __slots__ = ("_count", "_keep", "_seconds")

    def __init__(self, keep: float = 0.98) -> None:
        self._keep = keep
        self._count = self._seconds = 0.0

    def add(self, count: float, seconds: float) -> None:
        self._count = self._keep * self._count + count
        self._seconds = self._keep * self._seconds + seconds

    def __call__(self) -> float:
        """0 until something was measured."""
        return self._count / self._seconds if self._seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Points:
    """Seconds of a forward by its rows; ``rows`` and ``seconds`` both rise. Never changed once made.

    Between two sizes the line through them; beyond the largest what that one costs.
    """

    rows: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()

    def __call__(self, rows: int) -> float:
        """0 when nothing is known."""
        if not self.rows:
            return 0.0
        at = max(1, bisect_right(self.rows, rows))
        last, cost = self.rows[at - 1], self.seconds[at - 1]
        if rows <= last or at == len(self.rows):
            return cost
        return cost + (self.seconds[at] - cost) * (rows - last) / (self.rows[at] - last)


class Curve:
    """Seconds of a forward by its rows, learned online.

    More rows never cost less, so a size is held to cost no more than any larger one did. A size larger than all that
    were measured is held to cost what the largest did: hopeful on purpose, so that it is tried, and then known. (Were
    sizes between two others so, too, a batch would try each of a hundred, and most of them to its loss.)

    One thread adds; any may read ``points``, which is replaced whole.
    """

    def __init__(self, weight: float = 0.2) -> None:
        self._weight = weight
        self._known: dict[int, Average] = {}
        self.points = Points()

    def __bool__(self) -> bool:
        return bool(self._known)

    def add(self, rows: int, seconds: float) -> None:
        self._known.setdefault(rows, Average(self._weight)).add(seconds)
        sizes = sorted(self._known)
        least, falling = float("inf"), []
        for size in reversed(sizes):
            least = min(least, self._known[size](0.0))
            falling.append(least)
        self.points = Points(tuple(sizes), tuple(reversed(falling)))

    def __call__(self, rows: int) -> float:
        """0 when nothing is known."""
        return self.points(rows)


def rows_worth(reaches: Sequence[float], seconds: Callable[[int], float], rate: float, first: int) -> int:
    """How many draft tokens to check beside ``first`` rows that must be.

    ``reaches``: chance of each draft token to be accepted, falling. The best n maximises the expected tokens,
    ``sum(reaches[:n])``, less what its time is worth, ``rate * seconds(first + n)``.
    """
    best, most, tokens = 0, -rate * seconds(first), 0.0
    for n, reach in enumerate(reaches, 1):
        tokens += reach
        worth = tokens - rate * seconds(first + n)
        if worth > most:
            best, most = n, worth
    return best


def batch_worth(values: Sequence[float], seconds: Callable[[int], float]) -> int:
    """How many leaves to expand in one draft forward: the most value a second. ``values`` fall."""
    best, most, total = 1, 0.0, 0.0
    for n, value in enumerate(values, 1):
        total += value
        a_second = total / max(seconds(n), 1e-9)
        if a_second > most:
            best, most = n, a_second
    return best


@dataclass(frozen=True, slots=True)
class Outlook:
    """What more draft would bring to a window, and when.

    ``reaches``: of the draft tokens it holds now, falling, ``room`` of them at most; ``leaf``: reach of the likeliest
    node still to be expanded; ``alpha``: chance of a first child, ``beta`` of any child, ``ranks``: children a node
    gets; ``first``: seconds until the next draft comes, ``step``: seconds for each one after; ``row``: seconds a
    further row adds to the forward.
    """

    reaches: Sequence[float]
    leaf: float
    alpha: float
    beta: float
    ranks: int
    first: float
    step: float
    row: float
    room: int

    def pays(self, rate: float) -> bool:
        """Whether to hold the window back, a second being worth ``rate`` tokens.

        It pays if for some number of drafts the tokens gained, those displaced taken off, exceed what the time is
        worth.
        """
        gained, reach, held, room = 0.0, self.leaf, len(self.reaches), self.room
        seconds, row = self.first, rate * self.row
        for _ in range(room):
            of_any, reach = reach * self.beta, reach * self.alpha
            if held < room:
                held += 1
                # Checking the first child takes one row, checking all of them one each.
                gained += max(reach - row, of_any - row * self.ranks)
            else:
                room -= 1
                displaced = self.reaches[room] if room < len(self.reaches) else 1.0
                if displaced >= reach:
                    return False
                gained += reach - displaced
            if gained > rate * seconds:
                return True
            seconds += self.step
        return False
