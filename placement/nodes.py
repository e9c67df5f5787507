"""Which machine of a cluster takes which role, now and when machines leave, return or join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetero.placement.device import Device
from hetero.placement.errors import DeviceError

TARGET, DRAFTER = "hetero_target", "hetero_drafter"  # resources a node may declare to be chosen for a role
BUILD = "hetero_build:"  # begins the one that says which hetero it has


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
        return min(self.names, key=lambda name: (name[0].isdecimal(), len(name), name), default=self.address)

    def device(self) -> Device:
        """What of it a role takes that was not told: its GPU, else its CPU."""
        name = None if self.here else self.name
        return Device("cuda", (0,), name) if self.gpus else Device("cpu", (), name)

    @property
    def build(self) -> str:
        """Which hetero it has; "" where it does not say."""
        return next((mark.removeprefix(BUILD) for mark in self.marks if mark.startswith(BUILD)), "")

    def called(self, name: str) -> bool:
        """Whether a user may mean it."""
        return name in self.names or name in self.marks or name == self.id


def find_node(nodes: Sequence[Node], name: str) -> Node:
    """The node a user means. Raises DeviceError listing the ones there are."""
    for node in nodes:
        if node.called(name):
            return node
    if not nodes:
        raise DeviceError(f"node {name!r}: hetero runs on this machine alone; join a cluster with --address")
    have = ", ".join(sorted(node.name for node in nodes))
    raise DeviceError(f"node {name!r} is not in the cluster, which has {have}")


def target_node(nodes: Sequence[Node]) -> Node:
    """Where the target goes that was not placed by hand: the first of ``target_nodes``, else any."""
    return (target_nodes(nodes) or _by_size(nodes))[0]


def target_nodes(nodes: Sequence[Node], drafter: Node | None = None) -> list[Node]:
    """Where targets may go, the best first: marked nodes; then those with most cores that are not marked for a drafter;
    the one that has it comes last."""
    size = _by_size(nodes)
    found = [node for node in size if TARGET in node.marks]
    found += [node for node in size if not {TARGET, DRAFTER} & node.marks]
    return sorted(found, key=lambda node: drafter is not None and node.id == drafter.id)


def drafter_node(nodes: Sequence[Node], target: Node) -> Node | None:
    """Where the drafter goes that was not placed by hand: the marked node; else another than the target's, one with a
    GPU before others, one marked for a target last. None: it waits for one, since the target's is marked and so is
    alone on purpose."""
    others = [node for node in _by_size(nodes) if node.id != target.id]
    for node in [*others, target]:
        if DRAFTER in node.marks:
            return node
    others.sort(key=lambda node: (TARGET in node.marks, not node.gpus))  # stays sorted by size
    if others:
        return others[0]
    return None if TARGET in target.marks else target


def returned(nodes: Sequence[Node], last: Node, mark: str) -> Node | None:
    """The node that a role was on last, under whatever id it came back: the same; else one with the role's mark if it
    had that; else one of its name."""
    for same in (
        lambda node: node.id == last.id,
        lambda node: mark in last.marks and mark in node.marks,
        lambda node: mark not in last.marks and last.names & node.names,
    ):
        found = next((node for node in nodes if same(node)), None)
        if found is not None:
            return found
    return None


def _by_size(nodes: Sequence[Node]) -> list[Node]:
    return sorted(nodes, key=lambda node: (-node.cpus, not node.here, node.id))
