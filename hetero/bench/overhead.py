"""What a round costs beside the forwards: messages, tree, acceptance, sampling, with engines of zero latency.

The very state machines run in one thread on a virtual clock; all but the engines' own time counts, encoding and
decoding included.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from hetero.bench.report import report
from hetero.workers.decoding.policy.strategy import strategy
from hetero.workers.decoding.protocol import Job
from hetero.workers.engines.table import TableEngine, TableSpec, drafter_spec
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.runtime.pinning import keep_memory
from hetero.workers.simulation.devices import Ran, TableDevice
from hetero.workers.simulation.pair import Setting, SimulatedPair
from hetero.workers.simulation.worker import SimulatedWorker
from hetero.workers.wire.messages import Open, Sampling

_GAMMA = 4
_OUTPUT = 120
_STEP = 1e-3  # virtual seconds of a job: any


class _Timed(SimulatedWorker):
    """Measures the real seconds it spends outside its device, for each of its forwards."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rounds: list[float] = []
        self._spent = 0.0

    def receive(self, peer: bytes, frame: Any) -> None:
        self._timed(lambda: super(_Timed, self).receive(peer, frame))

    def _awake(self) -> None:
        self._timed(super()._awake)

    def _completed(self, ran: Ran) -> None:
        self._timed(lambda: super(_Timed, self)._completed(ran))

    def _timed(self, event: Callable[[], None]) -> None:
        device = self.device
        assert isinstance(device, _Device)
        began, inside = time.perf_counter(), device.inside
        event()
        self._spent += time.perf_counter() - began - (device.inside - inside)
        if device.forwards > len(self.rounds):
            self.rounds.append(self._spent)
            self._spent = 0.0


class _Device(TableDevice):
    """Knows the real seconds spent in it, and the forwards it ran."""

    inside = 0.0
    forwards = 0

    def run(self, job: Job) -> Ran:
        began = time.perf_counter()
        ran = super().run(job)
        self.inside += time.perf_counter() - began
        self.forwards += job.forward is not None
        return ran


def run(rounds: int, json_file: Path | None, console: Console) -> None:
    """Print the medians over ``rounds`` rounds of each cell."""
    keep_memory()  # as in workers
    rows: list[dict[str, Any]] = []
    settings = (("greedy", 0.0, 1.0), ("sampled", 0.8, 1.0), ("sampled, top-p 0.95", 0.8, 0.95))
    for vocabulary, aim in ((4096, 300.0), (131072, 1000.0)):
        for name, temperature, top_p in settings:
            verifier, drafter, tokens = _measure(vocabulary, Sampling(temperature, top_p=top_p, seed=1), rounds)
            rows.append(
                {
                    "vocabulary": vocabulary,
                    "sampling": name,
                    "verifier us/round": statistics.median(verifier) * 1e6,
                    "drafter us/step": statistics.median(drafter) * 1e6,
                    "tokens/round": tokens,
                    "verifier aim us": aim,
                }
            )
    report("overhead", rows, json_file, console)


def _measure(vocabulary: int, sampling: Sampling, rounds: int) -> tuple[list[float], list[float], float]:
    """Seconds outside the engines of each forward (verifier, drafter), and mean tokens a forward of the verifier."""
    spec = TableSpec(vocabulary=vocabulary, context=1024, sharpness=3.0)
    devices = [_Device(TableEngine(one), lambda: _STEP) for one in (spec, drafter_spec(spec, 0.95))]
    pair = SimulatedPair(
        Setting(
            strategy=strategy("serial", _GAMMA),
            vocabulary=Vocabulary([b" word"] * vocabulary, frozenset()),
            verifiers=[lambda: devices[0]],
            drafters=[lambda: devices[1]],
            worker=_Timed,
        )
    )
    verifier, drafter = pair[b"verifier-0"], pair[b"drafter-0"]
    assert isinstance(verifier, _Timed) and isinstance(drafter, _Timed)
    pair.settle(1.0)  # the drafter is known
    seq = 0
    while len(verifier.rounds) < rounds:
        seq += 1
        opening = Open(seq, 0, [seq % vocabulary, 1, 2], [], sampling, _OUTPUT, [])
        pair.client.ask(opening, b"verifier-0", at=pair.clock.now)
        pair.play()
    tokens = sum(end.stats.predicted_n - 1 for end in pair.client.finished)
    forwards = sum(end.stats.forwards_n - 1 for end in pair.client.finished)
    return verifier.rounds, drafter.rounds, tokens / forwards
