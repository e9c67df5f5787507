"""A plan: which engine on which device, with which strategy."""

from __future__ import annotations

from dataclasses import dataclass

from hetero.placement.device import Device
from hetero.placement.memory import Footprint
from hetero.placement.nodes import Node
from hetero.workers.models.model import Model
from hetero.workers.runtime.spec import WorkerSpec


@dataclass(frozen=True)
class Placement:
    """One role of the plan."""

    device: Device
    model: Model
    spec: WorkerSpec
    memory: Footprint
    node: Node | None = None  # None: this machine, alone
    shares: tuple[float, ...] = ()  # of several GPUs, what each holds; (): all alike

    @property
    def name(self) -> str:
        """What its worker is called: target, drafter, drafter-1, ..."""
        return self.spec.role + (f"-{self.spec.index}" if self.spec.index else "")

    @property
    def parts(self) -> list[tuple[str, Footprint]]:
        """The memory of each device it takes, by the device's name; all cores of a machine share theirs."""
        device = self.device
        main = str(Device("cpu", (), device.node))
        if device.is_cpu or device.kind == "mps":  # a Mac's memory is one
            return [(main, self.memory)]
        share = self.spec.gpu_layers / self.model.shape.layers if self.spec.gpu_layers >= 0 else 1.0
        rest = [(main, self.memory.scaled(1.0 - share))] if share < 1.0 else []
        shares = self.shares or (1.0 / len(device.gpus),) * len(device.gpus)
        return [
            (str(gpu), self.memory.scaled(share * own)) for gpu, own in zip(device.gpus, shares, strict=True)
        ] + rest


@dataclass(frozen=True)
class Plan:
    """Who does what where; ``awaited``: the machine a drafter waits for, "" where it has one or none is wanted;
    ``alone``: whether it runs beside the target only until another machine comes; ``cut``: whether the context is less
    than the model's for want of memory; ``foreseen``: the plans it was chosen from, the fastest first; ``others``:
    further drafters; ``replicas``: further verifiers of the same target."""

    target: Placement
    drafter: Placement | None
    strategy: str
    name: str
    context: int
    awaited: str = ""
    alone: bool = False
    cut: bool = False
    foreseen: tuple[dict[str, object], ...] = ()
    others: tuple[Placement, ...] = ()
    replicas: tuple[Placement, ...] = ()

    @property
    def targets(self) -> list[Placement]:
        """Those of the verifiers, the first first."""
        return [self.target, *self.replicas]

    @property
    def placements(self) -> list[Placement]:
        """Those that there are."""
        return [*self.targets, *([self.drafter] if self.drafter else []), *self.others]
