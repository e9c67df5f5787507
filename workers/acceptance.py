"""Acceptance: walk a tree from its root by the one rule, the target decides.

Every committed token is the target's own sample at its position; a guess is accepted exactly when it equals it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from workers.engines.base import Outcome
from workers.errors import EngineError
from workers.sampling import Sampler
from workers.track import Track


@dataclass(frozen=True, slots=True)
class Walk:
    """What a window committed: ``tokens`` new ones, ``accepted`` of them guessed and checked in the window.

    ``ended`` tells that the sequence is over; ``failure`` that a row could not be sampled.
    """

    tokens: int
    accepted: int
    ended: bool
    failure: EngineError | None = None


def walk(
    track: Track, rows: Mapping[int, int], outcome: Outcome, sampler: Sampler, take: Callable[[int], bool]
) -> Walk:
    """Commit the target's samples along the tree.

    ``rows`` maps a node to its row of the outcome and holds the root. ``take`` receives each token and returns
    True when the sequence ends with it: nothing beyond it is sampled, counted or committed.
    """
    tokens = accepted = 0
    node = track.tree.root
    while (row := rows.get(node)) is not None:
        try:
            sampled = outcome.sample(row, sampler, track.tree.position + 1)
        except EngineError as failure:
            return Walk(tokens, accepted, False, failure)
        node = track.commit(sampled.token)
        tokens += 1
        accepted += node in rows
        if take(sampled.token):
            return Walk(tokens, accepted, True)
    return Walk(tokens, accepted, False)
