"""The target's own sample at a position: filter the logits, add the noise, take the argmax.

Order: bias, penalties and grammar (``logits_processors``), temperature, top-k, top-p, min-p, then
argmax(logit / T + Gumbel noise). At temperature 0 the sample is the argmax of the logits. The drafter runs the same
code on its own logits with the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetero.workers.errors import NotFinite
from hetero.workers.sampling.grammar import Grammar
from hetero.workers.sampling.gumbel import CUT, GumbelNoise
from hetero.workers.sampling.logits_processors import Logits, LogitsProcessor
from hetero.workers.wire.messages import Logprob, Sampling

_COLD = 1e-5  # temperatures below are 0: dividing by them would overflow
_NEAR = 48  # likeliest tokens that a drafter looks at, beside the loud ones
_DEPTH = 3.0  # margins are exact up to this many nats, and reported as this beyond


@dataclass(frozen=True, slots=True)
class Sampled:
    """A sampled token and its margin: how far (nats of logit / T) any change must go to alter the token."""

    token: int
    margin: float


@dataclass(frozen=True, slots=True)
class Candidates:
    """The likeliest samples at a position, best first. Confidences are nats of logit / T, 3 at most: of the first its
    lead over the second, of the others how far they stand behind the first."""

    tokens: list[int]
    confidences: list[float]


class Sampler:
    """Samples positions of one sequence by the one rule. What was committed counts: tell it with ``commit``."""

    def __init__(self, spec: Sampling, digest: bytes, grammar: Grammar | None = None) -> None:
        self.spec = spec
        self.processor = LogitsProcessor(spec.presence, spec.frequency, spec.bias, grammar)
        self._noise = GumbelNoise(spec.seed, spec.choice, digest)

    def below(self, tokens: Sequence[int]) -> Sampler:
        """The sampler as it would be with these tokens committed, for a draft token; grammars are not followed."""
        processor = self.processor.below(tokens)
        if processor is self.processor:
            return self
        found = copy(self)
        found.processor = processor
        return found

    def logprob(self, logits: Logits, token: int) -> Logprob:
        """What the model itself thinks of a committed token: before bias, penalties, grammar and temperature."""
        x = logits.astype(np.float64)
        x -= x.max()
        x -= np.log(np.exp(x).sum())
        near = _largest(x, self.spec.logprobs) if self.spec.logprobs else np.empty(0, np.intp)
        near = near[np.argsort(-x[near], kind="stable")]
        return Logprob(token, float(x[token]), [(int(i), float(x[i])) for i in near])

    def prepare(self, position: int, vocabulary: int) -> None:
        """Compute a position's noise now, while a forward runs."""
        if self.spec.temperature > 0:
            self._noise.loud(position, vocabulary)

    def sample(self, logits: Logits, position: int) -> Sampled:
        """The sample at ``position`` (index in prompt + output) from one row of logits, shape [vocabulary].

        Raises NotFinite when the row holds NaN or +inf, or nothing finite.
        """
        logits = self.processor(logits)
        best = int(logits.argmax())
        peak = float(logits[best])
        if not np.isfinite(peak):
            raise NotFinite(f"the logits at position {position} are not finite")
        if self.spec.temperature < _COLD:
            rest = max(logits[:best].max(initial=-np.inf), logits[best + 1 :].max(initial=-np.inf))
            return Sampled(best, min(peak - float(rest), _DEPTH))
        x = logits * np.float32(1.0 / self.spec.temperature)
        return self._argmax(x, best, self._edge(x, float(x[best])), position)

    def candidates(self, logits: Logits, position: int, count: int) -> Candidates:
        """The ``count`` (or fewer) best tokens by perturbed score: what a drafter proposes. Raises NotFinite.

        Nearly always the true ones: tokens that are neither among the likeliest _NEAR nor loud are left out.
        """
        logits = self.processor(logits)
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise NotFinite(f"the logits at position {position} are not finite")
        if self.spec.temperature < _COLD:
            near = _largest(logits, count + 1)
            return _ranked(near, logits[near].astype(np.float64), count)
        x = logits * np.float32(1.0 / self.spec.temperature)
        edge = self._edge(x, float(x[best]))
        loud, noise = self._noise.loud(position, len(x))
        near = _largest(x, _NEAR)
        ids = np.concatenate([loud, near])
        kept = x[ids]
        scores = kept + np.concatenate([noise, self._noise.of(near, position)])
        if edge > -np.inf:
            scores[kept < edge] = -np.inf
        return _ranked(ids, scores, count)

    def _argmax(self, x: Logits, best: int, edge: float, position: int) -> Sampled:
        """argmax(x + noise) over the ids with x >= ``edge``, hashing only those that can win or come near.

        Two-sided cut: with S the best perturbed score known, an id wins only if its noise exceeds CUT or its
        x exceeds S - CUT.
        """
        loud, noise = self._noise.loud(position, len(x))
        if edge > -np.inf:
            passing = x[loud] >= edge
            loud, noise = loud[passing], noise[passing]
        scores = x[loud] + noise
        known = float(x[best]) + self._noise.one(best, position)
        if len(loud):
            known = max(known, float(scores.max()))
        cut = known - CUT - _DEPTH
        high = np.flatnonzero(x >= max(cut, edge))
        ids = np.concatenate([loud, high])
        scores = np.concatenate([scores, x[high] + self._noise.of(high, position)])
        at = int(scores.argmax())
        won, score = int(ids[at]), float(scores[at])
        second = float(np.max(scores, where=ids != won, initial=-np.inf))
        margin = min(score - second, _DEPTH)
        if edge > -np.inf:
            margin = self._to_border(x, edge, won, score, min(margin, float(x[won]) - edge), position)
        return Sampled(won, margin)

    def _to_border(self, x: Logits, edge: float, won: int, score: float, margin: float, position: int) -> float:
        """The margin, the filters' border counted in: an id just below the edge could come in and win."""
        near = np.flatnonzero((x < edge) & (x > edge - margin))
        beating = near[x[near] + self._noise.of(near, position) > score - margin]
        return min(margin, edge - float(x[beating].max())) if len(beating) else margin

    def _edge(self, x: Logits, peak: float) -> float:
        """The least x that passes top-k, top-p and min-p: each keeps the likeliest ids down to a threshold.

        Equal logits at a threshold all pass, so the outcome does not depend on their order.
        """
        spec = self.spec
        edge = -np.inf
        if 0 < spec.top_k < len(x):
            edge = float(np.partition(x, len(x) - spec.top_k)[len(x) - spec.top_k])
        if spec.top_p < 1.0:
            edge = max(edge, _top_p(x if edge == -np.inf else x[x >= edge], peak, spec.top_p))
        if spec.min_p > 0.0:
            edge = max(edge, peak + float(np.log(spec.min_p)))
        return edge


