"""How well Mirror-SD's branches were prepared for the commits that came."""

from __future__ import annotations

from hetero.workers.decoding.draft_sequence import Growth
from hetero.workers.decoding.policy.expansion import BranchExpansion
from hetero.workers.decoding.trace import Trace


class Landings:
    """Counts of commits that came down on a branch of gamma, a shorter one, none; and on one that a hint started."""

    def __init__(self) -> None:
        self.counts = {"complete": 0, "partial": 0, "missed": 0, "hinted": 0}

    def add(self, growth: Growth | None, now: float, trace: Trace | None) -> None:
        """A commit came."""
        if growth is None or not isinstance(growth.expansion, BranchExpansion):
            return
        kind = growth.expansion.landing()
        hinted = growth.cursor.tree.root in growth.expansion.hint_started
        self.counts[kind] += 1
        self.counts["hinted"] += hinted and kind != "missed"
        if trace is not None:
            trace.mark("drafter", kind, now, hinted=hinted)
