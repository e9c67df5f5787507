"""The noise that couples drafter and target: Gumbel(0, 1) values anyone with the key can recompute.

The noise of token v at a position is a counter-based hash of v under a key
BLAKE2b(seed, choice, digest of the prompt, position) (Daliri et al., "Coupling without Communication and
Drafter-Invariant Speculative Decoding"). It does not depend on logits, so it can be prepared ahead.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.intp]
Floats: TypeAlias = NDArray[np.float64]
_Words: TypeAlias = NDArray[np.uint32]

# Ids louder than this are listed ahead of time: about one in 400 (exp(-exp(-6)) = 0.9975).
CUT = 6.0
_LOUD = np.uint32(int(2**32 * float(np.exp(-np.exp(-CUT)))))
_KEPT = 256  # positions whose loud ids stay cached, per sequence


def prompt_digest(tokens: Sequence[int]) -> bytes:
    """16 bytes that identify a prompt's token ids."""
    return hashlib.blake2b(np.asarray(tokens, dtype="<u4").tobytes(), digest_size=16).digest()


class Noise:
    """The Gumbel noise of one sequence: every position, every token id."""

    def __init__(self, seed: int, choice: int, digest: bytes) -> None:
        root = hashlib.blake2b(digest_size=16, person=b"hetero.noise.v1")
        root.update(seed.to_bytes(8, "little") + choice.to_bytes(4, "little") + digest)
        self._root = root
        self._loud: OrderedDict[tuple[int, int], tuple[Ids, Floats]] = OrderedDict()

    def of(self, ids: Ids, position: int) -> Floats:
        """Noise of the given token ids at a position; shape of ``ids``."""
        key = self._key(position)
        return _gumbel(_high(ids.astype(np.uint32), key), ids, key)

    def loud(self, position: int, vocabulary: int) -> tuple[Ids, Floats]:
        """All ids whose noise exceeds about CUT, with their noise; cached, so it can be prepared early."""
        known = self._loud.get((position, vocabulary))
        if known is not None:
            return known
        key = self._key(position)
        high = _high(_counter(vocabulary).copy(), key)
        ids = np.flatnonzero(high >= _LOUD)
        found = ids, _gumbel(high[ids], ids, key)
        self._loud[position, vocabulary] = found
        if len(self._loud) > _KEPT:
            self._loud.popitem(last=False)
        return found

    def _key(self, position: int) -> _Words:
        state = self._root.copy()
        state.update(position.to_bytes(8, "little"))
        return np.frombuffer(state.digest(), dtype="<u4")


@cache
def _counter(vocabulary: int) -> _Words:
    return np.arange(vocabulary, dtype=np.uint32)


def _mix(x: _Words) -> _Words:
    """An avalanche bijection of 32-bit words, in place (the low-bias constants found by C. Wellons' search)."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x21F0AAAD)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0xD35A2D97)
    x ^= x >> np.uint32(15)
    return x


def _high(counter: _Words, key: _Words) -> _Words:
    """The upper 32 bits of each id's uniform variate; overwrites ``counter``."""
    counter ^= key[0]
    _mix(counter)
    counter += key[1]
    return _mix(counter)


def _gumbel(high: _Words, ids: Ids, key: _Words) -> Floats:
    """-log(-log u) with u built from 64 bits; the lower 32 come from a second hash under the rest of the key."""
    low = _mix(ids.astype(np.uint32) ^ key[2])
    low += key[3]
    _mix(low)
    bits = (high.astype(np.uint64) << np.uint64(32)) | low
    # 1 - u is formed from the complement, so that the loud tail keeps its full resolution.
    rest = np.minimum((~bits).astype(np.float64) * 2.0**-64 + 2.0**-65, 1.0 - 2.0**-53)
    noise: Floats = -np.log(-np.log1p(-rest))
    return noise
