"""Which plans are worth a look: who could go where on a machine, and with which strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hetero.placement.device import Device, Gpu, Inventory

GAMMAS = (2, 4, 7)  # draft tokens a window, where a strategy has a fixed number
_MANY = 8  # cores from which two may draft


@dataclass(frozen=True)
class Candidate:
    """``drafter`` None: there is none, and the strategy is "off"; ``layers``: those of the target that its GPU holds,
    the CPU has the rest (-1: it holds all)."""

    target: Device
    drafter: Device | None
    strategy: str
    gamma: int = 0
    layers: int = -1

    @property
    def overlaps(self) -> bool:
        """Whether both roles can work at once: they share no core and no GPU."""
        one, two = self.target, self.drafter
        if two is None or (self.layers >= 0 and two.is_cpu):
            return False
        if (one.kind, one.node) != (two.kind, two.node):
            return True
        return not set(one.indices) & set(two.indices)

    @property
    def where(self) -> str:
        """The target's place."""
        return f"{self.layers} layers on {self.target}" if self.layers >= 0 else str(self.target)

    def __str__(self) -> str:
        if self.drafter is None:
            return f"off on {self.where}"
        size = f" {self.gamma}" if self.gamma else ""
        return f"{self.strategy}{size}: target {self.where}, drafter {self.drafter}"


Layers = Callable[[Gpu, bool], int]  # how many of the target's a GPU can hold, beside the drafter or not; -1: all


def candidates(inventory: Inventory, drafting: bool, layers: Layers = lambda gpu, beside: -1) -> Iterator[Candidate]:
    """All for a machine; ``drafting``: whether there is a drafter."""
    for gpu in inventory.gpus:  # Dovetail: spare memory of the GPU takes layers of a target that does not fit
        if (few := layers(gpu, False)) > 0:
            yield Candidate(gpu.device, None, "off", layers=few)
        if drafting and (few := layers(gpu, True)) > 0:
            for gamma in GAMMAS:
                yield Candidate(gpu.device, gpu.device, "serial", gamma, few)
    for target, drafter in _places(inventory, drafting):
        if drafter is None:
            yield Candidate(target, None, "off")
            continue
        both = Candidate(target, drafter, "serial")
        for gamma in GAMMAS:
            yield Candidate(target, drafter, "serial", gamma)
        if both.overlaps:
            yield Candidate(target, drafter, "pearl")
            yield Candidate(target, drafter, "ahead")


def _groups(gpus: Sequence[Gpu]) -> Iterator[Device]:
    """Several GPUs of a kind as one device: two, four, eight, all."""
    for kind in dict.fromkeys(gpu.kind for gpu in gpus):
        numbers = [gpu.number for gpu in gpus if gpu.kind == kind]
        for count in sorted({2, 4, 8, min(16, len(numbers))}):
            if 2 <= count <= len(numbers):
                yield Device(kind, tuple(numbers[:count]))


def _places(inventory: Inventory, drafting: bool) -> Iterator[tuple[Device, Device | None]]:
    fast, slow = inventory.topology.fast, inventory.topology.slow
    every = Device("cpu", fast)
    groups = list(_groups(inventory.gpus))
    targets = [every, *(gpu.device for gpu in inventory.gpus), *groups]
    for target in targets:
        yield target, None
    if not drafting:
        return
    yield every, every
    if slow:
        yield every, Device("cpu", slow)
    for count in (1, 2):
        if len(fast) > count and (count == 1 or len(fast) >= _MANY):
            yield Device("cpu", fast[:-count]), Device("cpu", fast[-count:])
    for group in groups:
        apart = (gpu.device for gpu in inventory.gpus if gpu.kind == group.kind and gpu.number not in group.indices)
        yield group, next(apart, group.gpus[-1])
        yield group, every
    for gpu in inventory.gpus:
        yield every, gpu.device
        yield gpu.device, every
        for other in inventory.gpus:
            if other.kind == gpu.kind:  # the same card may be there twice, under two kinds
                yield gpu.device, other.device
