"""The target's features of one sequence's tokens, as a verifier keeps them and as a head's drafter hears of them."""

from __future__ import annotations

import numpy as np

from hetero.workers.engines.base import Features
from hetero.workers.wire.messages import Features as FeaturesMessage


class FeatureRun:
    """Those of tokens ``first`` to before ``end``, without a gap: what came before a lost message is forgotten."""

    def __init__(self, width: int) -> None:
        """``width``: numbers of a token's."""
        self.first = self.end = 0
        self.width = width
        self._parts: list[Features] = []

    def add(self, message: FeaturesMessage) -> Features | None:
        """What is new of a message, which ends where the run ends then; None where nothing is, or it makes no sense."""
        base, values = message.base, message.values
        if message.width != self.width or not values or len(values) % (2 * self.width):
            return None
        return self.put(base, np.frombuffer(values, "<f2").reshape(-1, self.width))

    def put(self, base: int, found: Features) -> Features | None:
        """What is new of those of tokens from ``base`` on; None where nothing is."""
        end = base + len(found)
        if self._parts and base <= self.end:
            if end <= self.end:
                return None
            found = found[self.end - base :]
        else:
            self._parts, self.first = [], base
        self._parts.append(found)
        self.end = end
        return found

    def since(self, position: int) -> Features:
        """From a token of the run on, [tokens, width]."""
        found: list[Features] = [np.zeros((0, self.width), np.float16)]
        at = self.end
        while at > position and len(found) <= len(self._parts):
            found.append(self._parts[-len(found)])
            at -= len(found[-1])
        return np.concatenate(found[::-1])[position - at :]

    def forget(self, before: int) -> None:
        """Those of the tokens before a position are not needed any more."""
        while self._parts and self.first + len(self._parts[0]) <= before:
            self.first += len(self._parts.pop(0))
