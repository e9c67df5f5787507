"""A box of eight GPUs, simulated: EasySpec's layer-parallel drafting beside a drafter that has a GPU of its own.

The workers' own state machines on a virtual clock; seconds come from the assumptions below, agreement from the figures
EasySpec gives (4 layers a group cost 7 % of it at most). Nothing of it was measured on such a box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from hetero.bench.report import report
from hetero.placement.agreement import assumed
from hetero.workers.simulation.forecast import Duet, Play

_BANDWIDTH = 0.7 * 2.0e12  # bytes a second that good kernels get of an A100-80's memory
_GROUP = 4  # layers of a group: EasySpec's choice
_LOSS = 0.93  # of the agreement is left by it
_GAMMAS = (2, 3, 4, 5, 7, 10)
_LINK = 3e-5  # seconds one way, within a machine
_SHARED = 1.3  # times as long, where target and drafter want the same GPU at once
_TOKENS = 1500


@dataclass(frozen=True)
class Software:
    """``launch``: least seconds of a layer; ``meet``: seconds of a collective; ``attention``: its share of a layer."""

    name: str
    launch: float
    meet: float
    attention: float


# Kernel by kernel from Python, as EasySpec's own code: 13 kernels a layer, of which attention's are 8. Replayed: bytes.
SOFTWARE = (Software("kernel by kernel", 4.5e-4, 5e-5, 0.6), Software("CUDA graphs", 3e-5, 2e-5, 0.35))


@dataclass(frozen=True)
class Shape:
    """``weights``: bytes at 16 bits; ``alpha``: agreement with Qwen2-72B, assumed."""

    name: str
    layers: int
    weights: float
    alpha: float = 0.0


TARGET = Shape("Qwen2-72B", 80, 145e9)
DRAFTERS = (Shape("0.5B", 24, 1.0e9, 0.68), Shape("7B", 28, 15.2e9, 0.82))


def forward(shape: Shape, gpus: int, software: Software) -> float:
    """Seconds of a forward, tensor-parallel over some GPUs; flat, as memory and launches bound it."""
    layer = max(software.launch, shape.weights / shape.layers / gpus / _BANDWIDTH)
    return shape.layers * (layer + (2 * software.meet if gpus > 1 else 0.0))


def fuzzy(shape: Shape, software: Software) -> float:
    """Seconds of a layer-parallel forward over as many GPUs as a group has layers."""
    layer = max(software.launch, shape.weights / shape.layers / _BANDWIDTH)
    inner = shape.layers - 2
    in_order = 1.0 - software.attention
    return layer * (2 + inner * (in_order + software.attention / _GROUP)) + -(-inner // _GROUP) * software.meet


@dataclass(frozen=True)
class _Plan:
    name: str
    gpus: int  # of the target
    strategy: str
    parallel: bool = False  # guesses by groups of layers
    shared: bool = False  # target and drafter work on one GPU at once


PLANS = (
    _Plan("plain, 8 GPUs", 8, "off"),
    _Plan("in turns, 8 GPUs, drafter on one of them", 8, "serial"),
    _Plan("in turns, 8 GPUs, layers of the drafter on 4 (EasySpec)", 8, "serial", parallel=True),
    _Plan("ahead, 8 GPUs, drafter on one of them", 8, "ahead", shared=True),
    _Plan("plain, 4 GPUs", 4, "off"),
    _Plan("ahead, 4 GPUs, drafter on a fifth", 4, "ahead"),
    _Plan("ahead, 4 GPUs, layers of the drafter on the other 4", 4, "ahead", parallel=True),
)


def duets(plan: _Plan, drafter: Shape, software: Software) -> Iterator[Duet]:
    """What a plan is, for each draft length that is fixed."""
    slower = _SHARED if plan.shared else 1.0
    verify = slower * forward(TARGET, plan.gpus, software)
    exact = slower * forward(drafter, 1, software)
    step = fuzzy(drafter, software) if plan.parallel else exact
    agreement = assumed(drafter.alpha * (_LOSS if plan.parallel else 1.0), seed=1)
    for gamma in _GAMMAS if plan.strategy == "serial" else (0,):
        yield Duet(
            plan.strategy,
            gamma,
            _flat(verify),
            _flat(step) if plan.strategy != "off" else None,
            agreement,
            _LINK,
            calibrate=_flat(exact) if plan.parallel else None,
        )


def _flat(seconds: float) -> Callable[[int], float]:
    return lambda rows: seconds


def _row(software: Software, drafter: Shape, plan: _Plan) -> dict[str, Any]:
    played = [(Play(duet, _TOKENS, seed=1).result(), duet) for duet in duets(plan, drafter, software)]
    best, duet = max(played, key=lambda entry: entry[0].rate)
    return {
        "software": software.name,
        "drafter": drafter.name,
        "plan": plan.name + (f", gamma {duet.gamma}" if duet.gamma else ""),
        "target ms": 1e3 * duet.verify(1),
        "draft ms": 1e3 * duet.draft(1) if duet.draft is not None else 0.0,
        "agreement": round(duet.agreement.alpha, 2) if duet.draft is not None else 0.0,
        "tokens/s": best.rate,
        "+-": best.interval,
        "tokens/forward": best.length,
    }


def run(json_file: Path | None, console: Console) -> list[dict[str, Any]]:
    """Print each plan's tokens a second, and what is won over plain decoding on all GPUs."""
    cases = [(software, drafter, plan) for software in SOFTWARE for drafter in DRAFTERS for plan in PLANS]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        rows = list(pool.map(_row, *zip(*cases, strict=True)))
    plain: dict[str, float] = {}
    for row in rows:
        rate = plain.setdefault(row["software"], row["tokens/s"])
        row["x plain"] = row["tokens/s"] / rate
    report("box (simulated)", rows, json_file, console)
    for software in SOFTWARE:
        for drafter in DRAFTERS:
            own = [row for row in rows if (row["software"], row["drafter"]) == (software.name, drafter.name)]
            best, easy = max(own, key=lambda row: row["tokens/s"]), own[2]
            gain = forward(drafter, 1, software) / fuzzy(drafter, software)
            drafts = f"{software.name}, {drafter.name}: layer-parallel drafts are {gain:.2f} times as fast"
            console.print(
                f"{drafts} (EasySpec: 1.62 at most), {easy['x plain']:.2f} x plain decoding (its best: 4.17); "
                f"the fastest plan is {best['plan']}: {best['x plain']:.2f} x",
                highlight=False,
            )
    return rows
