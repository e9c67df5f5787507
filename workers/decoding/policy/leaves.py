"""Which leaves of all sequences a drafter expands in its next forward, and when it rests for a commit instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

from hetero.placement.cost import Curve, batch_worth
from hetero.workers.decoding.draft_sequence import DraftSequence, Growth
from hetero.workers.decoding.policy import tuning

Chosen = list[tuple[DraftSequence, Growth, list[int]]]


class LeafPolicy:
    """The drafter's policy. It measures the drafter's own speed as it goes."""

    def __init__(self, batch: int) -> None:
        """``batch``: most leaves of a forward."""
        self.speed = Curve(tuning.FORWARD_WEIGHT)  # seconds of a draft step by its rows
        self.held_until = inf  # set by ``choose`` when it rests for a commit: when to look again
        self._batch = batch
        self._began = 0.0, 1  # when the last forward started, and its rows
        self._ended = 0.0

    def started(self, rows: int, now: float) -> None:
        """A forward starts. A draft step is measured from one forward's start to the next one's: what happens between
        counts too."""
        began, last = self._began
        if now - self._ended < 0.5 * (self._ended - began):  # else it was idle between
            self.speed.add(last, now - began)
        elif not self.speed and self._ended > began:
            self.speed.add(last, self._ended - began)
        self._began = now, rows

    def ended(self, now: float) -> None:
        """The job ended."""
        self._ended = now

    def choose(
        self, sequences: Iterable[DraftSequence], usable: Callable[[DraftSequence, int], bool], now: float
    ) -> Chosen:
        """The most valuable leaves, as many as pay together. ``usable``: whether a draft token of a sequence at a
        position could ever be used."""
        found: list[tuple[float, int, DraftSequence, Growth]] = []
        for sequence in sequences:
            growth = sequence.growth
            if growth is None:
                continue
            if sequence.failures and found:  # it may be the one at fault: alone, it fails alone
                continue
            found += [(value, leaf, sequence, growth) for value, leaf in growth.expansion.leaves(self._batch)]
            if sequence.failures:
                break
        if not found:
            return []
        found.sort(key=lambda entry: -entry[0])
        count = self._count(found, now)
        chosen: dict[int, tuple[DraftSequence, Growth, list[int]]] = {}
        for at, (_, leaf, sequence, growth) in enumerate(found):
            if at < count and usable(sequence, growth.cursor.tree[leaf].position + 1):
                chosen.setdefault(sequence.id, (sequence, growth, []))[2].append(leaf)
            else:
                growth.expansion.put_back(leaf)
        return list(chosen.values())

    def _count(self, found: list[tuple[float, int, DraftSequence, Growth]], now: float) -> int:
        """How many of the leaves found, best first, to expand now."""
        most = min(len(found), self._batch)
        count = batch_worth([value for value, *_ in found[:most]], self.speed)
        count = self._in_time(count, max(sequence.due_at for _, _, sequence, _ in found[:count]), now)
        taken = found[:count]
        due = max(sequence.due_at for _, _, sequence, _ in taken)
        alone = len({sequence.id for _, _, sequence, _ in taken}) == 1
        if alone and self._holds([value for value, *_ in taken], due, now):
            return 0
        return count

    def _in_time(self, count: int, due: float, now: float) -> int:
        """How many of ``count`` leaves to expand so that the forward outlasts the check in flight, which is ``due`` to
        end then, by no more than it must: the commit may ask for something else, and would wait for it."""
        if now < due + self.speed(count):
            most = max(due - now, self.speed(1))
            while count > 1 and self.speed(count) > most:
                count -= 1
        return count

    def _holds(self, values: list[float], due: float, now: float) -> bool:
        """Whether to wait for a commit that is ``due``, instead of starting a forward it would make half useless.

        With q the chance that the target takes one of the leaves: starting now is a whole forward late with chance
        1 - q, waiting delays all by the time until the commit.
        """
        step = self.speed(len(values))
        if not now < due or due - now >= step * (1.0 - min(1.0, sum(values))):
            return False
        self.held_until = due + tuning.LATE_STEPS * step
        return True
