"""Links between simulated workers: they take their time, and may lose, repeat and reorder what workers say."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hetero.workers.simulation.clock import VirtualClock


@dataclass(frozen=True)
class Link:
    """``delay``: seconds one way, and ``jitter`` the mean of what comes on top (exponential, so that messages overtake
    each other); ``lose`` and ``repeat``: chances of a message. All but the delay befall only what may be lost: what
    drafters and verifiers say to each other."""

    delay: float = 0.0
    jitter: float = 0.0
    lose: float = 0.0
    repeat: float = 0.0


class Network:
    """Delivers between named peers, each attached with what takes its messages."""

    def __init__(self, clock: VirtualClock, seed: int = 0) -> None:
        self._clock = clock
        self._random = random.Random(seed)
        self._peers: dict[bytes, Callable[[bytes, Any], None]] = {}
        self._cut: dict[frozenset[bytes], float] = {}  # pairs between which nothing passes until then

    def attach(self, name: bytes, receive: Callable[[bytes, Any], None]) -> None:
        """``receive(sender, message)`` takes what is sent to ``name``, from now on."""
        self._peers[name] = receive

    def detach(self, name: bytes) -> None:
        """What is sent to ``name`` is lost from now on, also what is under way."""
        self._peers.pop(name, None)

    def cut(self, one: bytes, other: bytes, seconds: float) -> None:
        """Nothing passes between two peers for so long; what is under way still comes."""
        self._cut[frozenset((one, other))] = self._clock.now + seconds

    def send(self, to: bytes, sender: bytes, message: Any, link: Link, exposed: bool) -> None:
        """Send over a link; ``exposed``: the message may be lost, repeated and delayed."""
        copies = 1
        if self._clock.now < self._cut.get(frozenset((to, sender)), 0.0):
            copies = 0
        if exposed and link.lose and self._random.random() < link.lose:
            copies = 0
        if copies and exposed and link.repeat and self._random.random() < link.repeat:
            copies += 1
        for _ in range(copies):
            more = self._random.expovariate(1 / link.jitter) if exposed and link.jitter else 0.0
            self._clock.after(link.delay + more, lambda: self._arrive(to, sender, message))

    def _arrive(self, to: bytes, sender: bytes, message: Any) -> None:
        receive = self._peers.get(to)
        if receive is not None:
            receive(sender, message)
