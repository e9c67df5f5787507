"""How many people can be served at a speed they can read at: one drafter shared by several CPU targets, simulated.

A consumer GPU (a 0.5B drafter: 4 ms a step of up to 16 leaves) beside 1 to 8 CPU targets (a 7B model at 4 bits: 60 ms a
token, rows up to eight at little more, then in proportion), and the same drafter at the edge, behind a link. Acceptance
is iid, as in ``bench regimes``. The router is the gateway's own. Seconds are virtual.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from hetero.bench.report import report
from hetero.gateway.verifiers.routing import Router
from hetero.placement.agreement import assumed
from hetero.workers.decoding.policy.strategy import strategy
from hetero.workers.engines.base import EngineLimits
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.simulation.devices import TOKENS, DrawnDevice
from hetero.workers.simulation.links import Link
from hetero.workers.simulation.pair import Setting, SimulatedPair
from hetero.workers.wire.messages import Open, Sampling

READ = 10.0  # tokens a second that everybody wants
_SLOWEST = 0.05  # of them may have less
_ALPHA, _GAMMA = 0.8, 4
_STEP, _LEAVES = 4e-3, 16
_ROWS, _SECONDS = (1, 4, 8, 16, 32, 64), (0.060, 0.066, 0.078, 0.118, 0.215, 0.415)
_SPREAD = 3.0  # seconds over which they begin
_MOST = 64  # clients of one verifier that are tried


def verify(rows: int) -> float:
    """Seconds of a target's forward."""
    return float(np.interp(rows, _ROWS, _SECONDS)) * max(1.0, rows / _ROWS[-1])


def draft(rows: int) -> float:
    """Seconds of a drafter's."""
    return _STEP * max(1.0, rows / _LEAVES)


@dataclass(frozen=True)
class Site:
    """``verifiers`` targets and ``drafters`` that serve them all, behind links of ``link`` seconds."""

    verifiers: int
    drafters: int
    link: float = 1e-4
    name: str = "ahead"


@dataclass(frozen=True)
class Served:
    """Tokens a second of the slowest twentieth of clients and of all together; busy shares of the devices."""

    slowest: float
    together: float
    verifier: float
    drafter: float
    speculated: float


def serve(site: Site, clients: int, tokens: int, seed: int = 0) -> Served:
    """So many clients of each verifier, each of whom wants ``tokens``."""
    rng, agreement = random.Random(seed), assumed(_ALPHA, seed=1, count=1 << 14)
    total = clients * site.verifiers
    context = tokens + 64
    one = EngineLimits(TOKENS, context, 128, 64, clients)
    two = EngineLimits(TOKENS, context, 64, 64, total, draft_nodes=8192)

    def device(limits: EngineLimits, seconds: Callable[[int], float]) -> Callable[[], DrawnDevice]:
        return lambda: DrawnDevice(limits, seconds, agreement)

    pair = SimulatedPair(
        Setting(
            strategy=strategy(site.name if site.drafters else "off", 0),
            vocabulary=Vocabulary([b"x"] * TOKENS, frozenset()),
            verifiers=[device(one, verify)] * site.verifiers,
            drafters=[device(two, draft)] * site.drafters,
            link=Link(site.link),
            coded=False,
            ping=5.0,
            leaves=64,
            route=Router(clients).choose,
        )
    )
    for n in range(1, total + 1):
        opening = Open(n, 0, [n % TOKENS], [], Sampling(0.8, seed=1000 * seed + n), tokens, [])
        pair.client.ask(opening, b"verifier-0", at=rng.uniform(0.1, _SPREAD))
    pair.play()
    ends = [end.stats for end in pair.client.finished]
    rates = [1e3 * (one.predicted_n - 1) / one.predicted_ms for one in ends]
    busy = {name: worker.device.busy / pair.clock.now for name, worker in pair.workers.items()}  # type: ignore[attr-defined]
    drafters = [share for name, share in busy.items() if name.startswith(b"drafter")]
    output = sum(one.predicted_n for one in ends)
    return Served(
        float(np.quantile(rates, _SLOWEST)),
        output / pair.clock.now,
        float(np.mean([share for name, share in busy.items() if name.startswith(b"verifier")])),
        float(np.mean(drafters)) if drafters else 0.0,
        1.0 - sum(one.plain_n for one in ends) / output if drafters else 0.0,
    )


def capacity(site: Site, tokens: int) -> tuple[int, Served]:
    """Most clients of each verifier who can all read at READ tokens a second; 0: not even one."""
    found, good, bad = serve(site, 1, tokens), 0, _MOST + 1
    tried = {1: found}
    if found.slowest < READ:
        return 0, found
    good = 1
    while bad - good > 1:
        clients = min(2 * good, (good + bad) // 2)
        tried[clients] = serve(site, clients, tokens)
        good, bad = (clients, bad) if tried[clients].slowest >= READ else (good, clients)
    return good, tried[good]


SITES = (
    *(Site(n, 0) for n in (1,)),
    *(Site(n, 1) for n in (1, 2, 4, 8)),
    *(Site(8, n) for n in (2,)),
    *(Site(4, 1, link) for link in (10e-3, 50e-3)),
)


def _row(site: Site, tokens: int) -> dict[str, Any]:
    clients, served = capacity(site, tokens)
    return {
        "CPU targets": site.verifiers,
        "GPU drafters": site.drafters,
        "link ms": 1e3 * site.link,
        "clients a target": clients,
        "clients": clients * site.verifiers,
        "tokens/s of the slowest": served.slowest,
        "tokens/s together": served.together,
        "verifier busy %": 100 * served.verifier,
        "drafter busy %": 100 * served.drafter,
        "speculated %": 100 * served.speculated,
    }


def run(tokens: int, targets: int, json_file: Path | None, console: Console) -> list[dict[str, Any]]:
    """Print the capacity of each site of up to so many ``targets``, against that of targets alone."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_row, site, tokens) for site in SITES if site.verifiers <= targets]
        rows = [job.result() for job in jobs]
    alone = rows[0]["clients a target"]
    for row in rows:
        row["x alone"] = row["clients a target"] / max(1, alone)
    report(f"capacity (simulated; each reads at {READ:.0f} tokens/s)", rows, json_file, console)
    console.print(
        f"Drafting on a device of its own instead of the verifier's would bring 1 + gamma t_d / t_v = "
        f"{1 + _GAMMA * _STEP / verify(1):.2f} times the tokens of drafting in turns (gamma {_GAMMA}).",
        highlight=False,
    )
    return rows
