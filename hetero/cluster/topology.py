"""Reads the topology of this machine's cores from Linux' own files; elsewhere cores are alike."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hetero.placement.topology import Core, Topology

_SLOW = 0.5  # of a fast core's speed: Intel's efficiency cores, where the kernel does not say


def read_topology(numbers: Sequence[int], root: Path = Path("/")) -> Topology:
    """The cores ``numbers``, as the files below ``root`` describe them (another machine's copies, in tests)."""
    cpus = root / "sys/devices/system/cpu"
    atoms = set(_list(root / "sys/devices/cpu_atom/cpus"))
    numa = {n: int(node.name[4:]) for node in (root / "sys/devices/system/node").glob("node[0-9]*")
            for n in _list(node / "cpulist")}  # fmt: skip
    capacity = {n: _number(cpus / f"cpu{n}/cpu_capacity") for n in numbers}
    top = max(capacity.values(), default=0.0)
    cores = []
    for n in numbers:
        siblings = _list(cpus / f"cpu{n}/topology/thread_siblings_list")
        speed = capacity[n] / top if top else _SLOW if n in atoms else 1.0
        cores.append(Core(n, min(siblings, default=n), numa.get(n, 0), speed))
    return Topology(tuple(cores), _quota(root))


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that the container this runs in leaves; None: no limit."""
    found = []
    for group in _groups(root, "memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most = _number(group / limit)
            if 0 < most < 1 << 60:
                found.append(max(0, int(most - _number(group / used) + _reclaimable(group / "memory.stat"))))
    return min(found, default=None)


def _quota(root: Path) -> float:
    """Cores' worth of time (0: no limit), the least of all groups this process is in."""
    found = []
    for group in _groups(root, "cpu"):
        with suppress(OSError, ValueError):
            quota, _, period = (group / "cpu.max").read_text().partition(" ")
            found.append(float(quota) / float(period))  # "max" is no number
        quota_us, period_us = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if quota_us > 0 and period_us > 0:
            found.append(quota_us / period_us)
    return min(found, default=0.0)


def _reclaimable(file: Path) -> float:
    """Bytes of files that were read once and go where others need their memory."""
    with suppress(OSError, ValueError):
        lines = [line.split() for line in file.read_text().splitlines()]
        found = {key.removeprefix("total_"): float(value) for key, value in lines}  # a v1 group's totals come last
        return found.get("inactive_file", 0.0) + found.get("active_file", 0.0)
    return 0.0


def _groups(root: Path, controller: str) -> list[Path]:
    """The control groups of this process that may limit it, from its own up."""
    found = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / (controller if controllers else "")
            own = top / path.lstrip("/")
            found += [own, *(p for p in own.parents if p.is_relative_to(top))]
    return found or [root / "sys/fs/cgroup"]


def _list(file: Path) -> list[int]:
    """Numbers as the kernel lists them: 0-3,8."""
    with suppress(OSError, ValueError):
        spans = [span.partition("-") for span in file.read_text().strip().split(",") if span]
        return [n for low, _, high in spans for n in range(int(low), int(high or low) + 1)]
    return []


def _number(file: Path) -> float:
    """0 where there is none."""
    with suppress(OSError, ValueError):
        return float(file.read_text())
    return 0.0
