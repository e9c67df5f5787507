"""Which drafters a sequence gets: those that paid best in the sequences before it, the others now and then.

A mixture's worth is what the tokens of its sequences would have taken without drafters over what they took. That is
learned across sequences, so that a drafter that never pays costs a sequence in many its trial, and not each (as S2D and
context-aware selection choose a drafter; here measured time decides).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import TypeAlias

from hetero.placement.cost import Rate
from hetero.workers.decoding.policy import tuning

Mixture: TypeAlias = frozenset[int]  # drafters, by index


@dataclass(frozen=True, slots=True)
class Choice:
    """What a sequence begins with: its drafters, and whether they rest at first."""

    drafters: Mixture
    rests: bool


class Record:
    """What each mixture brought: all drafters together, and each alone."""

    def __init__(self) -> None:
        self._gains: dict[Mixture, Rate] = {}
        self._asked: dict[Mixture, int] = {}  # the sequence that had it last
        self._sequences = 0
        self._next_trial = tuning.TRIAL_FIRST
        self._pause = tuning.TRIAL_FIRST
        self._best: Mixture | None = None  # None: without drafters

    def choose(self, drafters: Iterable[int]) -> Choice:
        """For the next sequence, of the drafters that there are."""
        known = frozenset(drafters)
        mixtures = dict.fromkeys([known, *(frozenset({index}) for index in sorted(known))])
        self._sequences += 1
        best = max(mixtures, key=self.worth)
        pays = self.worth(best) > 1.0
        if self._sequences >= self._next_trial and self.worth(best) < inf:
            best, pays = min(mixtures, key=lambda mixture: self._asked.get(mixture, 0)), True
            self._next_trial = self._sequences + self._pause
            self._pause = min(2 * self._pause, tuning.TRIAL_LAST)
        if pays:
            self._asked[best] = self._sequences
        return Choice(best, not pays)

    def learn(self, drafters: Mixture, seconds: float, alone: float) -> None:
        """A sequence's tokens took so many seconds with these drafters, and would have taken ``alone`` without."""
        if seconds <= 0.0:
            return
        self._gains.setdefault(drafters, Rate(tuning.GAIN_KEEP)).add(alone, seconds)
        best = max(self._gains, key=self.worth)
        found = best if self.worth(best) > 1.0 else None
        if found != self._best:  # what paid has changed: the others may have, too
            self._best, self._pause = found, tuning.TRIAL_FIRST
            self._next_trial = min(self._next_trial, self._sequences + self._pause)

    def worth(self, drafters: Mixture) -> float:
        """Of a mixture; 1: as without drafters; infinite until it was tried."""
        gain = self._gains.get(drafters)
        return gain() if gain is not None else inf
