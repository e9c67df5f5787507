"""What a drafter is to learn while it serves: where the target said otherwise, within bounds, in memory only ("Online
Speculative Decoding", Liu et al. 2024, algorithm 1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence

from hetero.workers.engines.base import Lesson
from hetero.workers.wire.messages import Correction

_WINDOW, _BEFORE = 128, 64  # tokens of a lesson, and of them before the first place where something is learned
_PLACES = 1024  # of one sequence: the latest
_LESSONS = 512  # the latest
_VISITS = 3  # how often a lesson is gone through, about: the newer, the more often
_TOKENS, _MOST = 128, 4  # of the lessons of one step, and how many they are: a request may have to wait for its end
_TRIES = 3  # steps in a row that fail, after which nothing more is learned
_GOLDEN = 0.6180339887498949  # its multiples fill the unit interval evenly


class Notebook:
    """Corrections of open sequences; of closed ones lessons."""

    def __init__(self, vocabulary: int) -> None:
        """``vocabulary``: how many tokens there are; 0: nothing is noted."""
        self._vocabulary = vocabulary
        self._open: dict[Hashable, deque[Correction]] = {}
        self._lessons: deque[Lesson] = deque(maxlen=_LESSONS)
        self._taken = self._failed = 0
        self._under_way = False
        self._owed = 0.0  # lessons still to be gone through
        self.steps = 0

    def __len__(self) -> int:
        """Lessons."""
        return len(self._lessons)

    def note(self, sequence: Hashable, correction: Correction) -> bool:
        """The target said otherwise than was drafted; whether that makes sense."""
        likely = correction.likely
        if not likely or len(likely) != len(correction.logprobs) or max(likely) >= self._vocabulary:
            return False
        self._open.setdefault(sequence, deque(maxlen=_PLACES)).append(correction)
        return True

    def close(self, sequence: Hashable, tokens: Sequence[int]) -> None:
        """A sequence of these tokens is over: it becomes lessons."""
        found = {one.base: one for one in self._open.pop(sequence, ()) if 0 < one.base <= len(tokens)}
        places = sorted(found)
        while places:
            first = max(0, places[0] - _BEFORE)
            own = [place for place in places if place <= first + _WINDOW]
            places = places[len(own) :]
            self._lessons.append(
                Lesson(
                    list(tokens[first : own[-1]]),
                    [place - 1 - first for place in own],
                    [found[place].likely for place in own],
                    [found[place].logprobs for place in own],
                )
            )
            self._owed = min(_VISITS * _LESSONS, self._owed + _VISITS)

    def step(self) -> list[Lesson]:
        """What to go through next; [] while nothing is owed."""
        if self._owed <= 0 or not self._lessons or self._failed >= _TRIES:
            return []
        taken: list[Lesson] = []
        held = len(self._lessons)
        while sum(len(one.tokens) for one in taken) < _TOKENS and len(taken) < min(held, _MOST):
            self._taken += 1
            taken.append(self._lessons[int(held * (self._taken * _GOLDEN % 1.0) ** 0.5)])
        self._owed -= len(taken)
        self._under_way = True
        return taken

    def ended(self, well: bool) -> None:
        """A job is over, of a step if one was under way; ``well``: something came of it."""
        if self._under_way:
            self._under_way = False
            self.steps += well
            self._failed = 0 if well else self._failed + 1
