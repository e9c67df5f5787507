"""Where further verifiers of a target go: other machines of a cluster, or equal shares of this one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from hetero.errors import ConfigError
from hetero.placement.device import Device, Inventory
from hetero.placement.nodes import Node, target_nodes
from hetero.workers.engines.registry import find_engine


def other_machines(nodes: Sequence[Node], target: Node, drafter: Node | None, count: int) -> list[Node]:
    """The machines of ``count`` verifiers beside the target's. Raises ConfigError where there are too few."""
    found = [node for node in target_nodes(nodes, drafter) if node.id != target.id][: count - 1]
    if len(found) < count - 1:
        raise ConfigError(
            f"verifiers: {count} want a machine each, and {len(found) + 1} of the cluster's {len(nodes)} "
            f"{'is' if not found else 'are'} free for a target: lend more (hetero join), or ask for fewer"
        )
    return found


def device_of(node: Node, engine: str) -> Device:
    """What of another machine a further verifier takes: its GPU where the engine of the first runs on one."""
    device = node.device()
    if find_engine(engine).objection(device.kind, node.here) is not None:
        return replace(device, kind="cpu", indices=())
    return device


def shares_of(device: Device, count: int, inventory: Inventory, taken: Collection[Device]) -> list[Device]:
    """The devices of ``count`` verifiers on one machine, the first of which was to have ``device``; ``taken``: those of
    drafters. CPU cores are shared out, in order; of GPUs each gets as many. Raises ConfigError."""
    if count == 1:
        return [device]
    if device.is_cpu:
        cores = device.indices
        if len(cores) < count:
            raise ConfigError(f"verifiers: {count} want a core each, and the target has {len(cores)}: ask for fewer")
        each = len(cores) // count  # as many for all: in exact mode the bits hang on it
        return [replace(device, indices=cores[n * each : (n + 1) * each]) for n in range(count)]
    used = {gpu for other in (device, *taken) for gpu in other.gpus}
    free = [gpu.device.indices[0] for gpu in inventory.gpus if gpu.device.kind == device.kind
            and gpu.device not in used]  # fmt: skip
    size = len(device.gpus)
    if len(free) < size * (count - 1):
        raise ConfigError(
            f"verifiers: {count} want {size} GPU{'s' if size > 1 else ''} each, and {len(free)} are free beside "
            f"{device}: ask for fewer"
        )
    groups = [tuple(free[n * size : (n + 1) * size]) for n in range(count - 1)]
    return [device, *(replace(device, indices=group) for group in groups)]
