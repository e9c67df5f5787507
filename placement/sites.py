"""Plans for hardware that is only described: who fits where, how fast by the roofline. The predictor is handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from hetero.placement.candidates import GAMMAS
from hetero.placement.profile import Profile, Speed, estimate

_BUFFERS = 512 << 20  # bytes that an engine takes beside weights and cache


@dataclass(frozen=True)
class Site:
    """A device of a described machine. ``memory`` in bytes."""

    machine: str
    name: str
    memory: int
    speed: Speed

    def __str__(self) -> str:
        return f"{self.machine}/{self.name}"


@dataclass(frozen=True)
class Shape:
    """A model: bytes of its ``weights``, number of ``parameters``, bytes of keys and values of a token, and the share
    of the weights a token needs (below 1: a mixture of experts)."""

    name: str
    weights: int
    parameters: int
    kv_token: int
    active: float = 1.0


@dataclass(frozen=True)
class Demand:
    """What is asked: ``context`` tokens of each of ``streams``."""

    target: Shape
    drafter: Shape | None
    context: int = 8192
    streams: int = 1


@dataclass(frozen=True)
class Proposal:
    """``target``: devices with the share of its layers each holds; ``drafter`` None: there is none; ``memory``: bytes
    by device; ``link``: seconds one way between the roles."""

    target: tuple[tuple[Site, float], ...]
    drafter: Site | None
    strategy: str
    gamma: int
    verify: Profile
    draft: Profile | None
    memory: Mapping[Site, int]
    link: float

    def __str__(self) -> str:
        where = " + ".join(
            str(site) + (f" ({share:.0%} of its layers)" if share < 1 else "") for site, share in self.target
        )
        if self.drafter is None:
            return f"off: {where}"
        size = f" {self.gamma}" if self.gamma else ""
        return f"{self.strategy}{size}: {where}, drafter {self.drafter}"


Predictor = Callable[[Proposal], float]  # tokens a second


def rank(proposals: Sequence[Proposal], predict: Predictor) -> list[tuple[float, Proposal]]:
    """The fastest first; of equals the one without a drafter."""
    found = [(predict(proposal), proposal) for proposal in proposals]
    return sorted(found, key=lambda entry: (-entry[0], entry[1].drafter is not None))


def proposals(
    sites: Sequence[Site], demand: Demand, link: Callable[[str, str], float]
) -> tuple[list[Proposal], list[tuple[str, str]]]:
    """What fits, and what does not with the reason. ``link``: seconds one way between two machines."""
    fitting: list[Proposal] = []
    rejected: list[tuple[str, str]] = []
    drafters: list[Site | None] = [None, *(sites if demand.drafter is not None else ())]
    for site, drafter in product(sites, drafters):
        for target in _spread(site, drafter, sites, demand):
            memory = _memory(target, drafter, demand)
            short = next((s for s, needed in memory.items() if needed > s.memory), None)
            if short is not None:
                what = f"target on {site}" + (f", drafter on {drafter}" if drafter else "")
                rejected.append(
                    (what, f"needs {memory[short] / 2**30:.1f} GiB of {short}'s {short.memory / 2**30:.1f}")
                )
                continue
            fitting += _with_strategies(target, drafter, demand, memory, link)
    return fitting, rejected


def _spread(
    site: Site, drafter: Site | None, sites: Sequence[Site], demand: Demand
) -> Iterator[tuple[tuple[Site, float], ...]]:
    """Whole on one device; or its first layers there, as many as fit, and the rest on another device of its machine, as
    Dovetail has it (Zhang et al. 2024, section 3.4)."""
    yield ((site, 1.0),)
    whole = _needed(demand.target, demand)
    taken = _needed(demand.drafter, demand) + _BUFFERS if drafter is site and demand.drafter is not None else 0
    share = (site.memory - taken - _BUFFERS) / whole
    for other in sites:
        if other is not site and other.machine == site.machine and 0.02 < share < 1:
            yield ((site, share), (other, 1.0 - share))


def _with_strategies(
    target: tuple[tuple[Site, float], ...],
    drafter: Site | None,
    demand: Demand,
    memory: Mapping[Site, int],
    link: Callable[[str, str], float],
) -> Iterator[Proposal]:
    parts = [(_estimate(demand.target, site.speed, demand), share) for site, share in target]
    verify = Profile(
        {rows: sum(part(rows) * share for part, share in parts) for rows in parts[0][0].forward},
        prefill=1.0 / sum(share / part.prefill for part, share in parts),
        depth=demand.context // 2,
    )
    if drafter is None or demand.drafter is None:
        yield Proposal(target, None, "off", 0, verify, None, memory, 0.0)
        return
    draft = _estimate(demand.drafter, drafter.speed, demand)
    way = link(target[0][0].machine, drafter.machine)
    for gamma in GAMMAS:
        yield Proposal(target, drafter, "serial", gamma, verify, draft, memory, way)
    if all(site is not drafter for site, _ in target):
        for strategy in ("pearl", "ahead"):
            yield Proposal(target, drafter, strategy, 0, verify, draft, memory, way)


def _estimate(shape: Shape, speed: Speed, demand: Demand) -> Profile:
    return estimate(shape.weights, shape.parameters, shape.kv_token, speed, shape.active, demand.context // 2)


def _needed(shape: Shape, demand: Demand) -> int:
    return shape.weights + shape.kv_token * demand.context * demand.streams


def _memory(target: tuple[tuple[Site, float], ...], drafter: Site | None, demand: Demand) -> dict[Site, int]:
    """Bytes by device: weights, caches, buffers of both roles."""
    found: dict[Site, int] = {}
    for site, share in target:
        found[site] = int(_needed(demand.target, demand) * share) + _BUFFERS
    if drafter is not None and demand.drafter is not None:
        found[drafter] = found.get(drafter, 0) + _needed(demand.drafter, demand) + _BUFFERS
    return found
