"""The multiplicative penalty on tokens that were there before (CTRL, Keskar et al. 2019, section 4.1)."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Repetition:
    """The tokens it looks back on, and what it does to their logits."""

    def __init__(self, factor: float, last: int, prompt: Sequence[int]) -> None:
        """``last``: tokens it looks back (0: all)."""
        self._factor = np.float32(factor)
        self._recent = deque(prompt, last or None)
        self._counts = Counter(self._recent)

    def add(self, token: int) -> None:
        """A token came."""
        if len(self._recent) == self._recent.maxlen:
            oldest = self._recent[0]
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
        self._recent.append(token)
        self._counts[token] += 1

    def below(self, tokens: Sequence[int]) -> Repetition:
        """As it would be with more tokens."""
        found = copy(self)
        found._recent, found._counts = self._recent.copy(), self._counts.copy()
        for token in tokens:
            found.add(token)
        return found

    def apply(self, logits: NDArray[np.floating[Any]]) -> None:
        """Penalise, in place."""
        tokens = np.fromiter(self._counts, np.intp, len(self._counts))
        tokens = tokens[tokens < len(logits)]
        found = logits[tokens]
        logits[tokens] = np.where(found > 0, found / self._factor, found * self._factor)
