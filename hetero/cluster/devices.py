"""`hetero devices`: what this machine has to run models on, as people and programs read it."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hetero.cluster.inventory import cpu_name, take_inventory
from hetero.placement.device import Device, Inventory, spans
from hetero.workers.engines.octet.library import library, path, why_not

_BYTES, _TIMES = 256 << 20, 3  # that are read to measure a bandwidth
_TELLING = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")  # instructions that decide speed


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second: of all fast cores; and of all but one, and of that one, while both read."""

    alone: float
    target: float
    drafter: float


def measure_bandwidth(threads: int) -> Bandwidth | None:
    """Of this machine's memory; None where hetero's kernel is not built."""
    lib = library()
    if lib is None:
        return None
    memory = np.ones(_BYTES, np.uint8)

    def read(count: int, times: int = _TIMES) -> float:
        found: float = lib.octet_bandwidth(memory.ctypes.data, memory.nbytes, count, times)
        return found

    alone = max(read(threads) for _ in range(3))
    if threads < 2:
        return Bandwidth(alone, alone, alone)
    beside: list[float] = []
    other = threading.Thread(target=lambda: beside.append(read(1, 2 * _TIMES)))
    other.start()
    rest = read(threads - 1, _TIMES)
    other.join()
    return Bandwidth(alone, rest, beside[0])


def show(as_json: bool, console: Console) -> None:
    """Print the devices."""
    inventory = take_inventory()
    speed = measure_bandwidth(len(inventory.topology.fast))
    if as_json:
        console.print_json(data=facts(inventory, speed))
        return
    table = Table("device", "what", "free memory")
    for device, what, memory in _rows(inventory, speed):
        table.add_row(device, what, f"{memory / 2**30:.1f} GiB" if memory else "-")
    console.print(table)


def facts(inventory: Inventory, speed: Bandwidth | None) -> dict[str, Any]:
    """The same for programs: bytes, bytes a second."""
    topology = inventory.topology
    return {
        "cpu": {
            "name": cpu_name(),
            "cores": [asdict(core) for core in topology.cores],
            "fast": list(topology.fast),
            "slow": list(topology.slow),
            "quota": topology.quota,
            "instructions": instructions(),
            "octet": path()[1] if why_not() is None else None,
            "memory": inventory.memory,
            "bandwidth": asdict(speed) if speed is not None else None,
        },
        "gpus": [{"device": str(g.device), "name": g.name, "memory": g.free or None} for g in inventory.gpus],
    }


def instructions() -> list[str]:
    """Those of this CPU that decide how fast it multiplies bytes."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "").split()
    return [name for name in _TELLING if name in flags]


def _rows(inventory: Inventory, speed: Bandwidth | None) -> list[tuple[str, str, int]]:
    topology = inventory.topology
    fast = str(Device("cpu", topology.fast))
    what = [cpu_name()]
    if len(topology.cores) > len(topology.fast) + len(topology.slow):
        what.append(f"of {len(topology.cores)} hardware threads ({spans(inventory.cores)})")
    if topology.quota:
        what.append(f"a quota of {topology.quota:g} cores")
    nodes = topology.near(topology.fast)
    if len(nodes) > 1:
        what.append("memory near " + " and ".join(spans(cores) for cores in nodes.values()))
    if speed is not None:
        what.append(f"{speed.alone / 1e9:.0f} GB/s of memory")
    found = [(fast, ", ".join(what), inventory.memory)]
    if topology.slow:
        found.append((str(Device("cpu", topology.slow)), "slow cores: for a drafter", inventory.memory))
    return found + [(str(gpu.device), gpu.name, gpu.free) for gpu in inventory.gpus]
