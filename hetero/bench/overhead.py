"""What a round costs beside the forwards: messages, tree, acceptance, sampling, with engines of zero latency.

The very state machines run in one thread; all but the engines' own time counts, encoding and decoding included.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from hetero.bench.report import report
from hetero.workers.decoding.drafter import Drafter
from hetero.workers.decoding.policy.strategy import strategy
from hetero.workers.decoding.protocol import Machine
from hetero.workers.decoding.verifier import Verifier
from hetero.workers.engines.table import TableEngine, TableSpec, drafter_spec
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.wire.codec import decode, encode
from hetero.workers.wire.messages import Finished, Open, Ping, Sampling

_GAMMA = 4
_OUTPUT = 120


@dataclass
class _Side:
    """A machine, its engine, its inbox, and the seconds it spent outside the engine since the last round."""

    machine: Machine
    engine: TableEngine
    inbox: list[tuple[bytes, bytes]] = field(default_factory=list)
    spent: float = 0.0

    def turn(self, others: dict[bytes, list[tuple[bytes, bytes]]], name: bytes) -> bool:
        """Take in, decide, send, run; returns whether a forward ran."""
        began = time.perf_counter()
        inbox, self.inbox[:] = list(self.inbox), []
        for peer, frame in inbox:
            self.machine.receive(peer, decode(frame), time.monotonic())
        step = self.machine.step(time.monotonic())
        for peer, message in step.sends:
            others[peer].append((name, encode(message)))
        self.spent += time.perf_counter() - began
        if step.job is None:
            return False
        outcome = step.job.execute(self.engine)
        began = time.perf_counter()
        self.machine.prepare()
        self.machine.completed(outcome, 1e-3, time.monotonic())
        self.spent += time.perf_counter() - began
        return step.job.forward is not None


def run(rounds: int, json_file: Path | None, console: Console) -> None:
    """Print the medians over ``rounds`` rounds of each cell."""
    rows: list[dict[str, Any]] = []
    settings = (("greedy", 0.0, 1.0), ("sampled", 0.8, 1.0), ("sampled, top-p 0.95", 0.8, 0.95))
    for vocabulary, aim in ((4096, 300.0), (131072, 1000.0)):
        for name, temperature, top_p in settings:
            verifier, drafter, tokens = _measure(vocabulary, Sampling(temperature, 0, top_p, 0.0, 1, 0), rounds)
            rows.append(
                {
                    "vocabulary": vocabulary,
                    "sampling": name,
                    "verifier us/round": statistics.median(verifier) * 1e6,
                    "drafter us/round": statistics.median(drafter) * 1e6,
                    "tokens/round": tokens,
                    "verifier aim us": aim,
                }
            )
    report("overhead", rows, json_file, console)


def _measure(vocabulary: int, sampling: Sampling, rounds: int) -> tuple[list[float], list[float], float]:
    """Seconds outside the engines of each round, (verifier, drafter), and mean tokens a round."""
    spec = TableSpec(vocabulary=vocabulary, context=1024, sharpness=3.0)
    plan = strategy("serial", _GAMMA)
    target, drafting = TableEngine(spec), TableEngine(drafter_spec(spec, 0.95))
    pieces = Vocabulary([b" word"] * vocabulary, frozenset())
    verifier = _Side(Verifier(1, target.limits, pieces, plan), target)
    drafter = _Side(Drafter(2, drafting.limits, pieces.ends, plan), drafting)
    assert isinstance(drafter.machine, Drafter)
    drafter.machine.linked(b"verifier")
    client: list[tuple[bytes, bytes]] = []
    boxes = {b"verifier": verifier.inbox, b"drafter": drafter.inbox, b"client": client}
    costs: tuple[list[float], list[float]] = ([], [])
    tokens = seq = 0
    verifier.inbox.append((b"client", encode(Ping("gateway", 0, []))))
    drafter.turn(boxes, b"drafter")  # its first ping makes it known
    while len(costs[0]) < rounds:
        seq += 1
        verifier.inbox.append((b"client", encode(Open(seq, 0, [seq % vocabulary, 1, 2], [], sampling, _OUTPUT, []))))
        finished = False
        warm = 0
        while not finished:
            drafter.turn(boxes, b"drafter")
            if verifier.turn(boxes, b"verifier"):
                warm += 1
                if warm > 2:
                    costs[0].append(verifier.spent)
                    costs[1].append(drafter.spent)
                verifier.spent = drafter.spent = 0.0
            for _, frame in client:
                message = decode(frame)
                if isinstance(message, Finished):
                    finished = True
                    tokens += message.stats.predicted_n - 1
            client.clear()
    return costs[0], costs[1], tokens / (len(costs[0]) + seq)
