"""Strategies against the verifier bound on the simulator: the workers' own state machines, engines of given speed.

Acceptance is iid: at every position the target's token is the drafter's first choice with chance 0.8, its second
with 0.1, and so on. Nothing runs but the machines; seconds are virtual.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import sqrt
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from rich.console import Console

from hetero.bench.report import report
from hetero.workers.decoding.drafter import Drafter
from hetero.workers.decoding.policy.strategy import NAMES, strategy
from hetero.workers.decoding.protocol import Extend, Job, Prefill
from hetero.workers.decoding.trace import Trace
from hetero.workers.decoding.verifier import Verifier
from hetero.workers.engines.base import EngineLimits, Outcome
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.sampling.logits_processors import Logits
from hetero.workers.sampling.sampler import Candidates, Sampled, Sampler
from hetero.workers.simulation.clock import Node, Simulation
from hetero.workers.simulation.recorder import Recorder
from hetero.workers.wire.messages import Finished, Message, Open, Ping, Sampling, Tokens

RANKS = (0.80, 0.10, 0.04, 0.02, 0.01, 0.01)  # chance that the target takes the drafter's n-th choice
WINDOW = 16  # rows up to which checking costs the same
_VOCABULARY = 8  # tokens 0..5 are the drafter's choices in order; 6 is none of them
_NONE = 6


@dataclass(frozen=True)
class Regime:
    """A pair of devices. Seconds of a draft forward (flat to ``leaves`` rows), of a target forward by its rows, and
    of the link one way. ``early``: whether the target hints from half its layers."""

    name: str
    draft: float
    verify: Callable[[int], float]
    link: float
    leaves: int
    early: bool = False


def flat(seconds: float) -> Callable[[int], float]:
    """T_v flat to WINDOW rows, then in proportion."""
    return lambda rows: seconds * max(1.0, rows / WINDOW)


# Milliseconds of llama.cpp Q8_0 for n rows, 240M, one thread, as `hetero bench engines` measured.
_Q8_0 = ((1, 2, 4, 8, 16), (14.2, 37.1, 51.3, 68.2, 101.0))


def measured(rows: int) -> float:
    """T_v(n) of llama.cpp Q8_0."""
    return float(np.interp(rows, *_Q8_0)) * 1e-3


REGIMES = (
    *(Regime(f"A GPU/CPU 4/150 ms, link 0.1 ms, B={b}", 4e-3, flat(0.150), 1e-4, b) for b in (8, 32)),
    *(Regime(f"A GPU/CPU 4/150 ms, link 25 ms, B={b}", 4e-3, flat(0.150), 25e-3, b) for b in (8, 32)),
    *(Regime(f"B GPU/GPU 2.5/20 ms, link 0.03 ms, B={b}", 2.5e-3, flat(0.020), 3e-5, b) for b in (8, 32)),
    Regime("C slow drafter 10/25 ms, B=2", 10e-3, flat(0.025), 1e-4, 2),
    Regime("D llama.cpp Q8_0, draft 2 ms, B=8", 2e-3, measured, 1e-4, 8),
)


@dataclass(frozen=True)
class Result:
    """Tokens a second with the half width of its 95 % interval, busy shares of the devices, tokens a forward, and
    the share of tokens decided with speculation off."""

    rate: float
    interval: float
    verifier: float
    drafter: float
    length: float
    plain: float


class _Outcome(Outcome):
    """The drafter's choices are always 0, 1, 2, ...; the target's token at a position is drawn beforehand.

    ``taken``: for each row the draws of its sequence.
    """

    def __init__(self, taken: Sequence[Sequence[int]]) -> None:
        self._taken = taken

    def logits(self, row: int) -> Logits:
        raise NotImplementedError("simulated engines have no logits")

    def sample(self, row: int, sampler: Sampler, position: int) -> Sampled:
        return Sampled(self._taken[row][position], 1.0)

    def candidates(self, row: int, sampler: Sampler, position: int, count: int) -> Candidates:
        return Candidates(list(range(min(count, len(RANKS)))), [1.0] * min(count, len(RANKS)))


class _Exit(_Outcome):
    """An early exit that has the target's token among its likeliest, the more often first."""

    def candidates(self, row: int, sampler: Sampler, position: int, count: int) -> Candidates:
        own, taken = random.Random(position), self._taken[row][position]
        tokens = [t for t in range(len(RANKS)) if t != taken][: count - 1]
        tokens.insert(0 if own.random() < 0.6 else min(1, len(tokens)), taken)
        if own.random() < 0.1:
            tokens.remove(taken)
        return Candidates(tokens[:count], [1.0] * len(tokens[:count]))


