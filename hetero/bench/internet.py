"""A hundred verifiers and thirty drafters over the internet, simulated: what users see while machines come and go.

Each verifier has the drafts of two drafters near it; links take 1 to 80 ms, lose and repeat what may be lost. A tenth
of the machines is ten times slower, three drafters lie. Every few seconds one machine leaves, and comes back later.
Every text is compared with the target's own.
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

from hetero.bench.capacity import draft, verify
from hetero.bench.report import report
from hetero.gateway.verifiers.routing import Router
from hetero.placement.agreement import Agreement, assumed
from hetero.workers.decoding.policy.strategy import strategy
from hetero.workers.engines.base import EngineLimits
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.simulation.client import Story
from hetero.workers.simulation.devices import TOKENS, DrawnDevice
from hetero.workers.simulation.links import Link
from hetero.workers.simulation.pair import Setting, SimulatedPair
from hetero.workers.wire.messages import Draft, Finished, Open, Sampling

_ALPHA = 0.8
_SLOW, _SLOWER = 0.1, 10.0  # the share of slow machines, and how much slower they are
_AWAY = (5.0, 20.0)  # seconds a machine stays away
_PLACES = 4  # sequences a verifier decodes at once


@dataclass(frozen=True)
class Crowd:
    """``users`` of each verifier at once; a machine leaves every ``churn`` seconds (0: none does), which is ``noticed``
    so much later; ``odd``: whether some are slow and some lie."""

    name: str
    verifiers: int
    drafters: int
    users: int = 2
    churn: float = 0.0
    noticed: float = 0.5
    odd: bool = False


@dataclass(frozen=True)
class Seen:
    """Seconds between the arrivals of tokens, of all users; tokens a second of each; how many sequences were moved, and
    how many were lost or got another text than the target's; machines that left."""

    gaps: list[float]
    rates: list[float]
    moved: int
    wrong: int
    left: int


def play(crowd: Crowd, tokens: int, seed: int) -> Seen:
    """One schedule."""
    rng, agreement = random.Random(seed), assumed(_ALPHA, seed=1, count=1 << 14)
    one = EngineLimits(TOKENS, tokens + 64, 128, 64, _PLACES)
    two = EngineLimits(TOKENS, tokens + 64, 64, 64, 64, draft_nodes=4096)
    slow = {role: [crowd.odd and rng.random() < _SLOW for _ in range(200)] for role in "vd"}
    near = [sorted(rng.sample(range(crowd.drafters), min(2, crowd.drafters))) for _ in range(crowd.verifiers)]
    links = [[Link(rng.uniform(1e-3, 80e-3), 5e-3, 0.01, 0.01) for _ in range(crowd.verifiers)] for _ in range(200)]

    def device(limits: EngineLimits, seconds: Callable[[int], float], late: bool) -> Callable[[], DrawnDevice]:
        times = _SLOWER if late else 1.0
        return lambda: DrawnDevice(limits, lambda rows: times * seconds(rows), agreement)

    pair = SimulatedPair(
        Setting(
            strategy=strategy("ahead" if crowd.drafters else "off", 0),
            vocabulary=Vocabulary([b"x"] * TOKENS, frozenset()),
            verifiers=[device(one, verify, slow["v"][n]) for n in range(crowd.verifiers)],
            drafters=[device(two, draft, slow["d"][n]) for n in range(crowd.drafters)],
            client_link=Link(20e-3),
            seed=seed,
            coded=False,
            ping=5.0,
            leaves=64,
            route=Router(_PLACES).choose,
            serves=lambda drafter, verifier: drafter in near[verifier],
            link_of=lambda drafter, verifier: links[drafter][verifier],
            twist=lambda told: _lie(told, rng),
            liars=frozenset(range(3)) if crowd.odd else frozenset(),
        )
    )
    left = 0

    def leave() -> None:
        nonlocal left
        name = rng.choice(list(pair.workers))
        if pair[name].alive:
            pair.kill(name, rng.uniform(*_AWAY), crowd.noticed)
            left += 1
        pair.clock.after(rng.expovariate(1 / crowd.churn), leave)

    if crowd.churn:
        pair.clock.after(rng.expovariate(1 / crowd.churn), leave)
    for n in range(1, crowd.users * crowd.verifiers + 1):
        opening = Open(n, 0, [n % TOKENS], [], Sampling(0.8, seed=1000 * seed + n), tokens, [])
        pair.client.ask(opening, b"verifier-0", at=rng.uniform(0.1, 5.0))
    pair.play(3600.0)
    told = list(pair.client.stories.values())
    stories = [one for one in told if isinstance(one.end, Finished) and one.tokens == _text(one, agreement, tokens)]
    return Seen(
        [later - earlier for story in stories for earlier, later in zip(story.times, story.times[1:], strict=False)],
        [(len(story.tokens) - 1) / (story.times[-1] - story.times[0]) for story in stories],
        sum(story.end.stats.resumed_n > 0 for story in stories if isinstance(story.end, Finished)),
        len(told) - len(stories),
        left,
    )


