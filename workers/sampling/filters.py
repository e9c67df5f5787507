"""Top-k, top-p and min-p: each keeps the likeliest ids of a row, down to a threshold.

Equal logits at a threshold all pass, so the outcome does not depend on their order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetero.workers.sampling.logits_processors import Logits
from hetero.workers.wire.messages import Sampling

_SAMPLED = 64  # times as many ids as are wanted from which on a sample finds them faster
_BINS, _BINS_A_NAT = 2048, 64  # 32 nats: beyond, nothing counts


class Filters:
    """The filters of a request upon one row of logit / T."""

    def __init__(self, spec: Sampling, x: Logits, peak: float) -> None:
        """``x``: shape [vocabulary], of which ``peak`` is the largest."""
        self._spec, self._x, self._peak = spec, x, peak

    def passes(self, value: float) -> bool:
        """Whether an id of this logit / T passes all filters: ``value >= edge()``, without sorting."""
        spec, x = self._spec, self._x
        if spec.min_p > 0.0 and value < self._peak + float(np.log(spec.min_p)):
            return False
        few = 0 < spec.top_k < len(x)
        if not few and spec.top_p >= 1.0:
            return True
        above = x > value
        if few and np.count_nonzero(above) >= spec.top_k:
            return False
        if spec.top_p >= 1.0:
            return True
        # It is among the fewest that hold the mass unless those above it hold it already.
        masses = self._masses(x)
        kept = masses[x >= self._top_k()] if few else masses
        return float((masses * above).sum()) < spec.top_p * float(kept.sum())

    def edge(self) -> float:
        """The least x that passes; -inf where nothing is filtered."""
        spec, x = self._spec, self._x
        edge = self._top_k() if 0 < spec.top_k < len(x) else -np.inf
        if spec.top_p < 1.0:
            edge = max(edge, self._top_p(x if edge == -np.inf else x[x >= edge]))
        if spec.min_p > 0.0:
            edge = max(edge, self._peak + float(np.log(spec.min_p)))
        return edge

    def _top_k(self) -> float:
        """The k-th largest x."""
        return float(self._x[largest(self._x, self._spec.top_k)].min())

    def _top_p(self, x: Logits) -> float:
        """The least x among the fewest likeliest ids that hold ``top_p`` of the probability (Holtzman et al. 2020).

        Sorting a vocabulary is slow: bins of logits tell in which of them the border lies, and only that one is sorted.
        """
        masses = self._masses(x)
        depths = np.minimum((np.float32(self._peak) - x) * np.float32(_BINS_A_NAT), np.float32(_BINS - 1))
        bins = depths.astype(np.intp)
        reached = np.cumsum(np.bincount(bins, masses, _BINS))
        wanted = self._spec.top_p * reached[-1]
        border = int(np.searchsorted(reached, wanted))
        above = reached[border - 1] if border else 0.0
        inside = np.sort(x[bins == border])[::-1]
        within = np.cumsum(self._masses(inside), dtype=np.float64)
        return float(inside[min(int(np.searchsorted(above + within, wanted)), len(inside) - 1)])

    def _masses(self, x: Logits) -> Logits:
        """Probabilities of ids, up to a factor."""
        found: Logits = np.exp(x - np.float32(self._peak))
        return found


def largest(x: NDArray[np.floating[Any]], count: int) -> NDArray[np.intp]:
    """Ids of the ``count`` largest values, in no order."""
    if count >= len(x):
        return np.arange(len(x))
    if count * _SAMPLED < len(x):
        # Every n-th value tells where about the largest begin: what lies above holds them, if it is enough.
        sample = x[:: _SAMPLED // 4]
        at = len(sample) - 1 - 8 * count * len(sample) // len(x)
        ids = np.flatnonzero(x >= np.partition(sample, at)[at])
        if len(ids) >= count:
            return ids[np.argpartition(x[ids], len(ids) - count)[-count:]]
    return np.argpartition(x, len(x) - count)[-count:]
