"""Strategies against the verifier bound on the simulator: the workers' own state machines, engines of given speed.

Acceptance is iid: at every position the target's token is the drafter's first choice with chance 0.8, its second
with 0.1, and so on. Nothing runs but the machines; seconds are virtual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from hetero.bench.report import report
from hetero.placement.agreement import LATER, assumed
from hetero.workers.decoding.policy.strategy import NAMES
from hetero.workers.decoding.trace import Trace
from hetero.workers.simulation.forecast import Duet, Play
from hetero.workers.simulation.recorder import Recorder

WINDOW = 16  # rows up to which checking costs the same
ALPHA = 0.8
AGREEMENT = assumed(ALPHA, seed=1, count=1 << 16)
CHANCES = (ALPHA, *((1.0 - ALPHA) * share for share in LATER))


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


def play(
    regime: Regime, name: str, gamma: int, tokens: int, seed: int, sequences: int = 1, trace: Trace | None = None
) -> Play:
    """One regime under one strategy, until ``tokens`` are out."""
    fixed = gamma if name in ("serial", "mirror") else 0
    duet = Duet(
        name,
        fixed,
        regime.verify,
        lambda rows: regime.draft,
        AGREEMENT,
        regime.link,
        WINDOW * sequences,
        regime.leaves,
        regime.early,
    )
    return Play(duet, tokens, seed, sequences, trace)


def chain_bound(regime: Regime) -> float:
    """max over n of tau(n - 1) / T_v(n), tokens a second: no chain can do better."""
    alpha = ALPHA
    return max((1 - alpha**n) / (1 - alpha) / regime.verify(n) for n in range(1, WINDOW + 1))


def tree_bound(regime: Regime) -> float:
    """The same with the best tree of n - 1 draft tokens."""
    reaches: list[float] = []
    frontier = [1.0]
    while len(reaches) < WINDOW:
        best = max(frontier)
        frontier.remove(best)
        reaches.append(best)
        frontier += [best * chance for chance in CHANCES]
    return max(sum(reaches[:n]) / regime.verify(n) for n in range(1, WINDOW + 1))


def best_gamma(regime: Regime) -> int:
    """The draft length that suits the serial strategy best."""
    alpha = ALPHA

    def rate(gamma: int) -> float:
        tokens = (1 - alpha ** (gamma + 1)) / (1 - alpha)
        return tokens / (regime.verify(gamma + 1) + gamma * regime.draft + 2 * regime.link)

    return max(range(1, WINDOW), key=rate)


def _cell(name: str, chosen: str, tokens: int, streams: int) -> dict[str, Any]:
    regime = next(regime for regime in REGIMES if regime.name == name)
    bound = chain_bound(regime)
    found = play(regime, chosen, best_gamma(regime), tokens, seed=1).result()
    shared: dict[str, Any] = {}
    if streams > 1:
        together = play(regime, chosen, best_gamma(regime), tokens, seed=1, sequences=streams).result()
        shared[f"x with {streams} streams"] = together.rate / found.rate
    return {
        "regime": name,
        "strategy": chosen,
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
    tokens: int, strategies: Sequence[str], names: Sequence[str], streams: int, json_file: Path | None, console: Console
) -> list[dict[str, Any]]:
    """Print percent of the bounds for every regime whose name starts with one of ``names`` (none: all)."""
    chosen = [regime for regime in REGIMES if not names or any(regime.name.startswith(name) for name in names)]
    cells = [(regime.name, name) for regime in chosen for name in strategies]
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
    for name in NAMES:
        events = Recorder()
        play(regime, name, 6, 400, seed=1, trace=events)
        first = next(begin for lane, _, begin, *_ in events.spans if lane == "verifier" and begin > 2.0)
        traces[name] = (events, first - 0.004, first + 0.4)
    lanes(traces, file)
