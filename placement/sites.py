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
    """A device of a described machine. ``memory`` in bytes; ``meet``: seconds in which it adds up its numbers with
    others of its kind in the machine (a collective of a few rows); 0: it cannot."""

    machine: str
    name: str
    memory: int
    speed: Speed
    meet: float = 0.0

    @property
    def kind(self) -> str:
        """cpu, cuda, ..."""
        return self.name.partition(":")[0]

    def __str__(self) -> str:
        return f"{self.machine}/{self.name}"


@dataclass(frozen=True)
class Shape:
    """A model: bytes of its ``weights``, number of ``parameters``, bytes of keys and values of a token, the share of
    the weights a token needs (below 1: a mixture of experts), and its ``layers``."""

    name: str
    weights: int
    parameters: int
    kv_token: int
    active: float = 1.0
    layers: int = 32


@dataclass(frozen=True)
class Demand:
    """What is asked: ``context`` tokens of each of ``streams``."""

    target: Shape
    drafter: Shape | None
    context: int = 8192
    streams: int = 1


Shares = tuple[tuple[Site, float], ...]


@dataclass(frozen=True)
class Proposal:
    """``target``: devices with the share each holds, ``tensor``: of every layer, which they compute together, else of
    the layers, in sequence; ``drafter`` None: there is none; ``memory``: bytes by device; ``link``: seconds one way
    between the roles."""

    target: Shares
    drafter: Site | None
    strategy: str
    gamma: int
    verify: Profile
    draft: Profile | None
    memory: Mapping[Site, int]
    link: float
    tensor: bool = False

    def __str__(self) -> str:
        where = self.where
        if self.drafter is None:
            return f"off: {where}"
        size = f" {self.gamma}" if self.gamma else ""
        return f"{self.strategy}{size}: {where}, drafter {self.drafter}"

    @property
    def where(self) -> str:
        """The target's place."""
        if self.tensor:
            return f"{self.target[0][0].machine}/{self.target[0][0].kind} x {len(self.target)} (tensor)"
        return " + ".join(
            str(site) + (f" ({share:.0%} of its layers)" if share < 1 else "") for site, share in self.target
        )


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
    seen: set[object] = set()
    for site, drafter in product(sites, drafters):
        for target, tensor in _spread(site, drafter, sites, demand):
            alike = sorted(str((_facts(each), share, each is drafter)) for each, share in target)
            if (key := (*alike, tensor, drafter and _facts(drafter))) in seen:
                continue  # of eight GPUs alike, one is as good as another
            seen.add(key)
            memory = _memory(target, drafter, demand)
            short = next((s for s, needed in memory.items() if needed > s.memory), None)
            if short is not None:
                many = f" and {len(target) - 1} more" if len(target) > 1 else ""
                what = f"target on {site}{many}" + (f", drafter on {drafter}" if drafter else "")
                rejected.append(
                    (what, f"needs {memory[short] / 2**30:.1f} GiB of {short}'s {short.memory / 2**30:.1f}")
                )
                continue
            fitting += _with_strategies(target, tensor, drafter, demand, memory, link)
    return fitting, rejected


def _facts(site: Site) -> tuple[object, ...]:
    """What of a device counts."""
    return site.machine, site.kind, site.memory, site.speed, site.meet


def _spread(site: Site, drafter: Site | None, sites: Sequence[Site], demand: Demand) -> Iterator[tuple[Shares, bool]]:
    """Whole on one device; or its first layers there, as many as fit, and the rest on another device of its machine, as
    Dovetail has it (Zhang et al. 2024, section 3.4); or on all its likes, as many as fit on each; or each layer on 2, 4
    or 8 of them at once, the second of the pair: whether so."""
    yield ((site, 1.0),), False
    whole = _needed(demand.target, demand)

    def room(each: Site) -> float:
        taken = _needed(demand.drafter, demand) + _BUFFERS if drafter is each and demand.drafter is not None else 0
        return max(0.0, (each.memory - taken - _BUFFERS) / whole)

    share = room(site)
    beside = [each for each in sites if each is not site and each.machine == site.machine]
    for other in beside:
        if 0.02 < share < 1:
            yield ((site, share), (other, 1.0 - share)), False
    others = sorted((each for each in beside if each.kind == site.kind), key=lambda each: -each.speed.bandwidth)
    alike = [site, *others]
    shares, left = [], 1.0
    for each in alike:
        shares.append((each, min(left, room(each))))
        left -= shares[-1][1]
        if left <= 0:
            if len(shares) > 2:
                yield tuple(shares), False
            break
    first = next(each for each in sites if each.machine == site.machine and each.kind == site.kind)
    for count in (2, 4, 8):
        if site is first and site.meet and count <= len(alike):
            yield tuple((each, 1.0 / count) for each in alike[:count]), True


def _with_strategies(
    target: Shares,
    tensor: bool,
    drafter: Site | None,
    demand: Demand,
    memory: Mapping[Site, int],
    link: Callable[[str, str], float],
) -> Iterator[Proposal]:
    together = _together([site for site, _ in target], demand.target.layers)
    each = ((together, 1.0),) if tensor else tuple((site.speed, share) for site, share in target)
    parts = [(_estimate(demand.target, speed, demand), share) for speed, share in each]
    verify = Profile(
        {rows: sum(part(rows) * share for part, share in parts) for rows in parts[0][0].forward},
        prefill=1.0 / sum(share / part.prefill for part, share in parts),
        depth=demand.context // 2,
    )
    if drafter is None or demand.drafter is None:
        yield Proposal(target, None, "off", 0, verify, None, memory, 0.0, tensor)
        return
    draft = _estimate(demand.drafter, drafter.speed, demand)
    way = link(target[0][0].machine, drafter.machine)
    for gamma in GAMMAS:
        yield Proposal(target, drafter, "serial", gamma, verify, draft, memory, way, tensor)
    if all(site is not drafter for site, _ in target):
        for strategy in ("pearl", "ahead"):
            yield Proposal(target, drafter, strategy, 0, verify, draft, memory, way, tensor)


def _together(sites: Sequence[Site], layers: int) -> Speed:
    """Of devices that share every layer: each is as fast as the slowest, and they meet after attention and after the
    MLP (Shoeybi et al. 2019, Megatron-LM, section 3)."""
    speeds = [site.speed for site in sites]
    bandwidth, operations = (
        len(sites) * min(each) for each in zip(*((s.bandwidth, s.operations) for s in speeds), strict=True)
    )
    meeting = 2 * layers * max(site.meet for site in sites)
    return Speed(bandwidth, operations, max(speed.overhead for speed in speeds) + meeting)


def _estimate(shape: Shape, speed: Speed, demand: Demand) -> Profile:
    return estimate(shape.weights, shape.parameters, shape.kv_token, speed, shape.active, demand.context // 2)


def _needed(shape: Shape, demand: Demand) -> int:
    return shape.weights + shape.kv_token * demand.context * demand.streams


def _memory(target: Shares, drafter: Site | None, demand: Demand) -> dict[Site, int]:
    """Bytes by device: weights, caches, buffers of both roles."""
    found: dict[Site, int] = {}
    for site, share in target:
        found[site] = int(_needed(demand.target, demand) * share) + _BUFFERS
    if drafter is not None and demand.drafter is not None:
        found[drafter] = found.get(drafter, 0) + _needed(demand.drafter, demand) + _BUFFERS
    return found
