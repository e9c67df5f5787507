"""How often the target takes a proposer's candidate, learned online per rank and bucket of confidence.

The calibrated chance, not the drafter's own opinion, is what growth and windows are valued by (SpecDec++ and
SmartSpec calibrate likewise).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache
from math import exp
from typing import TypeAlias

from hetero.workers.decoding.policy import tuning
from hetero.workers.decoding.policy.tuning import BUCKETS, KEPT_OBSERVATIONS, PRIOR_WEIGHT, RANKS

Prior: TypeAlias = Callable[[int, int], float]


class Calibration:
    """Counts of a proposer. A drafter's confidence is in nats: of the first candidate its margin over the second, of
    the others how far they stand behind the first. Other proposers have other ``borders`` between buckets, and
    another ``prior``: the chance by rank and bucket that counts as seen PRIOR_WEIGHT times."""

    def __init__(self, borders: Sequence[float] = BUCKETS, prior: Prior | None = None) -> None:
        self._borders = borders
        self._prior = prior or _prior
        self._hits = [[0.0] * (len(borders) + 1) for _ in range(RANKS)]
        self._seen = [[0.0] * (len(borders) + 1) for _ in range(RANKS)]

    def chances(self, confidences: Sequence[float]) -> list[float]:
        """Chance of each of up to RANKS candidates, best first; below 1 in sum."""
        found = [self.chance(rank, confidence) for rank, confidence in enumerate(confidences)]
        total = sum(found)
        return found if total < 0.995 else [chance * 0.995 / total for chance in found]

    def chance(self, rank: int, confidence: float) -> float:
        """Chance of one candidate."""
        return self.expected(rank, bisect_right(self._borders, confidence))

    def expected(self, rank: int, bucket: int) -> float:
        """The same by bucket; another calibration's prior, where it has seen nothing of its own."""
        weight = PRIOR_WEIGHT * self._prior(rank, bucket)
        return (self._hits[rank][bucket] + weight) / (self._seen[rank][bucket] + PRIOR_WEIGHT)

    def observe(self, confidences: Sequence[float], taken: int | None) -> None:
        """The target took the candidate of rank ``taken``, or none of them."""
        for rank, confidence in enumerate(confidences):
            bucket = bisect_right(self._borders, confidence)
            hits, seen = self._hits[rank], self._seen[rank]
            if seen[bucket] >= KEPT_OBSERVATIONS:
                hits[bucket] *= 0.5
                seen[bucket] *= 0.5
            seen[bucket] += 1.0
            if rank == taken:
                hits[bucket] += 1.0


@cache
def _prior(rank: int, bucket: int) -> float:
    """A drafter's to begin with: surer firsts are likelier, later ranks and those far behind less so."""
    nats = BUCKETS[min(bucket, len(BUCKETS) - 1)]
    if rank == 0:
        return tuning.FIRST_LOW + tuning.FIRST_MORE * (1.0 - exp(-nats))
    return tuning.LATER * exp(-nats) * tuning.LATER_FALL**rank
