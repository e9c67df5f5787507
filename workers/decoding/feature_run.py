"""The target's features of one sequence's tokens, as a head's drafter has heard of them."""

from __future__ import annotations

import numpy as np

from hetero.workers.engines.base import Features
from hetero.workers.wire.messages import Features as FeaturesMessage


class FeatureRun:
    """Those of tokens ``first`` to before ``end``, without a gap: what came before a lost message is forgotten."""

    def __init__(self, width: int) -> None:
        """``width``: numbers of a token's."""
        self.first = self.end = 0
        self._width = width
        self._parts: list[Features] = []

    def add(self, message: FeaturesMessage) -> Features | None:
        """What is new of a message, which ends where the run ends then; None where nothing is, or it makes no sense."""
        base, values = message.base, message.values
        if message.width != self._width or not values or len(values) % (2 * self._width):
            return None
        found = np.frombuffer(values, "<f2").reshape(-1, self._width)
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
        whole = np.concatenate(self._parts) if self._parts else np.zeros((0, self._width), np.float16)
        return whole[position - self.first :]

    def forget(self, before: int) -> None:
        """Those of the tokens before a position are not needed any more."""
        while self._parts and self.first + len(self._parts[0]) <= before:
            self.first += len(self._parts.pop(0))
