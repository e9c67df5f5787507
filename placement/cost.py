"""Arithmetic of speculation: whether waiting for more draft pays.

Symbols follow Leviathan et al. (2023): alpha is the chance that the target agrees with one draft token.
"""

from __future__ import annotations


def waiting_pays(alpha: float, drafted: int, draft_step: float, row_cost: float, rate: float) -> bool:
    """Whether to hold the window back for one more draft token.

    The next token at depth ``drafted`` + 1 is reached with probability alpha^(drafted+1) and costs
    ``draft_step`` seconds of waiting and ``row_cost`` seconds of checking; it pays while that beats ``rate``,
    the long-run committed tokens a second, waits included (the goodput rule of SmartSpec).
    """
    return alpha ** (drafted + 1) > rate * (draft_step + row_cost)


class Average:
    """An exponentially weighted mean that starts at its first sample."""

    __slots__ = ("_weight", "value")

    def __init__(self, weight: float = 0.2, value: float | None = None) -> None:
        self._weight = weight
        self.value = value

    def add(self, sample: float) -> None:
        self.value = sample if self.value is None else self.value + self._weight * (sample - self.value)

    def __call__(self, default: float) -> float:
        return default if self.value is None else self.value
