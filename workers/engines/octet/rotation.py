"""Rotary embeddings: how much each pair of a head's numbers turns from one position to the next, and what long contexts
do to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
KINDS = ("", "linear", "yarn", "llama3", "longrope")


@dataclass(frozen=True)
class Rope:
    """``rotated`` numbers of a head, in pairs, by a base of ``theta``; ``kind``: how the context was stretched from
    ``original`` tokens by ``factor``. ``attention``: what scores grow by, 0: as the kind has it. ``low``, ``high``: of
    yarn the slow and the fast beta, of llama3 its factors. ``short``, ``long``: a factor for each pair (longrope;
    ``long`` alone holds for any context)."""

    theta: float
    rotated: int
    kind: str = ""
    factor: float = 1.0
    original: int = 0
    attention: float = 0.0
    low: float = 1.0
    high: float = 32.0
    whole: bool = True  # yarn's borders are whole pairs
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()


def tables(rope: Rope, context: int, capacity: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines, [capacity, rotated / 2], for a model that runs with ``context``."""
    frequencies = rope.theta ** (-np.arange(0, rope.rotated, 2, dtype=np.float64) / rope.rotated)
    stretched, scale = _stretched(rope, frequencies, context)
    angles = np.outer(np.arange(capacity), stretched)
    return (scale * np.cos(angles)).astype(np.float32), (scale * np.sin(angles)).astype(np.float32)


def _stretched(rope: Rope, frequencies: Floats, context: int) -> tuple[Floats, float]:
    scale = rope.attention or 1.0
    if rope.kind == "linear":
        return frequencies / rope.factor, scale
    if rope.kind == "llama3":
        return _llama3(rope, frequencies), scale
    if rope.kind == "yarn":
        return _yarn(rope, frequencies), rope.attention or (
            0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
        )
    factors = rope.long if rope.long and (context > rope.original or not rope.short) else rope.short
    if factors:
        frequencies = frequencies / np.array(factors)
    if rope.kind == "longrope" and not rope.attention and rope.factor > 1:
        scale = math.sqrt(1 + math.log(rope.factor) / math.log(rope.original))
    return frequencies, scale


def _yarn(rope: Rope, frequencies: Floats) -> Floats:
    """Peng et al., "YaRN", section 3.2: fast pairs keep their speed, slow ones are slowed by the factor."""

    def pair(turns: float) -> float:  # the pair that turns so often within the original context
        return rope.rotated * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = pair(rope.high), pair(rope.low)
    if rope.whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(0, first), min(rope.rotated - 1, last)
    kept = 1 - np.clip((np.arange(rope.rotated // 2) - first) / max(0.001, last - first), 0, 1)
    found: Floats = frequencies * (kept + (1 - kept) / rope.factor)
    return found


def _llama3(rope: Rope, frequencies: Floats) -> Floats:
    """Llama 3.1's: long waves are slowed by the factor, short ones kept, those between mixed."""
    turns = rope.original * frequencies / (2 * math.pi)
    kept = np.clip((turns - rope.low) / (rope.high - rope.low), 0, 1)
    found: Floats = frequencies * (kept + (1 - kept) / rope.factor)
    return found
