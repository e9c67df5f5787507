"""What a pair would do, foreseen: the workers' own state machines on a virtual clock, engines of given speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from hetero.placement.agreement import Agreement
from hetero.workers.decoding.drafter import Drafter
from hetero.workers.decoding.policy.strategy import strategy
from hetero.workers.decoding.trace import Trace
from hetero.workers.engines.base import EngineLimits
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.simulation.devices import TOKENS, DrawnDevice
from hetero.workers.simulation.links import Link
from hetero.workers.simulation.pair import Setting, SimulatedPair
from hetero.workers.wire.messages import Open, Sampling

_SEEDS = 1000  # of the streams of one play, apart from those of another


@dataclass(frozen=True)
class Duet:
    """A pair. ``verify``, ``draft``: seconds of a forward by its rows, and of each row that is looked at; ``draft``
    None: there is no drafter; ``link``: seconds one way; ``rows`` of a target's forward, ``leaves`` of a drafter's;
    ``early``: whether the target hints from half its layers; ``exact``: whether it runs in exact mode; ``calibrate``:
    seconds of a drafter's forward of committed tokens, where its guesses do not last."""

    strategy: str
    gamma: int
    verify: Callable[[int], float]
    draft: Callable[[int], float] | None
    agreement: Agreement
    link: float = 1e-4
    rows: int = 64
    leaves: int = 16
    early: bool = False
    exact: bool = False
    verify_look: float = 0.0
    draft_look: float = 0.0
    calibrate: Callable[[int], float] | None = None


@dataclass(frozen=True)
class Forecast:
    """Tokens a second of all streams with the half width of its 95 % interval, busy shares of the devices, tokens a
    forward, the share of tokens decided with speculation off, and that of time windows were held back for drafts."""

    rate: float
    interval: float
    verifier: float
    drafter: float
    length: float
    plain: float
    waited: float


class Play:
    """One duet with some streams, until ``tokens`` of each are out."""

    def __init__(self, duet: Duet, tokens: int, seed: int, streams: int = 1, trace: Trace | None = None) -> None:
        context = tokens + 64
        one = EngineLimits(TOKENS, context, duet.rows, 64, streams, duet.exact, early_exit=duet.early)
        lasting = duet.calibrate is None
        two = EngineLimits(TOKENS, context, duet.leaves, 64, streams, draft_nodes=8192, lasting=lasting)
        draft, agreement = duet.draft, duet.agreement
        self.pair = SimulatedPair(
            Setting(
                strategy=strategy(duet.strategy, duet.gamma),
                vocabulary=Vocabulary([b"x"] * TOKENS, frozenset()),
                verifiers=[lambda: DrawnDevice(one, duet.verify, agreement, look=duet.verify_look)],
                drafters=[lambda: DrawnDevice(two, draft, agreement, look=duet.draft_look, calibrate=duet.calibrate)]
                if draft
                else [],
                link=Link(duet.link),
                coded=False,
                ping=5.0,
                tree_nodes=8192,
                leaves=duet.leaves,
                trace=trace,
            )
        )
        for stream in range(1, streams + 1):  # each has draws of its own: alike, they would miss together
            opening = Open(stream, 0, [0], [], Sampling(0.8, seed=_SEEDS * seed + stream), tokens, [])
            self.pair.client.ask(opening, b"verifier-0", at=0.1)
        self.pair.play()

    @property
    def drafter(self) -> Drafter:
        """The drafter's machine."""
        machine = self.pair[b"drafter-0"].machine
        assert isinstance(machine, Drafter)
        return machine

    def result(self, batches: int = 25) -> Forecast:
        """The first tenth is left out: speeds and chances are being learned then."""
        times = self.pair.client.times
        times = times[len(times) // 10 :]
        size = max(1, len(times) // batches)
        rates = []
        for n in range(min(batches, len(times) // size)):
            part = times[n * size : (n + 1) * size + 1]
            if part[-1][0] > part[0][0]:
                rates.append(sum(count for _, count in part[1:]) / (part[-1][0] - part[0][0]))
        stats = [finished.stats for finished in self.pair.client.finished]
        output = sum(each.predicted_n for each in stats)
        return Forecast(
            mean(rates),
            2.06 * stdev(rates) / sqrt(len(rates)) if len(rates) > 1 else 0.0,  # Student's t of 24
            self._busy(b"verifier-0"),
            self._busy(b"drafter-0") if b"drafter-0" in self.pair.workers else 0.0,
            output / sum(each.forwards_n for each in stats),
            sum(each.plain_n for each in stats) / output,
            sum(each.waited_ms for each in stats) / max(1e-9, sum(each.predicted_ms for each in stats)),
        )

    def _busy(self, name: bytes) -> float:
        """The share of its time that a device worked."""
        device = self.pair[name].device
        assert isinstance(device, DrawnDevice)
        return device.busy / self.pair.clock.now
