"""How fast a drafter's forwards are on its device, by engine; on a GPU with CUDA graphs and without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from msgspec.structs import replace
from rich.console import Console

from hetero.bench.quality import held_out
from hetero.bench.report import report
from hetero.bench.rows import CONTEXT, PREFIX, WIDTHS, Times, timed
from hetero.bench.speed import find
from hetero.errors import ConfigError
from hetero.inventory import take_inventory
from hetero.plan import torch_dtype
from placement.device import Device, check_device, parse_device
from workers.engines.accelerators import llama_kinds, torch_kinds
from workers.engines.base import Engine
from workers.engines.load import load_engine
from workers.engines.octet.library import why_not
from workers.pinning import pin
from workers.spec import WorkerSpec, read_spec
from workers.tokenizer import load_tokenizer

_PLAIN, _GRAPHS = "torch, kernel by kernel", "torch, CUDA graphs"


def run(draft: str, device_name: str, repeats: int, json_file: Path | None, console: Console) -> None:
    """Print the milliseconds of a forward of n rows of each engine that can run the drafter on the device."""
    asked = parse_device(device_name)
    if asked.node is not None:
        alone = Device(asked.kind, asked.indices)
        raise ConfigError(f"device {asked}: run this benchmark on that machine, with --device {alone}")
    device = check_device(asked, take_inventory())
    path = find(draft, "drafter")
    specs = {name: spec.plain() for name, spec in _specs(path, device).items()}
    if not specs:
        raise ConfigError(f"device {device}: no installed engine runs {path.name} on it (hetero doctor says more)")
    # A process of its own: it is pinned, and may see that one GPU only.
    command = [sys.executable, "-m", "hetero.bench.drafter", json.dumps(specs), str(repeats)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    times: dict[str, dict[str, float]] = json.loads(found.stdout)
    rows: list[dict[str, Any]] = [{"engine": name, **own} for name, own in times.items()]
    report(f"drafter: milliseconds of n rows, {draft} on {device}", rows, json_file, console)
    if _GRAPHS in times:
        gain = times[_PLAIN]["T(1)"] / times[_GRAPHS]["T(1)"]
        console.print(f"with CUDA graphs torch's single row is {gain:.2f} x as fast", highlight=False)


def _specs(path: Path, device: Device) -> dict[str, WorkerSpec]:
    common: dict[str, Any] = {"strategy": "ahead", "gamma": 0, "sequences": 1, "context": CONTEXT}
    if device.is_cpu:
        common["cores"] = list(device.indices)
    else:
        common |= {"gpu": device.indices[0], "kind": device.kind}
    torch = WorkerSpec("drafter", str(path), "torch", dtype=torch_dtype(device, False), **common)
    found: dict[str, WorkerSpec] = {}
    if device.is_cpu or device.kind in torch_kinds():
        found[_PLAIN] = torch
    if device.kind in ("cuda", "rocm") and found:
        found[_GRAPHS] = torch
    if path.suffix == ".gguf" and (device.is_cpu or device.kind in llama_kinds()):
        found["llama_cpp"] = replace(torch, engine="llama_cpp")
    if device.is_cpu and why_not() is None:
        found["octet"] = replace(torch, engine="octet")
    return found


def measure(specs: dict[str, WorkerSpec], repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds by engine and T(n); to be called in a fresh process."""
    first = next(iter(specs.values()))
    pin(first.cores, first.gpu, first.kind)
    engines: dict[str, Engine] = {name: load_engine(spec, graphs=name != _PLAIN) for name, spec in specs.items()}
    tokens = held_out(load_tokenizer(first.path), PREFIX + max(WIDTHS))
    times: Times = {}
    for _ in timed(engines, tokens, repeats, times):
        pass
    if _GRAPHS in engines and not getattr(engines[_GRAPHS], "replays", False):
        del times[_GRAPHS]  # a warning has said why
    return {name: {f"T({n})": 1e3 * median(own[n]) for n in WIDTHS} for name, own in times.items()}


if __name__ == "__main__":
    print(json.dumps(measure({k: read_spec(v) for k, v in json.loads(sys.argv[1]).items()}, int(sys.argv[2]))))
