"""A simulated worker: the very state machine that a real one runs, driven by a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from hetero.workers.decoding.drafter import Drafter
from hetero.workers.decoding.verifier import Verifier
from hetero.workers.simulation.clock import VirtualClock
from hetero.workers.simulation.devices import Device, Ran
from hetero.workers.wire.messages import Message


class SimulatedWorker:
    """Runs its machine's jobs one at a time on its device and passes its messages on."""

    def __init__(
        self,
        clock: VirtualClock,
        machine: Verifier | Drafter,
        device: Device,
        deliver: Callable[[bytes, Message], None],
        unpack: Callable[[Any], Message] = lambda frame: frame,
    ) -> None:
        """``deliver(to, message)`` hands a message to the links, ``unpack`` makes one of what they bring."""
        self.machine = machine
        self.device = device
        self.alive = True
        self.frozen = 0  # how often it stood still
        self._clock = clock
        self._deliver = deliver
        self._unpack = unpack
        self._wake = inf
        self._ahead = 0.0  # seconds by which its own clock is
        self._frozen = 0.0  # until then
        self._missed: list[Callable[[], None]] = []  # what happened meanwhile

    @property
    def now(self) -> float:
        """By its own clock."""
        return self._clock.now + self._ahead

    def freeze(self, seconds: float) -> None:
        """Stand still for so long, as a suspended process does; what comes meanwhile is taken in then."""
        self.frozen += 1
        self._frozen = max(self._frozen, self._clock.now + seconds)
        self._clock.at(self._frozen, self._thaw)

    def jump(self, seconds: float) -> None:
        """Its clock is so much later all at once."""
        self._ahead += seconds
        self.poke()

    def receive(self, peer: bytes, frame: Any) -> None:
        """A frame arrived."""
        if self.alive and not self._misses(lambda: self.receive(peer, frame)):
            self.machine.receive(peer, self._unpack(frame), self.now)
            self.poke()

    def poke(self) -> None:
        """Ask the machine what to do now."""
        if not self.alive or self._misses(self.poke):
            return
        step = self.machine.step(self.now)
        for to, message in step.sends:
            self._deliver(to, message)
        if step.job is not None:
            ran = self.device.run(step.job)
            self.machine.prepare()
            if ran.early is not None:
                self._clock.after(ran.seconds / 2, lambda: self._early(ran))
            self._clock.after(ran.seconds, lambda: self._completed(ran))
        if step.wake < self._wake:
            self._wake = step.wake
            self._clock.at(step.wake - self._ahead, self._awake)

    def _misses(self, what: Callable[[], None]) -> bool:
        """Whether it is frozen; what happens now then happens when it no longer is."""
        if self._clock.now >= self._frozen:
            return False
        self._missed.append(what)
        return True

    def _thaw(self) -> None:
        missed, self._missed = self._missed, []
        for what in missed:
            what()

    def _awake(self) -> None:
        if self.now >= self._wake:
            self._wake = inf
            self.poke()

    def _early(self, ran: Ran) -> None:
        if not self.alive or self._misses(lambda: self._early(ran)):
            return
        if isinstance(self.machine, Verifier) and ran.early is not None:
            self.machine.early_exit(ran.early, self.now)
            self.poke()

    def _completed(self, ran: Ran) -> None:
        if self.alive and not self._misses(lambda: self._completed(ran)):
            self.machine.completed(ran.outcome, ran.seconds, self.now)
            self.poke()
