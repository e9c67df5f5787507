"""What a device is, and how a user names one: ``cpu:0-3``, ``cuda:0``, ``node/cpu:0``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hetero.placement.errors import DeviceError
from hetero.placement.topology import Topology

_GPUS = 16  # that one engine may run on: as many as llama.cpp takes
_EVEN = 0.9  # of the memory of several GPUs that a model fills, at most: layers come whole
_NAME = re.compile(r"(?:(?P<node>[\w.\-]+)/)?(?P<kind>cpu|cuda|rocm|vulkan|mps)(?::(?P<index>[\d,\-]+))?")


@dataclass(frozen=True)
class Device:
    """A place an engine can run: some cores of a node's CPU, or one of its GPUs, or several of one kind as one.

    ``indices`` are core numbers for ``cpu`` (empty: all cores the process may use), for the others GPU numbers, at
    least one. ``node`` is a Ray node's name or address; None means the node hetero was started on.
    """

    kind: str
    indices: tuple[int, ...] = ()
    node: str | None = None

    def __str__(self) -> str:
        where = f"{self.node}/" if self.node else ""
        return f"{where}{self.kind}" + (f":{spans(self.indices)}" if self.indices else "")

    @property
    def is_cpu(self) -> bool:
        return self.kind == "cpu"

    @property
    def gpus(self) -> tuple[Device, ...]:
        """Its GPUs, one by one."""
        return () if self.is_cpu else tuple(Device(self.kind, (number,), self.node) for number in self.indices)


@dataclass(frozen=True)
class Gpu:
    """A GPU by its device name's parts, what it is called by its maker, and its free bytes."""

    kind: str
    number: int
    name: str
    free: int

    @property
    def device(self) -> Device:
        """How a user names it."""
        return Device(self.kind, (self.number,))


@dataclass(frozen=True)
class Inventory:
    """What one machine has: usable core numbers, free memory in bytes, GPUs, the one to prefer first, and what is known
    of its cores beside their numbers."""

    cores: tuple[int, ...]
    memory: int
    gpus: tuple[Gpu, ...] = ()
    known: Topology | None = None

    @property
    def topology(self) -> Topology:
        """Of its cores."""
        return self.known or Topology.plain(self.cores)


def parse_device(name: str) -> Device:
    """Read a device name. Raises DeviceError naming the mistake."""
    match = _NAME.fullmatch(name.strip())
    if match is None:
        raise DeviceError(
            f"device {name!r} is not understood: write cpu, cpu:0-3, cuda:0, cuda:0-3, rocm:0, vulkan:0, mps or "
            "node/cpu:0"
        )
    indices = _indices(name, match["index"]) if match["index"] else ()
    if match["kind"] != "cpu":
        indices = indices or (0,)
        most = 1 if match["kind"] == "mps" else _GPUS
        if len(indices) > most:
            raise DeviceError(f"device {name!r} names {len(indices)} GPUs: an engine runs on {most} at most")
    return Device(match["kind"], indices, match["node"])


def check_device(device: Device, inventory: Inventory) -> Device:
    """Return the device with its cores spelled out; raises DeviceError when the machine lacks it."""
    if device.is_cpu:
        missing = sorted(set(device.indices) - set(inventory.cores))
        if missing:
            raise DeviceError(
                f"device {device}: no core {spans(missing)} here; usable cores are {spans(inventory.cores)}"
            )
        return Device("cpu", device.indices or inventory.topology.fast, device.node)
    if not set(device.gpus) <= {gpu.device for gpu in inventory.gpus}:
        have = ", ".join(str(gpu.device) for gpu in inventory.gpus) or "no GPU that hetero can use"
        raise DeviceError(f"device {device}: not on this machine, which has {have} (hetero doctor says more)")
    return device


def default_devices(
    inventory: Inventory, target_bytes: int, drafting: bool, shares: Callable[[int], bool] = lambda count: True
) -> tuple[Device, Device]:
    """Choose (target, drafter) devices where the user named none. ``shares``: whether so many GPUs can share the
    target.

    A GPU that holds the whole target takes it; where none does, the fewest together that do; a smaller one drafts for a
    CPU target (Dovetail's split). With CPUs only, the drafter gets the slow cores, or the last of the fast ones, and
    the target the others, so that both work at once. No two threads share a physical core.
    """
    fast, slow = inventory.topology.fast, inventory.topology.slow
    every = Device("cpu", fast)
    if inventory.gpus:
        first = inventory.gpus[0]
        # The same card may be there twice, under two kinds.
        alike = [gpu for gpu in inventory.gpus if gpu.kind == first.kind]
        most = min(len(alike), _GPUS) if first.kind != "mps" else 1
        for count in (1, *filter(shares, range(2, most + 1))):
            if min(gpu.free for gpu in alike[:count]) * count * (_EVEN if count > 1 else 1) > target_bytes:
                target = Device(first.kind, tuple(gpu.number for gpu in alike[:count]))
                return target, alike[count].device if count < len(alike) else every
        return every, first.device
    if drafting and slow:
        return every, Device("cpu", slow)
    if not drafting or len(fast) < 2:
        return every, every
    return Device("cpu", fast[:-1]), Device("cpu", fast[-1:])


def _indices(name: str, text: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(part) > 9:
            raise DeviceError(f"device {name!r}: {part!r} is neither a number nor a span like 0-3")
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high - low > 4096:
            raise DeviceError(f"device {name!r}: the span {part!r} runs backwards or is too long")
        found.extend(range(low, high + 1))
    return tuple(sorted(set(found)))


def spans(indices: Sequence[int]) -> str:
    """Numbers as people write them: 0-3,8."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
