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

from placement.errors import ConfigError


class Start(Enum):
    """When a window starts."""

    AT_ONCE = auto()
    WITH_GAMMA = auto()
    GOODPUT = auto()  # when waiting stops paying (placement.cost)


class Growth(Enum):
    """Which nodes a drafter expands."""

    NONE = auto()
    WINDOW = auto()  # a chain of gamma below the committed tokens: it grows between windows only
    CHAIN = auto()  # one chain, past the window in flight
    BRANCHES = auto()  # a window's chain, then chains of gamma where the window may end
    TREE = auto()  # whatever the target reaches with the best chance


@dataclass(frozen=True, slots=True)
class Strategy:
    """``gamma``: most draft tokens of a window, but for AHEAD and PEARL, which find their own number up to
    ``rows``; ``rows``: most rows of a window."""

    name: str
    gamma: int
    start: Start
    growth: Growth
    rows: int = 16

    @property
    def drafts(self) -> bool:
        return self.growth is not Growth.NONE

    @property
    def fixed(self) -> bool:
        """Whether windows hold gamma draft tokens."""
        return self.start is Start.WITH_GAMMA

    @property
    def adapts(self) -> bool:
        """Whether speculation that loses is switched off."""
        return self.start is Start.GOODPUT

    @property
    def hints(self) -> bool:
        """Whether the target's early exit is asked."""
        return self.growth is Growth.BRANCHES


def strategy(name: str, gamma: int, rows: int = 16) -> Strategy:
    """The strategy of a name. Raises ConfigError."""
    match name:
        case "off":
            return Strategy(name, 0, Start.AT_ONCE, Growth.NONE)
        case "serial":
            return Strategy(name, gamma, Start.WITH_GAMMA, Growth.WINDOW, max(rows, gamma + 1))
        case "pearl":
            return Strategy(name, gamma, Start.AT_ONCE, Growth.CHAIN, rows)
        case "mirror":
            return Strategy(name, gamma, Start.WITH_GAMMA, Growth.BRANCHES, max(rows, gamma + 1))
        case "ahead":
            return Strategy(name, gamma, Start.GOODPUT, Growth.TREE, rows)
    raise ConfigError(f"strategy {name!r} is unknown: choose {', '.join(NAMES)}")


NAMES = ("off", "serial", "pearl", "mirror", "ahead")
