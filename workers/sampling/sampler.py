"""The target's own sample at a position: filter the logits, add the noise, take the argmax.

Order: bias, penalties and grammar (``logits_processors``), temperature, top-k, top-p, min-p, then
argmax(logit / T + Gumbel noise). At temperature 0 the sample is the argmax of the logits. The drafter runs the same
code on its own logits with the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hetero.workers.errors import NotFinite
from hetero.workers.sampling.filters import Filters, largest
from hetero.workers.sampling.gumbel import CUT, GumbelNoise
from hetero.workers.sampling.logits_processors import Logits, LogitsProcessor
from hetero.workers.wire.messages import Logprob, Sampling

_COLD = 1e-5  # temperatures below are 0: dividing by them would overflow
_IMPOSSIBLE = -9999.0  # a logprob of what is: JSON has no infinity
_NEAR = 48  # likeliest tokens that a drafter looks at, beside the loud ones
_DEPTH = 3.0  # margins are exact up to this many nats, and reported as this beyond


@dataclass(frozen=True, slots=True)
class Candidates:
    """The likeliest samples at a position, best first. Confidences are nats of logit / T, 3 at most: of the first its
    lead over the second, of the others how far they stand behind the first."""

    tokens: list[int]
    confidences: list[float]


class Sampler:
    """Samples positions of one sequence by the one rule. What was committed counts: tell its ``processor``."""

    def __init__(self, spec: Sampling, digest: bytes, processor: LogitsProcessor | None = None) -> None:
        """``digest`` of the prompt (``gumbel.prompt_digest``)."""
        self.spec = spec
        self.processor = processor or LogitsProcessor(spec)
        self._noise = GumbelNoise(spec.seed, spec.choice, digest)

    def below(self, tokens: Sequence[int]) -> Sampler:
        """The sampler as it would be with these tokens committed, for a draft token; grammars are not followed."""
        processor = self.processor.below(tokens)
        if processor is self.processor:
            return self
        found = copy(self)
        found.processor = processor
        return found

    def logprob(self, logits: Logits, token: int, top: int) -> Logprob:
        """What the model itself thinks of a token, and of the ``top`` likeliest: before bias, penalties, grammar and
        temperature. Raises NotFinite."""
        x = logits.astype(np.float64)
        if not np.isfinite(x.max()):
            raise NotFinite(f"the logits before token {token} are not finite")
        x -= x.max()
        x -= np.log(np.exp(x).sum())
        near = largest(x, top) if top else np.empty(0, np.intp)
        near = near[np.argsort(-x[near], kind="stable")]

        def told(i: int) -> float:
            return float(x[i]) if np.isfinite(x[i]) else _IMPOSSIBLE

        return Logprob(token, told(token), [(int(i), told(int(i))) for i in near])

    def prepare(self, position: int, vocabulary: int) -> None:
        """Compute a position's noise now, while a forward runs."""
        if self.spec.temperature > 0:
            self._noise.loud(position, vocabulary)

    def sample(self, logits: Logits, position: int) -> int:
        """The token at ``position`` (index in prompt + output) from one row of logits, shape [vocabulary].

        Raises NotFinite when the row holds NaN or +inf, or nothing finite.
        """
        logits, best = self._processed(logits, position)
        if self.spec.temperature < _COLD:
            return best
        x = logits * np.float32(1.0 / self.spec.temperature)
        # What wins among all ids wins among those that pass the filters, if it is one of them; it nearly always is, and
        # whether it is takes no sorting.
        won = self._argmax(x, best, -np.inf, position)
        filters = Filters(self.spec, x, float(x[best]))
        return won if filters.passes(float(x[won])) else self._argmax(x, best, filters.edge(), position)

    def margin(self, logits: Logits, position: int) -> float:
        """How far (nats of logit / T) any change of a row must go to alter its sample, 3 at most. Raises NotFinite.

        It looks at every id: for tests and reports.
        """
        logits, best = self._processed(logits, position)
        if self.spec.temperature < _COLD:
            rest = max(logits[:best].max(initial=-np.inf), logits[best + 1 :].max(initial=-np.inf))
            return min(float(logits[best]) - float(rest), _DEPTH)
        x = logits * np.float32(1.0 / self.spec.temperature)
        edge = Filters(self.spec, x, float(x[best])).edge()
        scores = x + self._noise.of(np.arange(len(x)), position)
        passing = x >= edge
        kept = np.where(passing, scores, -np.inf)
        won = int(kept.argmax())
        score, kept[won] = float(kept[won]), -np.inf
        margin = min(score - float(kept.max()), _DEPTH)
        if edge == -np.inf:
            return margin
        margin = min(margin, float(x[won]) - edge)
        # An id just below the filters' border could come in and win.
        beating = ~passing & (x > edge - margin) & (scores > score - margin)
        return min(margin, edge - float(x[beating].max())) if beating.any() else margin

    def candidates(self, logits: Logits, position: int, count: int) -> Candidates:
        """The ``count`` (or fewer) best tokens by perturbed score: what a drafter proposes. Raises NotFinite.

        Nearly always the true ones: tokens that are neither among the likeliest _NEAR nor loud are left out.
        """
        logits, best = self._processed(logits, position)
        if self.spec.temperature < _COLD:
            near = largest(logits, count + 1)
            return _ranked(near, logits[near].astype(np.float64), count)
        x = logits * np.float32(1.0 / self.spec.temperature)
        edge = Filters(self.spec, x, float(x[best])).edge()
        loud, noise = self._noise.loud(position, len(x))
        near = largest(x, _NEAR)
        ids = np.concatenate([loud, near])
        kept = x[ids]
        scores = kept + np.concatenate([noise, self._noise.of(near, position)])
        if edge > -np.inf:
            scores[kept < edge] = -np.inf
        return _ranked(ids, scores, count)

    def _processed(self, logits: Logits, position: int) -> tuple[Logits, int]:
        """The logits as the request wants them, and the likeliest id. Raises NotFinite."""
        logits = self.processor(logits)
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise NotFinite(f"the logits at position {position} are not finite")
        return logits, best

    def _argmax(self, x: Logits, best: int, edge: float, position: int) -> int:
        """argmax(x + noise) over the ids with x >= ``edge``, hashing only those that can win.

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
        high = np.flatnonzero(x >= max(known - CUT, edge))
        ids = np.concatenate([loud, high])
        scores = np.concatenate([scores, x[high] + self._noise.of(high, position)])
        return int(ids[scores.argmax()])


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