def _text(story: Story, agreement: Agreement, tokens: int) -> list[int]:
    """The target's own (``DrawnDevice``)."""
    ranks, first = agreement.ranks, len(story.opening.prompt)
    return [ranks[(first + n + 7919 * story.opening.sampling.seed) % len(ranks)] for n in range(tokens)]


def _lie(told: Draft, rng: random.Random) -> Draft:
    """A draft of nonsense, said with great confidence."""
    count = rng.randint(1, 12)
    return Draft(
        told.seq,
        told.epoch,
        told.base,
        list(range(-1, count - 1)),
        [rng.randrange(TOKENS) for _ in range(count)],
        [1.0] * count,
        1e-3,
    )


def crowds(verifiers: int, drafters: int) -> list[Crowd]:
    """What is compared."""
    return [
        Crowd("all is well, no drafters", verifiers, 0),
        Crowd("all is well", verifiers, drafters),
        Crowd("one leaves every 3 s, no drafters", verifiers, 0, churn=3.0, odd=True),
        Crowd("one leaves every 3 s", verifiers, drafters, churn=3.0, odd=True),
        Crowd("one leaves every 3 s, noticed after 10 s", verifiers, drafters, churn=3.0, noticed=10.0, odd=True),
    ]


def _row(crowd: Crowd, tokens: int, seeds: int) -> dict[str, Any]:
    seen = [play(crowd, tokens, seed) for seed in range(1, seeds + 1)]

    def tail(share: float) -> float:
        return float(np.mean([np.quantile(one.gaps, share) for one in seen]))

    worst = [float(np.quantile(one.gaps, 0.99)) for one in seen]
    return {
        "crowd": crowd.name,
        "verifiers": crowd.verifiers,
        "drafters": crowd.drafters,
        "tokens/s of a user, median": float(np.mean([np.median(one.rates) for one in seen])),
        "slowest twentieth": float(np.mean([np.quantile(one.rates, 0.05) for one in seen])),
        "ms between, median": 1e3 * tail(0.5),
        "99th": 1e3 * tail(0.99),
        "+-": 1e3 * 1.96 * float(np.std(worst)) / max(1.0, len(worst) - 1) ** 0.5,
        "99.9th": 1e3 * tail(0.999),
        "longest s": max(max(one.gaps) for one in seen),
        "machines left": sum(one.left for one in seen),
        "texts moved": sum(one.moved for one in seen),
        "lost or changed": sum(one.wrong for one in seen),
    }


def run(verifiers: int, drafters: int, tokens: int, seeds: int, json_file: Path | None, console: Console) -> None:
    """Print what users see of each crowd; every text is compared."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_row, crowd, tokens, seeds) for crowd in crowds(verifiers, drafters)]
        rows = [job.result() for job in jobs]
    report("internet (simulated)", rows, json_file, console)
