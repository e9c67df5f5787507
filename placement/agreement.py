"""How a drafter's candidates fare against the target's own samples: measured on a text, or assumed."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

# Of the positions where the target does not take the first candidate, the share of each later one; the rest is none of
# them. As the built-in pair's, about.
LATER = (0.5, 0.2, 0.1, 0.05, 0.05)
RANKS = 1 + len(LATER)


@dataclass(frozen=True)
class Agreement:
    """``ranks``: at each position of a text which candidate the target took, RANKS where none; ``confidences``: what
    the drafter said of its candidates there (``sampling.sampler.Candidates``); ``assumed``: nobody measured it."""

    ranks: tuple[int, ...]
    confidences: tuple[tuple[float, ...], ...]
    assumed: bool = False

    @property
    def alpha(self) -> float:
        """The share of positions where the target takes the first candidate."""
        return self.ranks.count(0) / len(self.ranks)

    def at(self, alpha: float) -> Agreement:
        """The same text where the target takes the first candidate more often or less: positions become hits, or none
        of the candidates right, evenly spread."""
        own = self.alpha
        if not 0.0 < own < 1.0:
            return assumed(alpha)
        share = (own - alpha) / own if alpha < own else (alpha - own) / (1.0 - own)
        ranks, carried = list(self.ranks), 0.0
        for at, rank in enumerate(ranks):
            if (rank == 0) == (alpha < own):
                carried += share
                if carried >= 1.0:
                    carried -= 1.0
                    ranks[at] = RANKS if rank == 0 else 0
        return replace(self, ranks=tuple(ranks))


def assumed(alpha: float, seed: int = 0, count: int = 8192) -> Agreement:
    """Positions that know nothing of each other; the drafter is equally sure of all its candidates."""
    chances = [alpha, *((1.0 - alpha) * share for share in LATER)]
    ranks = random.Random(seed).choices(range(RANKS + 1), [*chances, max(0.0, 1.0 - sum(chances))], k=count)
    return Agreement(tuple(ranks), ((1.0,) * RANKS,), assumed=True)
