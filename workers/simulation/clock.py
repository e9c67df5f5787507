"""A virtual clock that drives the very state machines the workers run, with engines and links of given speed.

One forward at a time per device; links deliver after a delay, and may lose, repeat or reorder. Seconds are
virtual: thousands of schedules run in seconds, each a pure function of its seed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Protocol


class Decision(Protocol):
    """What a machine wants (``hetero.workers.decoding.protocol.Step``)."""

    sends: list[tuple[bytes, Any]]
    job: Any
    wake: float


class Machine(Protocol):
    """A sans-IO state machine (``hetero.workers.decoding.protocol.Machine``)."""

    def receive(self, peer: bytes, message: Any, now: float) -> None: ...
    def completed(self, outcome: Any, elapsed: float, now: float) -> None: ...
    def step(self, now: float) -> Any: ...


class Simulation:
    """Events in order of time; ties in order of scheduling."""

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


class Node:
    """A machine on a device: runs its jobs one at a time and passes its messages on.

    ``execute(job)`` returns (seconds, outcome or error); ``deliver(to, message)`` hands a message to the links.
    """

    def __init__(
        self,
        simulation: Simulation,
        machine: Machine,
        execute: Callable[[Any], tuple[float, Any]],
        deliver: Callable[[bytes, Any], None],
    ) -> None:
        self.machine = machine
        self.alive = True
        self._simulation = simulation
        self._execute = execute
        self._deliver = deliver
        self._wake = float("inf")

    def receive(self, peer: bytes, message: Any) -> None:
        if self.alive:
            self.machine.receive(peer, message, self._simulation.now)
            self.poke()

    def poke(self) -> None:
        """Ask the machine what to do now."""
        if not self.alive:
            return
        step: Decision = self.machine.step(self._simulation.now)
        for to, message in step.sends:
            self._deliver(to, message)
        if step.job is not None:
            seconds, outcome = self._execute(step.job)
            self._simulation.after(seconds, lambda: self._completed(outcome, seconds))
        if step.wake < self._wake:
            self._wake = step.wake
            self._simulation.at(step.wake, self._awake)

    def _awake(self) -> None:
        if self._simulation.now >= self._wake:
            self._wake = float("inf")
            self.poke()

    def _completed(self, outcome: Any, seconds: float) -> None:
        if self.alive:
            self.machine.completed(outcome, seconds, self._simulation.now)
            self.poke()
