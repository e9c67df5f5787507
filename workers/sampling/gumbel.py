"""The noise that couples drafter and target: Gumbel(0, 1) values anyone with the key can recompute.

The noise of token v at a position is a counter-based hash of v under a key
BLAKE2b(seed, choice, digest of the prompt, position) (Daliri et al., "Coupling without Communication and
Drafter-Invariant Speculative Decoding"). It does not depend on logits, so it can be prepared ahead.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.intp]
Floats: TypeAlias = NDArray[np.float64]
_Words: TypeAlias = NDArray[np.uint64]

# Ids louder than this are listed ahead of time: about one in 400 (exp(-exp(-6)) = 0.9975).
CUT = 6.0
_LOUD = np.uint64(int(2**64 * float(np.exp(-np.exp(-CUT)))))
_GOLDEN = 0x9E3779B97F4A7C15
_NEARLY_LOUD = _LOUD >> np.uint64(33) << np.uint64(33)  # what the upper 31 bits must reach
_BLOCK = 1 << 16  # ids hashed in one go: up to 16 positions of a small vocabulary, one of a large one
_KEPT = 64  # blocks that stay cached, per sequence


def prompt_digest(tokens: Sequence[int]) -> bytes:
    """16 bytes that identify a prompt's token ids."""
    return hashlib.blake2b(np.asarray(tokens, dtype="<u4").tobytes(), digest_size=16).digest()


class GumbelNoise:
    """The Gumbel noise of one sequence: every position, every token id."""

    def __init__(self, seed: int, choice: int, digest: bytes) -> None:
        root = hashlib.blake2b(digest_size=8, person=b"hetero.noise.v1")
        root.update(seed.to_bytes(8, "little") + choice.to_bytes(4, "little") + digest)
        self._root = root
        self._blocks: OrderedDict[int, list[tuple[Ids, Floats]]] = OrderedDict()

    def of(self, ids: Ids, position: int) -> Floats:
        """Noise of the given token ids at a position; shape of ``ids``."""
        return _gumbel(_mix(ids.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(self._key(position))))

    def one(self, token: int, position: int) -> float:
        """Noise of one id, without numpy's cost per call; equal to ``of`` but for the last bits of its logarithm."""
        x = (token * _GOLDEN + self._key(position)) & _MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        x ^= x >> 31
        return -math.log(-math.log1p(-min((_MASK - x) * 2.0**-64 + 2.0**-65, 1.0 - 2.0**-53)))

    def loud(self, position: int, vocabulary: int) -> tuple[Ids, Floats]:
        """All ids whose noise exceeds about CUT, with their noise. Cached by blocks of positions."""
        size = min(16, max(1, _BLOCK // vocabulary))
        block, at = divmod(position, size)
        found = self._blocks.get(block)
        if found is None:
            found = self._blocks[block] = self._hash(range(block * size, (block + 1) * size), vocabulary)
            if len(self._blocks) > _KEPT:
                self._blocks.popitem(last=False)
        return found[at]

    def _hash(self, positions: range, vocabulary: int) -> list[tuple[Ids, Floats]]:
        """The loud ids of positions, with their noise."""
        keys = np.array([self._key(position) for position in positions], dtype=np.uint64)
        x = _counter(vocabulary) + keys[:, None]
        _mix_most(x)
        # Few are loud, so only those few get the hash's last step.
        rows, ids = np.nonzero(x >= _NEARLY_LOUD)
        bits = x[rows, ids]
        bits ^= bits >> np.uint64(31)
        loud = bits >= _LOUD
        rows, ids, noise = rows[loud], ids[loud], _gumbel(bits[loud])
        bounds = np.searchsorted(rows, np.arange(len(positions) + 1))
        return [(ids[a:b], noise[a:b]) for a, b in itertools.pairwise(bounds)]

    def _key(self, position: int) -> int:
        state = self._root.copy()
        state.update(position.to_bytes(8, "little"))
        return int.from_bytes(state.digest(), "little")


_MASK = (1 << 64) - 1


@cache
def _counter(vocabulary: int) -> _Words:
    return np.arange(vocabulary, dtype=np.uint64) * np.uint64(_GOLDEN)


def _mix(x: _Words) -> _Words:
    """SplitMix64's finaliser (Steele et al. 2014), in place: output ids * golden ratio + key of its stream."""
    _mix_most(x)
    x ^= x >> np.uint64(31)
    return x


def _mix_most(x: _Words) -> None:
    """All of it but the last step, which leaves the upper 31 bits as they are."""
    shifted = x >> np.uint64(30)
    x ^= shifted
    x *= np.uint64(0xBF58476D1CE4E5B9)
    np.right_shift(x, np.uint64(27), out=shifted)
    x ^= shifted
    x *= np.uint64(0x94D049BB133111EB)


def _gumbel(bits: _Words) -> Floats:
    """-log(-log u) of the uniform variate u that 64 bits make."""
    # 1 - u is formed from the complement, so that the loud tail keeps its full resolution.
    rest = np.minimum((~bits).astype(np.float64) * 2.0**-64 + 2.0**-65, 1.0 - 2.0**-53)
    noise: Floats = -np.log(-np.log1p(-rest))
    return noise
