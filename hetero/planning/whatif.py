"""What hardware that is only described would do, with models of which only sizes are known.

Devices are as fast as the roofline has it (``placement.profile.estimate``); the simulator plays the strategies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta, structs
from rich.console import Console
from rich.table import Table

from hetero.cluster.inventory import take_inventory
from hetero.data import GALLERY, SHAPES
from hetero.errors import ConfigError
from hetero.placement.agreement import assumed
from hetero.placement.device import spans
from hetero.placement.profile import Speed
from hetero.placement.sites import Demand, Proposal, Shape, Site, proposals, rank
from hetero.workers.simulation.forecast import Duet, Play

_TOKENS = 400  # of a forecast
_SHOWN = 15  # plans
_PROMPT = 512  # tokens, whose time is reported
_ROWS = 16  # of a window
_BITS = {"4": 4.85, "5": 5.7, "6": 6.6, "8": 8.5, "16": 16.0}  # of a weight in files of so many: Q4_K_M, ..., F16
_NEAR = 1.5e-4  # seconds one way within a machine
_Positive = Annotated[float, Meta(gt=0.0, le=1e6)]
_Share = Annotated[float, Meta(gt=0.0, lt=1.0)]


class _Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    memory_gib: _Positive
    bandwidth_gbs: _Positive
    tera_operations: _Positive
    overhead_ms: Annotated[float, Meta(ge=0.0, le=1e3)] = 0.3
    collective_us: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0  # with its likes in the machine; 0: it has no such path


class _Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    billions: _Positive
    layers: Annotated[int, Meta(gt=0, le=1000)]
    kv_heads: Annotated[int, Meta(gt=0, le=1000)]
    head: Annotated[int, Meta(gt=0, le=4096)]
    active: float = 0.0


class Hardware(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A described cluster. Operations are multiply-adds a second, in units of 10^12; ``target``, ``drafter``: models as
    SIZE:BITS."""

    machines: dict[str, dict[str, _Device]]
    target: str = "8b:4"
    drafter: str = "1b:4"
    round_trip_ms: Annotated[float, Meta(ge=0.0, le=1e4)] = 0.5
    agreement: _Share = 0.75
    context: Annotated[int, Meta(gt=0, le=1 << 20)] = 8192

    def link(self, one: str, two: str) -> float:
        """Seconds one way between two machines."""
        return _NEAR if one == two else _NEAR + self.round_trip_ms / 2e3

    @property
    def sites(self) -> list[Site]:
        """All devices."""
        return [
            Site(
                machine,
                name,
                int(own.memory_gib * 2**30),
                Speed(own.bandwidth_gbs * 1e9, own.tera_operations * 1e12, own.overhead_ms * 1e-3),
                own.collective_us * 1e-6,
            )
            for machine, devices in self.machines.items()
            for name, own in devices.items()
        ]


def read_hardware(name: str) -> Hardware:
    """A file, or one of the gallery by its name. Raises ConfigError."""
    file = Path(name) if Path(name).is_file() else GALLERY / f"{name}.yaml"
    if not file.is_file():
        have = ", ".join(sorted(each.stem for each in GALLERY.glob("*.yaml")))
        raise ConfigError(f"cluster: {name} is no file, nor one of {have}")
    try:
        found = msgspec.convert(yaml.safe_load(file.read_text()), Hardware)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cluster: {file.name}: {str(error).splitlines()[0]}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"cluster: {file.name}: {error}") from None
    if not found.sites:
        raise ConfigError(f"cluster: {file.name}: machines have no devices")
    return found


def shape_of(name: str) -> Shape:
    """The shape of a model called SIZE:BITS, 8b:4. Raises ConfigError."""
    known: dict[str, _Shape] = msgspec.convert(yaml.safe_load(SHAPES.read_text()), dict[str, _Shape])
    size, _, bits = name.lower().partition(":")
    own = known.get(size)
    if own is None or (bits or "4") not in _BITS:
        raise ConfigError(f"model {name!r}: write SIZE:BITS, sizes {', '.join(known)}, bits {', '.join(_BITS)}")
    parameters = own.billions * 1e9
    weights = int(parameters * _BITS[bits or "4"] / 8)
    kv = 2 * own.layers * own.kv_heads * own.head * 2
    return Shape(name, weights, int(parameters), kv, own.active / own.billions if own.active else 1.0, own.layers)


