"""The target's own sample at a position: filter the logits, add the noise, take the argmax.

Order: temperature, top-k, top-p, min-p, then argmax(logit / T + Gumbel noise). At temperature 0 the sample is
the argmax of the logits. The drafter runs the same code on its own logits with the same noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from workers.errors import NotFinite
from workers.noise import CUT, Floats, Ids, Noise

Logits: TypeAlias = NDArray[np.float32]

_DEPTH = 3.0  # margins are exact up to this many nats, and reported as this beyond


@dataclass(frozen=True, slots=True)
class Sampled:
    """A sampled token and its margin: how far (nats of logit / T) any change must go to alter the token."""

    token: int
    margin: float


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """How to sample one choice of one request. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 switch a filter off."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    choice: int = 0


class Sampler:
    """Samples positions of one sequence by the one rule."""

    def __init__(self, spec: SamplingSpec, digest: bytes) -> None:
        self.spec = spec
        self._noise = Noise(spec.seed, spec.choice, digest)

    def prepare(self, position: int, vocabulary: int) -> None:
        """Compute a position's noise now, while a forward runs."""
        if self.spec.temperature > 0:
            self._noise.loud(position, vocabulary)

    def sample(self, logits: Logits, position: int) -> Sampled:
        """The sample at ``position`` (index in prompt + output) from one row of logits, shape [vocabulary].

        Raises NotFinite when the row holds NaN or +inf, or nothing finite.
        """
        best = int(logits.argmax())
        peak = float(logits[best])
        if not np.isfinite(peak):
            raise NotFinite(f"the logits at position {position} are not finite")
        if self.spec.temperature == 0:
            rest = max(logits[:best].max(initial=-np.inf), logits[best + 1 :].max(initial=-np.inf))
            return Sampled(best, min(peak - float(rest), _DEPTH))
        x = logits * np.float32(1.0 / self.spec.temperature)
        kept, border = self._filter(x, float(x[best]))
        if kept is None:
            return self._argmax(x, best, position)
        return self._argmax_among(x, kept, border, position)

    def _argmax(self, x: Logits, best: int, position: int) -> Sampled:
        """argmax(x + noise) over all ids, hashing only those that can win or come near.

        Two-sided cut: with S the best perturbed score known, an id wins only if its noise exceeds CUT or its
        x exceeds S - CUT.
        """
        loud, noise = self._noise.loud(position, len(x))
        first = np.array([best])
        first_noise = self._noise.of(first, position)
        known = max(float(x[best] + first_noise[0]), float((x[loud] + noise).max(initial=-np.inf)))
        high = np.flatnonzero(x > known - CUT - _DEPTH)
        ids = np.concatenate([loud, high, first])
        scores = x[ids] + np.concatenate([noise, self._noise.of(high, position), first_noise])
        return _winner(ids, scores)

    def _argmax_among(self, x: Logits, kept: Ids, border: float, position: int) -> Sampled:
        """argmax over the ids that pass the filters; the margin also counts the way to the filter's border."""
        won = _winner(kept, x[kept] + self._noise.of(kept, position))
        margin = min(won.margin, float(x[won.token]) - border)
        # An id just outside the border could come in and win.
        near = np.flatnonzero((x <= border) & (x > border - 0.25))
        if len(near):
            scores = x[near] + self._noise.of(near, position)
            beat = near[scores > x[won.token] + self._noise.of(np.array([won.token]), position)[0] - margin]
            if len(beat):
                margin = min(margin, border - float(x[beat].max()))
        return Sampled(won.token, max(margin, 0.0))

    def _filter(self, x: Logits, peak: float) -> tuple[Ids | None, float]:
        """Ids that pass top-k, top-p and min-p, and the x just below which ids were cut; None: all pass."""
        spec = self.spec
        kept: Ids | None = None
        border = -np.inf
        if 0 < spec.top_k < len(x):
            # Ties at the border all pass: the outcome must not depend on the order of equal logits.
            edge = np.partition(x, len(x) - spec.top_k)[len(x) - spec.top_k]
            kept = np.flatnonzero(x >= edge)
            border = _below(x, kept, edge)
        if spec.top_p < 1.0:
            kept, border = _top_p(x, kept, peak, spec.top_p, border)
        if spec.min_p > 0.0:
            least = peak + float(np.log(spec.min_p))
            kept = np.flatnonzero(x >= least) if kept is None else kept[x[kept] >= least]
            border = max(border, least)
        return kept, border


def _winner(ids: Ids, scores: Floats) -> Sampled:
    at = int(scores.argmax())
    others = scores[ids != ids[at]]
    second = float(others.max()) if len(others) else -np.inf
    return Sampled(int(ids[at]), min(float(scores[at]) - second, _DEPTH))


def _below(x: Logits, kept: Ids, edge: float) -> float:
    """The largest x under ``edge``: where the border lies."""
    if len(kept) == len(x):
        return -np.inf
    return float(np.max(x, where=x < edge, initial=-np.inf))


def _top_p(x: Logits, kept: Ids | None, peak: float, top_p: float, border: float) -> tuple[Ids, float]:
    """The fewest most probable ids whose probabilities sum to at least ``top_p`` (Holtzman et al. 2020)."""
    values = x if kept is None else x[kept]
    mass = np.exp(values - np.float32(peak))
    wanted = top_p * float(mass.sum(dtype=np.float64))
    # Sorting a whole vocabulary is slow; a cut that already holds the wanted mass is exact and short.
    for depth in (8.0, 16.0, np.inf):
        near = np.flatnonzero(values > peak - depth)
        if depth == np.inf or float(mass[near].sum(dtype=np.float64)) >= wanted:
            break
    order = near[np.argsort(-values[near], kind="stable")]
    count = int(np.searchsorted(np.cumsum(mass[order], dtype=np.float64), wanted)) + 1
    chosen = order[:count]
    edge = float(values[chosen[-1]])
    if count < len(values):
        border = max(border, float(np.max(values, where=values < edge, initial=-np.inf)))
    ids = np.flatnonzero(values >= edge)
    return (ids if kept is None else kept[ids]), border
