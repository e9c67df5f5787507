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
        self._clock = clock
        self._deliver = deliver
        self._unpack = unpack
        self._wake = inf

    def receive(self, peer: bytes, frame: Any) -> None:
        """A frame arrived."""
        if self.alive:
            self.machine.receive(peer, self._unpack(frame), self._clock.now)
            self.poke()

    def poke(self) -> None:
        """Ask the machine what to do now."""
        if not self.alive:
            return
        step = self.machine.step(self._clock.now)
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
            self._clock.at(step.wake, self._awake)

    def _awake(self) -> None:
        if self._clock.now >= self._wake:
            self._wake = inf
            self.poke()

    def _early(self, ran: Ran) -> None:
        if self.alive and isinstance(self.machine, Verifier) and ran.early is not None:
            self.machine.early_exit(ran.early, self._clock.now)
            self.poke()

    def _completed(self, ran: Ran) -> None:
        if self.alive:
            self.machine.completed(ran.outcome, ran.seconds, self._clock.now)
            self.poke()
