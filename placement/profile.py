"""What a model costs on a device with an engine: measured, or estimated from bytes and operations."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """``forward``: seconds of a forward by its rows, ``depth`` tokens in the cache; ``deeper``: what each further token
    of the cache adds to one of a row; ``look``: seconds of a row that is sampled; ``prefill``: tokens of a prompt a
    second."""

    forward: Mapping[int, float]
    look: float = 0.0
    prefill: float = 0.0
    depth: int = 0
    deeper: float = 0.0

    def __call__(self, rows: int, depth: int | None = None) -> float:
        """Seconds of a forward: in between sizes that were measured a straight line, beyond them in proportion."""
        sizes = sorted(self.forward)
        at = bisect_right(sizes, rows)
        if at == 0:
            found = self.forward[sizes[0]]
        elif at == len(sizes):
            found = self.forward[sizes[-1]] * rows / sizes[-1]
        else:
            low, high = sizes[at - 1], sizes[at]
            share = (rows - low) / (high - low)
            found = self.forward[low] * (1 - share) + self.forward[high] * share
        return found + self.deeper * max(0, (self.depth if depth is None else depth) - self.depth)


@dataclass(frozen=True)
class Speed:
    """What a device does at best: ``bandwidth`` bytes and ``operations`` (multiply-adds of the type its engine uses) a
    second; ``overhead``: seconds of a forward of nothing."""

    bandwidth: float
    operations: float
    overhead: float = 0.0


WIDTHS = (1, 2, 4, 8, 16, 32)
_REACHED = 0.7  # of bandwidth and operations, by good engines


def estimate(
    weights: int, parameters: int, kv_token: int, speed: Speed, active: float = 1.0, depth: int = 512
) -> Profile:
    """From bytes of weights, their number and the bytes of a token's keys and values, by the roofline: a forward reads
    all weights and the cache, or is bound by its operations, whichever takes longer.

    ``active``: the share of the weights that one row needs, below 1 for a mixture of experts, of which a window of n
    rows reads those of any of its rows.
    """

    def seconds(rows: int) -> float:
        share = 1.0 - (1.0 - active) ** rows
        reading = (weights * share + depth * kv_token) / speed.bandwidth
        computing = rows * parameters * active / speed.operations
        return max(reading, computing) / _REACHED + speed.overhead

    prefill = _REACHED * speed.operations / (parameters * active)
    deeper = kv_token / speed.bandwidth / _REACHED
    return Profile({rows: seconds(rows) for rows in WIDTHS}, 0.0, prefill, depth, deeper)
