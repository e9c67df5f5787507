"""Which machine of a cluster takes which role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetero.placement.device import Device
from hetero.placement.errors import DeviceError

TARGET, DRAFTER = "hetero_target", "hetero_drafter"  # resources a node may declare to be chosen for a role


@dataclass(frozen=True)
class Node:
    """A machine of the cluster. ``names``: what it may be called in a device name; ``marks``: its own resources;
    ``here``: hetero runs on it; ``memory`` in bytes."""

    id: str
    address: str
    names: frozenset[str]
    marks: frozenset[str] = frozenset()
    cpus: int = 1
    gpus: int = 0
    memory: int = 0
    here: bool = False

    @property
    def name(self) -> str:
        """How to call it."""
        return min(self.names, key=lambda name: (name[0].isdigit(), len(name), name), default=self.address)

    def device(self) -> Device:
        """What of it a role takes that was not told: its GPU, else its CPU."""
        name = None if self.here else self.name
        return Device("cuda", (0,), name) if self.gpus else Device("cpu", (), name)


def find_node(nodes: Sequence[Node], name: str) -> Node:
    """The node a user means. Raises DeviceError listing the ones there are."""
    for node in nodes:
        if name in node.names or name in node.marks or name == node.id:
            return node
    if not nodes:
        raise DeviceError(f"node {name!r}: hetero runs on this machine alone; join a cluster with --address")
    have = ", ".join(sorted(node.name for node in nodes))
    raise DeviceError(f"node {name!r} is not in the cluster, which has {have}")


def choose_nodes(nodes: Sequence[Node]) -> tuple[Node, Node]:
    """(target, drafter) nodes where the user named none: the marked ones; else the most cores for the target, and for
    the drafter another node, one with a GPU before others."""
    size = sorted(nodes, key=lambda node: (-node.cpus, not node.here, node.id))
    target = next((node for node in size if TARGET in node.marks), None)
    drafter = next((node for node in size if DRAFTER in node.marks), None)
    if target is None:
        target = next((node for node in size if node is not drafter), size[0])
    if drafter is None:
        others = [node for node in size if node is not target]
        drafter = next((node for node in others if node.gpus), others[0] if others else target)
    return target, drafter
