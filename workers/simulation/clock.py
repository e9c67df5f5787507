"""A virtual clock: thousands of schedules run in seconds, each a pure function of its seed."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class VirtualClock:
    """Events in order of time; ties in order of scheduling. Seconds are virtual."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do ``action`` at a time (not before now)."""
        heapq.heappush(self._events, (max(when, self.now), self._count, action))
        self._count += 1

    def after(self, delay: float, action: Callable[[], None]) -> None:
        self.at(self.now + delay, action)

    def run(self, done: Callable[[], bool], until: float) -> bool:
        """Go on until ``done`` or a virtual time; whether it was done."""
        while not done():
            if not self._events or self._events[0][0] > until:
                return False
            self.now, _, action = heapq.heappop(self._events)
            action()
        return True
