"""Which verifier a sequence goes to: one where it need not wait, which has its beginning cached, and little to do."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence

_BLOCK = 32  # tokens whose texts are told apart
_KEPT = 8192  # blocks remembered of each verifier: about what its cache of prefixes holds
_SHARE = 0.5  # of a prompt that must be known there: a common first line is no reason to crowd


class Router:
    """Remembers the texts each verifier had last, as digests of their beginnings."""

    def __init__(self, places: int) -> None:
        """``places``: sequences a verifier decodes at once."""
        self._places = places
        self._seen: dict[int, OrderedDict[int, None]] = {}
        self._sent: Counter[int] = Counter()

    def choose(self, tokens: Sequence[int], load: Mapping[int, int]) -> int:
        """For a prompt: one of the verifiers of ``load``, which says how many sequences each has."""
        blocks = list(_blocks(tokens))

        def cost(index: int) -> tuple[int, int, int, int]:
            waits = max(0, load[index] + 1 - self._places)
            return waits, -self._known(index, blocks, len(tokens)), load[index], self._sent[index]

        best = min(load, key=cost)
        self._sent[best] += 1
        return best

    def note(self, index: int, tokens: Sequence[int]) -> None:
        """A verifier has had these tokens."""
        seen = self._seen.setdefault(index, OrderedDict())
        for block in _blocks(tokens):
            seen[block] = None
            seen.move_to_end(block)
        while len(seen) > _KEPT:
            seen.popitem(last=False)

    def forget(self, index: int) -> None:
        """It lost its cache."""
        self._seen.pop(index, None)

    def _known(self, index: int, blocks: Sequence[int], tokens: int) -> int:
        """Blocks of a prompt's beginning that it has had; 0 where they are too few to matter."""
        seen = self._seen.get(index, OrderedDict())
        found = next((n for n, block in enumerate(blocks) if block not in seen), len(blocks))
        return found if found * _BLOCK >= _SHARE * tokens else 0


def _blocks(tokens: Sequence[int]) -> Iterator[int]:
    """A digest of each beginning of whole blocks."""
    digest = 0
    for at in range(0, len(tokens) - _BLOCK + 1, _BLOCK):
        digest = hash((digest, *tokens[at : at + _BLOCK]))
        yield digest
