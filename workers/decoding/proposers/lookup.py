"""What a text says next where it was at the same words before, as drafts.

Prompt lookup (Saxena 2023): the longest suffix of a sequence that stands in its own prompt or output already; likewise
in what the server answered before (SuffixDecoding, Oliaro et al. 2024). How far either is trusted is learned: per
tokens that agree, for the sequence itself, and until it has shown enough for all those of its owner.
"""

from __future__ import annotations

from hetero.workers.decoding.policy import tuning
from hetero.workers.decoding.policy.calibration import Calibration
from hetero.workers.decoding.proposers.indexed_text import IndexedText
from hetero.workers.decoding.tree import DraftTree


def trust() -> Calibration:
    """What is known of matches before any was seen."""
    return Calibration(tuning.LENGTHS, lambda rank, bucket: tuning.TRUST[min(rank, 1)][bucket])


class Lookup:
    """A proposer."""

    def __init__(self, source: int, own: IndexedText, text: IndexedText, trusted: Calibration) -> None:
        """``own``: the sequence's tokens, which somebody else keeps; ``text``: where to look, the same or another;
        ``trusted``: what is known of such matches, and learns from this one."""
        self._source, self._own, self._text = source, own, text
        self._trusted = trusted
        self._trust = Calibration(tuning.LENGTHS, trusted.expected)
        self._found: list[tuple[int, int]] = []  # (tokens that agree, place) of each candidate, the longest first
        self._searched = False

    def commit(self, token: int) -> None:
        """A token was decided, and is the newest of ``own``."""
        if not self._searched:  # nobody asked yet: the text so far was given
            return
        found, self._searched = self._found, False
        if not found:
            return
        nexts = [next(iter(self._text.following(place, 1)), None) for _, place in found]
        if None in nexts:  # it was at the end of that text: nothing was proposed
            return
        taken = nexts.index(token) if token in nexts else None
        lengths = [length for length, _ in found]
        for calibration in (self._trust, self._trusted):
            calibration.observe(lengths, taken)
        goes_on = taken == 0 and lengths[0] >= tuning.SURE and bool(self._text.following(found[0][1] + 1, 1))
        if goes_on:  # no need to look elsewhere
            self._found, self._searched = [(min(lengths[0] + 1, tuning.MATCH), found[0][1] + 1)], True

    def propose(self, tree: DraftTree, room: int) -> None:
        if not self._searched:
            self._found = self._text.matches(self._own.tail(tuning.MATCH))[: tuning.RANKS]
            self._searched = True
        chances = self._trust.chances([length for length, _ in self._found])
        for (length, place), chance in zip(self._found, chances, strict=True):
            node, reach = tree.root, 1.0
            for token in self._text.following(place, tuning.LOOKED_UP):
                reach *= chance
                if reach < tuning.LOOKUP_FLOOR or len(tree) >= room:
                    break
                node = tree.add(node, token, chance, self._source)
                length += 1
                chance = self._trust.chance(0, length)
