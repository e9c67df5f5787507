"""Strategies: settings of two small policies, when the verifier starts and how the drafter grows.

| name   | verifier starts             | drafter grows                                        | from |
|--------|-----------------------------|------------------------------------------------------|------|
| off    | at once                     | -                                                    | plain decoding |
| serial | with gamma tokens           | a chain of gamma, then it rests until the commit     | Leviathan 2023 |
| pearl  | at once, with what is there | one chain, on through verification                   | PEARL |
| mirror | with gamma tokens           | that chain; then branches at the target's early exit | Mirror-SD |
| ahead  | when waiting stops paying   | the likeliest nodes of the tree, always              | SSD, SwiftSpec |
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from hetero.placement.errors import ConfigError
from hetero.workers.decoding.policy.tuning import MOST_GAMMA, USUAL_GAMMA


class StartRule(Enum):
    """When a window starts."""

    AT_ONCE = auto()
    WITH_GAMMA = auto()
    GOODPUT = auto()  # when waiting stops paying (``placement.cost``)


class GrowthRule(Enum):
    """Which nodes a drafter expands."""

    NONE = auto()
    WINDOW = auto()  # a chain of gamma below the committed tokens: it grows between windows only
    CHAIN = auto()  # one chain, past the window in flight
    BRANCHES = auto()  # a window's chain, then chains of gamma where the window may end
    TREE = auto()  # whatever the target reaches with the best chance


@dataclass(frozen=True, slots=True)
class Strategy:
    """``gamma``: draft tokens of a window, where they are fixed; ``rows``: most rows of a window."""

    name: str
    gamma: int
    start: StartRule
    growth: GrowthRule
    rows: int

    @property
    def drafts(self) -> bool:
        return self.growth is not GrowthRule.NONE

    @property
    def adapts(self) -> bool:
        """Whether speculation that loses is switched off."""
        return self.start is StartRule.GOODPUT

    @property
    def shares(self) -> bool:
        """Whether a sequence that would wait for more draft joins a forward that starts anyway: beside the others its
        rows cost less than a forward of their own, and its drafts go on growing."""
        return self.start is StartRule.GOODPUT

    @property
    def hints(self) -> bool:
        """Whether the target's early exit is asked."""
        return self.growth is GrowthRule.BRANCHES


def strategy(name: str, gamma: int = 0) -> Strategy:
    """The strategy of a name. ``gamma``: most draft tokens of a window; 0: as measured speeds have it, up to
    MOST_GAMMA, or USUAL_GAMMA where they are fixed. Raises ConfigError."""
    fixed, most = gamma or USUAL_GAMMA, gamma or MOST_GAMMA
    match name:
        case "off":
            return Strategy(name, 0, StartRule.AT_ONCE, GrowthRule.NONE, 1)
        case "serial":
            return Strategy(name, fixed, StartRule.WITH_GAMMA, GrowthRule.WINDOW, fixed + 1)
        case "pearl":
            return Strategy(name, fixed, StartRule.AT_ONCE, GrowthRule.CHAIN, most + 1)
        case "mirror":
            return Strategy(name, fixed, StartRule.WITH_GAMMA, GrowthRule.BRANCHES, fixed + 1)
        case "ahead":
            return Strategy(name, fixed, StartRule.GOODPUT, GrowthRule.TREE, most + 1)
    raise ConfigError(f"strategy {name!r} is unknown: choose {', '.join(NAMES)}")


AUTO = "auto"  # the fastest, as foreseen from what was measured
NAMES = ("off", "serial", "pearl", "mirror", "ahead")
