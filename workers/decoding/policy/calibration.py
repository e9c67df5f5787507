"""How often the target takes a drafter's candidate, learned online per rank and bucket of confidence.

The calibrated chance, not the drafter's own opinion, is what growth and windows are valued by (SpecDec++ and
SmartSpec calibrate likewise).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import exp

from hetero.workers.decoding.policy import tuning
from hetero.workers.decoding.policy.tuning import BUCKETS, KEPT_OBSERVATIONS, PRIOR_WEIGHT, RANKS


class Calibration:
    """Counts of a drafter. A candidate's confidence is in nats: of the first its margin over the second, of
    the others how far they stand behind the first."""

    def __init__(self) -> None:
        self._hits = [
            [_prior(rank, bucket) * PRIOR_WEIGHT for bucket in range(len(BUCKETS) + 1)] for rank in range(RANKS)
        ]
        self._seen = [[PRIOR_WEIGHT] * (len(BUCKETS) + 1) for _ in range(RANKS)]

    def chances(self, confidences: Sequence[float]) -> list[float]:
        """Chance of each of up to RANKS candidates, best first; below 1 in sum."""
        found = []
        for rank, confidence in enumerate(confidences):
            bucket = bisect_right(BUCKETS, confidence)
            found.append(self._hits[rank][bucket] / self._seen[rank][bucket])
        total = sum(found)
        return found if total < 0.995 else [chance * 0.995 / total for chance in found]

    def observe(self, confidences: Sequence[float], taken: int | None) -> None:
        """The target took the candidate of rank ``taken``, or none of them."""
        for rank, confidence in enumerate(confidences):
            bucket = bisect_right(BUCKETS, confidence)
            hits, seen = self._hits[rank], self._seen[rank]
            if seen[bucket] >= KEPT_OBSERVATIONS:
                hits[bucket] *= 0.5
                seen[bucket] *= 0.5
            seen[bucket] += 1.0
            if rank == taken:
                hits[bucket] += 1.0


def _prior(rank: int, bucket: int) -> float:
    """A prior to begin with: surer firsts are likelier, later ranks and those far behind less so."""
    nats = BUCKETS[min(bucket, len(BUCKETS) - 1)]
    if rank == 0:
        return tuning.FIRST_LOW + tuning.FIRST_MORE * (1.0 - exp(-nats))
    return tuning.LATER * exp(-nats) * tuning.LATER_FALL**rank
