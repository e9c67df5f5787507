"""Strategies: settings of two small policies, when the verifier starts and how far the drafter grows.

| name   | verifier starts              | drafter grows                       | from |
|--------|------------------------------|-------------------------------------|------|
| off    | at once                      | -                                   | plain decoding |
| serial | with gamma tokens            | to gamma tokens, then it waits      | Leviathan et al. 2023; Dovetail |
| ahead  | when waiting stops paying    | always, past the window in flight   | SSD, SwiftSpec |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from placement import cost
from placement.cost import Average
from placement.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Pace:
    """What a wait is judged by: agreement per draft token, seconds per draft token, per checked row, and the
    long-run tokens a second."""

    alpha: float
    draft_step: float
    row_cost: float
    rate: float


@dataclass(frozen=True, slots=True)
class Strategy:
    """``gamma``: most draft tokens of a window; ``lead``: how far below the committed tokens the drafter may
    go; ``waits(drafted, pace)``: whether the verifier waits for one more draft token."""

    name: str
    gamma: int
    lead: int
    waits: Callable[[int, Pace], bool]

    @property
    def drafts(self) -> bool:
        return self.lead > 0


def strategy(name: str, gamma: int) -> Strategy:
    """The strategy of a name, with windows of at most ``gamma`` draft tokens. Raises ConfigError."""
    match name:
        case "off":
            return Strategy(name, 0, 0, lambda drafted, pace: False)
        case "serial":
            # A drafter held at gamma tokens stands still until the commit: it grows only between windows.
            return Strategy(name, gamma, gamma, lambda drafted, pace: drafted < gamma)
        case "ahead":
            return Strategy(name, gamma, 3 * gamma + 1, lambda drafted, pace: drafted < gamma and _pays(drafted, pace))
    raise ConfigError(f"strategy {name!r} is unknown: choose {', '.join(NAMES)}")


NAMES = ("off", "serial", "ahead")


def _pays(drafted: int, pace: Pace) -> bool:
    return cost.waiting_pays(pace.alpha, drafted, pace.draft_step, pace.row_cost, pace.rate)


class Pacer:
    """Measures a Pace online, for one verifier."""

    def __init__(self) -> None:
        self._alpha = Average(0.05, 0.6)
        self._draft_step = Average(0.2)
        self._rate = Average(0.05)
        self._forward: dict[int, Average] = {}

    def checked(self, accepted: int, offered: int) -> None:
        """A window accepted so many of its drafts: each is a yes, the one that ended the walk a no."""
        for _ in range(accepted):
            self._alpha.add(1.0)
        if accepted < offered:
            self._alpha.add(0.0)

    def drafted(self, tokens: int, seconds: float) -> None:
        """So many draft tokens came within ``seconds`` of a wait."""
        self._draft_step.add(seconds / max(tokens, 1))

    def forward(self, rows: int, seconds: float) -> None:
        """A forward of ``rows`` rows took ``seconds``."""
        self._forward.setdefault(rows, Average()).add(seconds)

    def round(self, tokens: int, seconds: float) -> None:
        """A round (wait and forward) of one sequence committed ``tokens``."""
        if seconds > 0:
            self._rate.add(tokens / seconds)

    @property
    def draft_step(self) -> float:
        """Seconds a draft token takes to arrive; 20 ms until one came."""
        return self._draft_step(0.02)

    def pace(self) -> Pace:
        return Pace(self._alpha(0.6), self.draft_step, self._row_cost(), self._rate(0.0))

    def _row_cost(self) -> float:
        few, many = min(self._forward, default=0), max(self._forward, default=0)
        if few == many:
            return 0.0
        return max(0.0, (self._forward[many](0.0) - self._forward[few](0.0)) / (many - few))