class Play:
    """One regime under one strategy, until ``tokens`` are out."""

    def __init__(
        self, regime: Regime, plan: str, gamma: int, tokens: int, seed: int, sequences: int = 1,
        trace: Trace | None = None,
    ) -> None:  # fmt: skip
        self._regime = regime
        self.simulation = Simulation()
        self.times: list[tuple[float, int]] = []  # when how many tokens came
        self.finished: list[Finished] = []
        self._busy = {b"verifier": 0.0, b"drafter": 0.0}
        # Each sequence has draws of its own: alike, they would miss together.
        size = (sequences, tokens + 64)
        draws = np.random.default_rng(seed).choice(_NONE + 1, size=size, p=[*RANKS, 1.0 - sum(RANKS)])
        self._taken: dict[int, list[int]] = dict(enumerate(draws.tolist(), 1))
        context = tokens + 64
        chosen = strategy(plan, gamma if plan in ("serial", "mirror") else 0)
        vocabulary = Vocabulary([b"x"] * _VOCABULARY, frozenset())
        one = EngineLimits(_VOCABULARY, context, WINDOW * sequences, 64, sequences, early_exit=regime.early)
        two = EngineLimits(_VOCABULARY, context, regime.leaves, 64, sequences, draft_nodes=8192)
        self._nodes: dict[bytes, Node] = {}
        drafter = self.drafter = Drafter(2, two, vocabulary.ends, chosen, regime.leaves, trace)
        machines: dict[bytes, Verifier | Drafter] = {
            b"verifier": Verifier(1, one, vocabulary, chosen, 8192, trace),
            b"drafter": drafter,
        }
        for name, machine in machines.items():
            self._nodes[name] = self._node(name, machine)
        drafter.linked(b"verifier")
        self._sequences = sequences
        self._keep_alive()
        self.simulation.after(0.0, self._nodes[b"drafter"].poke)
        for seq in range(1, sequences + 1):
            opening = Open(seq, 0, [0], [], Sampling(0.8, 0, 1.0, 0.0, seed, 0), tokens, [])
            self._deliver(b"verifier", b"client", opening, 0.1)
        self.simulation.run(lambda: len(self.finished) == sequences, 1e9)

    def result(self, batches: int = 25) -> Result:
        """The first tenth is left out: speeds and chances are being learned then."""
        times = self.times[len(self.times) // 10 :]
        size = len(times) // batches
        rates = []
        for n in range(batches):
            part = times[n * size : (n + 1) * size + 1]
            rates.append(sum(count for _, count in part[1:]) / (part[-1][0] - part[0][0]))
        seconds = self.simulation.now
        stats = self.finished[0].stats
        return Result(
            mean(rates),
            2.06 * stdev(rates) / sqrt(batches),  # Student's t of 24
            self._busy[b"verifier"] / seconds,
            self._busy[b"drafter"] / seconds,
            stats.predicted_n / stats.forwards_n,
            stats.plain_n / stats.predicted_n,
        )

    def _node(self, name: bytes, machine: Verifier | Drafter) -> Node:
        def execute(job: Job) -> tuple[float, Outcome | None]:
            seconds, taken = 0.0, list[list[int]]()
            match job.forward:
                case Extend(rows, hint):
                    regime, taken = self._regime, [self._taken[row.seq] for row in rows]
                    seconds = regime.draft if name == b"drafter" else regime.verify(len(rows))
                    if hint and isinstance(machine, Verifier):
                        self.simulation.after(seconds / 2, lambda: self._hint(machine, taken))
                case Prefill(seq):
                    seconds, taken = 1e-3, [self._taken[seq]]
            self._busy[name] += seconds
            return seconds, _Outcome(taken) if job.forward is not None else None

        def deliver(to: bytes, message: Message) -> None:
            self._deliver(to, name, message, self._regime.link)

        return Node(self.simulation, machine, execute, deliver)

    def _hint(self, machine: Verifier, taken: list[list[int]]) -> None:
        machine.hinted(_Exit(taken), self.simulation.now)
        self._nodes[b"verifier"].poke()

    def _deliver(self, to: bytes, sender: bytes, message: Message, delay: float) -> None:
        if to in self._nodes:
            self.simulation.after(delay, lambda: self._nodes[to].receive(sender, message))
        elif isinstance(message, Tokens):
            self.times.append((self.simulation.now, len(message.tokens)))
        elif isinstance(message, Finished):
            self.finished.append(message)

    def _keep_alive(self) -> None:
        self._deliver(b"verifier", b"client", Ping("gateway", 1, []), 0.0)
        self.simulation.after(5.0, self._keep_alive)


def chain_bound(regime: Regime) -> float:
    """max over n of tau(n - 1) / T_v(n), tokens a second: no chain can do better."""
    alpha = RANKS[0]
    return max((1 - alpha**n) / (1 - alpha) / regime.verify(n) for n in range(1, WINDOW + 1))


def tree_bound(regime: Regime) -> float:
    """The same with the best tree of n - 1 draft tokens."""
    reaches: list[float] = []
    frontier = [1.0]
    while len(reaches) < WINDOW:
        best = max(frontier)
        frontier.remove(best)
        reaches.append(best)
        frontier += [best * chance for chance in RANKS]
    return max(sum(reaches[:n]) / regime.verify(n) for n in range(1, WINDOW + 1))


def best_gamma(regime: Regime) -> int:
    """The draft length that suits the serial strategy best."""
    alpha = RANKS[0]

    def rate(gamma: int) -> float:
        tokens = (1 - alpha ** (gamma + 1)) / (1 - alpha)
        return tokens / (regime.verify(gamma + 1) + gamma * regime.draft + 2 * regime.link)

    return max(range(1, WINDOW), key=rate)


def _cell(name: str, plan: str, tokens: int, streams: int) -> dict[str, Any]:
    regime = next(regime for regime in REGIMES if regime.name == name)
    bound = chain_bound(regime)
    found = Play(regime, plan, best_gamma(regime), tokens, seed=1).result()
    shared: dict[str, Any] = {}
    if streams > 1:
        together = Play(regime, plan, best_gamma(regime), tokens, seed=1, sequences=streams).result()
        shared[f"x with {streams} streams"] = together.rate / found.rate
    return {
        "regime": name,
        "strategy": plan,
        "tokens/s": found.rate,
        "% of chain bound": 100 * found.rate / bound,
        "+-": 100 * found.interval / bound,
        "% of tree bound": 100 * found.rate / tree_bound(regime),
        "tokens/forward": found.length,
        "verifier busy %": 100 * found.verifier,
        "drafter busy %": 100 * found.drafter,
        "plain %": 100 * found.plain,
        **shared,
    }


def run(
    tokens: int, plans: Sequence[str], names: Sequence[str], streams: int, json_file: Path | None, console: Console
) -> list[dict[str, Any]]:
    """Print percent of the bounds for every regime whose name starts with one of ``names`` (none: all)."""
    chosen = [regime for regime in REGIMES if not names or any(regime.name.startswith(name) for name in names)]
    cells = [(regime.name, plan) for regime in chosen for plan in plans]
    # Cells are simulated, not timed: they may share the machine. Those with the most leaves take longest.
    order = sorted(cells, key=lambda cell: (cell[1] != "ahead", "B=32" not in cell[0]))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        jobs = {cell: pool.submit(_cell, *cell, tokens, streams) for cell in order}
        rows = [jobs[cell].result() for cell in cells]
    report("regimes (simulated)", rows, json_file, console)
    return rows


def draw(file: Path) -> None:
    """Draw the lanes of every strategy on a pair with a 4 ms drafter and a 60 ms verifier."""
    from hetero.bench.plots import lanes

    regime = Regime("", 4e-3, flat(0.060), 1e-3, 8, early=True)
    traces: dict[str, tuple[Recorder, float, float]] = {}
    for plan in NAMES:
        events = Recorder()
        Play(regime, plan, 6, 400, seed=1, trace=events)
        first = next(begin for lane, _, begin, *_ in events.spans if lane == "verifier" and begin > 2.0)
        traces[plan] = (events, first - 0.004, first + 0.4)
    lanes(traces, file)