def predict(proposal: Proposal, agreement: float, streams: int = 1) -> float:
    """Tokens a second of a proposal, by the workers' own state machines."""
    duet = Duet(
        proposal.strategy,
        proposal.gamma,
        proposal.verify,
        proposal.draft,
        assumed(agreement),
        proposal.link,
        rows=_ROWS * streams,
    )
    return Play(duet, max(100, _TOKENS // streams), seed=1, streams=streams).result(5).rate


def plans(hardware: Hardware, streams: int = 1) -> tuple[list[tuple[float, Proposal]], list[tuple[str, str]]]:
    """The ranked plans of described hardware, and what does not fit. Raises ConfigError."""
    demand = _demand(hardware, streams)
    fitting, rejected = proposals(hardware.sites, demand, hardware.link)
    if not fitting:
        raise ConfigError(f"target: {hardware.target} fits nowhere: {rejected[0][1]}")
    workers = len(take_inventory().topology.fast)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        rates = list(pool.map(_rate, [(proposal, hardware.agreement, streams) for proposal in fitting]))
    known = {id(proposal): rate for proposal, rate in zip(fitting, rates, strict=True)}
    return rank(fitting, lambda proposal: known[id(proposal)]), rejected


def _demand(hardware: Hardware, streams: int = 1) -> Demand:
    drafter = shape_of(hardware.drafter) if hardware.drafter not in ("", "none") else None
    return Demand(shape_of(hardware.target), drafter, hardware.context, streams)


def _rate(asked: tuple[Proposal, float, int]) -> float:
    return predict(*asked)


def changed(hardware: Hardware, models: tuple[str, str] | None, agreement: float | None, context: int = 0) -> Hardware:
    """The same with other models, which agree otherwise, and another context, where those are given."""
    if context:
        hardware = structs.replace(hardware, context=context)
    if models is not None:
        hardware = structs.replace(hardware, target=models[0], drafter=models[1])
    return hardware if agreement is None else structs.replace(hardware, agreement=agreement)


def show(hardware: Hardware, as_json: bool, plot: Path | None, console: Console) -> None:
    """Print the plans, and draw what they hang on. Raises ConfigError."""
    ranked, rejected = plans(hardware)
    if plot is not None:
        from hetero.bench.plots import sweeps

        sweeps(curves(hardware), f"{hardware.target} with {hardware.drafter}", plot)
    plain = max((rate for rate, proposal in ranked if proposal.drafter is None), default=0.0)
    if as_json:
        rows = [_row(rate, proposal, plain) for rate, proposal in ranked]
        console.print_json(data={"plans": rows, "rejected": [{"plan": what, "why": why} for what, why in rejected]})
        return
    table = Table(title=f"{hardware.target} with {hardware.drafter}, agreement {hardware.agreement:.2f} (assumed)")
    for name in ("strategy", "target", "drafter"):
        table.add_column(name, overflow="fold")
    for name in ("tokens/s", "x plain", "first", "GiB"):
        table.add_column(name, justify="right", overflow="fold")
    for rate, proposal in ranked[:_SHOWN]:
        row = _row(rate, proposal, plain)
        gib = "\n".join(_alike(row["memory_gib"]))
        name = row["strategy"] + (f" {row['gamma']}" if row["gamma"] else "")
        first = f"{row['first_token_s']:.1f} s"
        table.add_row(name, row["target"], row["drafter"] or "-", f"{rate:.1f}", f"{row['x_plain']:.2f}", first, gib)
    console.print(table)
    console.print("estimated from bytes, operations and an assumed agreement; run by the simulator, not measured")
    for what, why in dict(rejected).items():
        console.print(f"does not fit: {what}: {why}", highlight=False, markup=False)


def _alike(memory: Mapping[str, float]) -> list[str]:
    """Devices with the GiB of each, those of as many in a line."""
    found: dict[tuple[str, float], list[str]] = {}
    for name, size in memory.items():
        kind, _, number = name.partition(":")
        found.setdefault((kind, round(size, 1)), []).append(number)
    lines = []
    for (kind, size), numbers in found.items():
        own = spans([int(n) for n in numbers]) if all(n.isdecimal() for n in numbers) else ",".join(numbers)
        lines.append(f"{kind}{':' if own else ''}{own} {size:.1f}")
    return lines


def curves(hardware: Hardware) -> dict[str, list[tuple[float, float, float]]]:
    """For a picture: by what is varied, (its value, the best plan's tokens a second, plain decoding's)."""
    gpu = next((site for site in hardware.sites if site.name != "cpu"), None)

    def best(changed: Hardware) -> tuple[float, float]:
        fitting, _ = proposals(changed.sites, _demand(changed), changed.link)
        kept = [p for p in fitting if p.strategy in ("off", "ahead")]
        rates = [(predict(proposal, changed.agreement), proposal.drafter is None) for proposal in kept]
        return max((rate for rate, _ in rates), default=0.0), max((rate for rate, alone in rates if alone), default=0.0)

    def varied(values: list[float], change: Callable[[float], Hardware]) -> list[tuple[float, float, float]]:
        return [(value, *best(change(value))) for value in values]

    found = {"agreement": varied([0.4, 0.5, 0.6, 0.7, 0.8, 0.9], lambda a: structs.replace(hardware, agreement=a))}
    if len(hardware.machines) > 1:
        trips = [0.2, 1.0, 5.0, 20.0, 50.0, 100.0, 200.0]
        found["round trip, ms"] = varied(trips, lambda ms: structs.replace(hardware, round_trip_ms=ms))
    if gpu is not None:
        sizes = [2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0]
        found[f"GiB of {gpu}"] = varied(sizes, lambda gib: _resized(hardware, gpu, gib))
    return found


def _resized(hardware: Hardware, site: Site, gib: float) -> Hardware:
    machines: dict[str, Mapping[str, _Device]] = dict(hardware.machines)
    devices = dict(machines[site.machine])
    devices[site.name] = structs.replace(devices[site.name], memory_gib=gib)
    return structs.replace(hardware, machines={**machines, site.machine: devices})


def _row(rate: float, proposal: Proposal, plain: float) -> dict[str, Any]:
    return {
        "strategy": proposal.strategy,
        "gamma": proposal.gamma,
        "target": proposal.where,
        "drafter": str(proposal.drafter) if proposal.drafter is not None else None,
        "tokens_per_second": round(rate, 2),
        "x_plain": round(rate / plain, 3) if plain else 0.0,
        "first_token_s": round(_PROMPT / proposal.verify.prefill, 2),
        "memory_gib": {str(site): round(size / 2**30, 2) for site, size in proposal.memory.items()},
    }
