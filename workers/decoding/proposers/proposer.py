"""Who proposes draft tokens beside the verifier, where no message travels: one small interface, and its sources.

A model drafter in a worker of its own proposes by ``Draft`` messages instead (``decoding.graft``). All only add
paths to the tree; who did is the ``source`` of a node: a drafter's index, or one of the numbers here.
"""

from __future__ import annotations

from typing import Protocol

from hetero.workers.decoding.tree import DraftTree

PREDICTION, LOOKUP, PAST = -1, -2, -3  # no drafter has such an index
_NAMES = {PREDICTION: "prediction", LOOKUP: "lookup", PAST: "past"}


def name_of(source: int) -> str:
    """What a source is called in answers and metrics."""
    return _NAMES.get(source) or (f"drafter-{source}" if source else "drafter")


class Proposer(Protocol):
    """Follows one sequence."""

    def commit(self, token: int) -> None:
        """A token was decided."""

    def propose(self, tree: DraftTree, room: int) -> None:
        """Add what may come next below the root, while the tree holds less than ``room`` nodes."""