def _largest(x: NDArray[np.floating[Any]], count: int) -> NDArray[np.intp]:
    """Ids of the ``count`` largest values, in no order."""
    return np.argpartition(x, len(x) - count)[-count:] if count < len(x) else np.arange(len(x))


def _ranked(ids: NDArray[np.intp], scores: NDArray[np.float64], count: int) -> Candidates:
    """The ``count`` ids of the best scores; an id may come twice, scores of -inf do not count."""
    tokens: list[int] = []
    behind: list[float] = []
    top = float(scores.max())
    for at in np.argsort(-scores)[: 2 * count + 2].tolist():
        token, score = int(ids[at]), float(scores[at])
        if token in tokens or score == -np.inf:
            continue
        tokens.append(token)
        behind.append(min(top - score, _DEPTH))
        if len(tokens) > count:
            break
    behind[0] = behind[1] if len(behind) > 1 else _DEPTH
    return Candidates(tokens[:count], behind[:count])


def _top_p(x: Logits, peak: float, top_p: float) -> float:
    """The least x among the fewest likeliest ids that hold ``top_p`` of the probability (Holtzman et al. 2020)."""
    wanted = top_p * float(np.exp(x - np.float32(peak)).sum(dtype=np.float64))
    # Sorting a whole vocabulary is slow; a cut that already holds the wanted mass is exact and short.
    for depth in (8.0, 16.0, np.inf):
        ordered = np.sort(x[x > peak - depth])[::-1]
        mass = np.cumsum(np.exp(ordered - np.float32(peak)), dtype=np.float64)
        if mass[-1] >= wanted:
            break
    return float(ordered[min(int(np.searchsorted(mass, wanted)), len(ordered) - 1)])
