"""What the server answered before, by whom it was asked: what one owner was told is never proposed to another."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from hetero.workers.decoding.policy.calibration import Calibration
from hetero.workers.decoding.proposers.indexed_text import IndexedText
from hetero.workers.decoding.proposers.lookup import Lookup, trust
from hetero.workers.decoding.proposers.proposer import LOOKUP, PAST, Proposer

_OWNERS = 64  # whose answers are kept; beyond it those of whoever has been away for longest are forgotten


class _Memory:
    """Of one owner."""

    def __init__(self, room: int) -> None:
        self.answers = IndexedText(room=room)
        self.trusted: dict[int, Calibration] = {LOOKUP: trust(), PAST: trust()}


class Past:
    """Finished answers of each owner."""

    def __init__(self, room: int) -> None:
        """``room``: tokens to keep, of all owners together; beyond, the oldest of whoever has most are forgotten."""
        self._room = room
        self._memories: OrderedDict[str, _Memory] = OrderedDict()

    def __len__(self) -> int:
        """Tokens kept."""
        return sum(len(memory.answers) for memory in self._memories.values())

    def lookups(self, owner: str, own: IndexedText) -> list[Proposer]:
        """Who proposes for a sequence of an owner whose tokens ``own`` holds."""
        memory = self._of(owner)
        found: list[Proposer] = [Lookup(LOOKUP, own, own, memory.trusted[LOOKUP])]
        if self._room:
            found.append(Lookup(PAST, own, memory.answers, memory.trusted[PAST]))
        return found

    def learn(self, owner: str, answer: Sequence[int]) -> None:
        """An answer is whole."""
        if not self._room or not answer:
            return
        memory = self._of(owner)
        memory.answers.part()
        memory.answers.extend(answer[-self._room :])
        while (more := len(self) - self._room) > 0:  # whoever has most forgets: a busy owner costs a quiet one nothing
            largest = max(self._memories.values(), key=lambda memory: len(memory.answers))
            largest.answers.forget(min(len(largest.answers), more + self._room // 8))

    def _of(self, owner: str) -> _Memory:
        memory = self._memories.pop(owner, None) or _Memory(self._room)
        self._memories[owner] = memory
        if len(self._memories) > _OWNERS:
            self._memories.popitem(last=False)
        return memory
