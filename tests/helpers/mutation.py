"""Values that are not what was asked for, and JSON with them in it."""

from __future__ import annotations

import copy
import random
from typing import Any

ODD: list[Any] = [
    0, -1, 1, 3, 255, 2**31, 2**63, 2**64, 10**400, 1.5, 1e308, -1e308, float("nan"), float("inf"), True, None, "", "²",
    "x", "x" * 10_000, "\x1b[31m\n\0", "\ud800", "../../etc", [], {}, [0], [None], ["x"] * 1000, {"x": {}},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to the parts of a JSON value; of long ones the first parts only."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key in list(value)[:30]:
            found += places(value[key], (*path, key))
    elif isinstance(value, list):
        for n in range(min(len(value), 5)):
            found += places(value[n], (*path, n))
    return found


def mutated(value: Any, rng: random.Random, donors: list[Any] = ODD) -> Any:
    """A copy with a part that is gone, is another value, or stands twice."""
    value = copy.deepcopy(value)
    ways = places(value)
    if not ways:
        return rng.choice(donors)
    *way, last = rng.choice(ways)
    place = value
    for step in way:
        place = place[step]
    kind = rng.random()
    if kind < 0.2:
        del place[last]
    elif kind < 0.3 and isinstance(place, list):
        place += [place[last]] * rng.choice([1, 10, 200])
    elif kind < 0.4 and isinstance(place, dict):
        place[rng.choice(["x", "²", "", "__class__", "$ref"])] = place[last]
    elif kind < 0.6 and len(ways) > 1:
        other = value
        for step in rng.choice(ways):
            other = other[step]
        place[last] = copy.deepcopy(other)
    else:
        place[last] = copy.deepcopy(rng.choice(donors))
    return value
