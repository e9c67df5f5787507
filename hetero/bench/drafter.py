"""How fast a drafter's forwards are on its device, by engine; on a GPU with CUDA graphs and without."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from hetero.bench.quality import held_out
from hetero.bench.report import report
from hetero.bench.rows import CONTEXT, PREFIX, WIDTHS, Times, timed
from hetero.bench.speed import find
from hetero.cluster.inventory import take_inventory
from hetero.errors import ConfigError
from hetero.placement.device import Device, check_device, parse_device
from hetero.workers.engines.base import Engine
from hetero.workers.engines.registry import ENGINES, find_engine, torch_dtype
from hetero.workers.models.forms import GGUF, SAFETENSORS
from hetero.workers.models.tokenizer import load_tokenizer
from hetero.workers.runtime.loading import settings_of
from hetero.workers.runtime.pinning import pin
from hetero.workers.runtime.spec import WorkerSpec, read_spec

_PLAIN, _GRAPHS = "torch", "torch, CUDA graphs"


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
    command = [sys.executable, "-P", "-m", "hetero.bench.drafter", json.dumps(specs), str(repeats)]
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
        common |= {"gpus": list(device.indices), "kind": device.kind}
    common["dtype"] = torch_dtype(device.kind, False)
    form = GGUF if path.is_file() else SAFETENSORS
    found: dict[str, WorkerSpec] = {}
    for entry in ENGINES.values():
        if form in entry.formats and entry.objection(device.kind, here=True) is None:
            found[entry.name] = WorkerSpec("drafter", str(path), entry.name, **common)
    if device.kind in ("cuda", "rocm") and "torch" in found:
        found[_GRAPHS] = found["torch"]
    return found


def measure(specs: dict[str, WorkerSpec], repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds by engine and T(n); to be called in a fresh process."""
    first = next(iter(specs.values()))
    pin(first.cores, first.gpus, first.kind)
    engines: dict[str, Engine] = {}
    for name, spec in specs.items():
        settings = dataclasses.replace(settings_of(spec), graphs=name == _GRAPHS)
        engines[name] = find_engine(spec.engine).load(settings)
    tokens = held_out(load_tokenizer(first.path), PREFIX + max(WIDTHS))
    times: Times = {}
    for _ in timed(engines, tokens, repeats, times):
        pass
    if _GRAPHS in engines and not getattr(engines[_GRAPHS], "replays", False):
        del times[_GRAPHS]  # a warning has said why
    return {name: {f"T({n})": 1e3 * median(own[n]) for n in WIDTHS} for name, own in times.items()}


if __name__ == "__main__":
    print(json.dumps(measure({k: read_spec(v) for k, v in json.loads(sys.argv[1]).items()}, int(sys.argv[2]))))
