"""Whether what is placed fits the memory of its devices, and how much context does where nobody chose it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hetero.placement.device import Inventory
from hetero.placement.memory import Footprint, check_memory
from hetero.placement.nodes import Node
from hetero.planning.plan import Placement

_KV_SHARE = 0.5  # of the memory beside the weights: what a context chosen by us may take, the rest is for others
_LEAST_CONTEXT, _STEP = 2048, 256  # tokens of such a context at least, and what it is a multiple of


def free_memory(inventory: Inventory, nodes: Sequence[Node]) -> dict[str, int]:
    """Bytes free on each device that tells; where a driver does not (0), the worker will."""
    free = {str(gpu.device): gpu.free for gpu in inventory.gpus if gpu.free} | {"cpu": inventory.memory}
    return free | {f"{node.name}/cpu": node.memory for node in nodes if not node.here and node.memory}


def fitting(placements: Sequence[Placement], context: int, free: Mapping[str, int]) -> int:
    """Tokens of context that fit beside the weights, up to the ``context`` the placements have now."""
    found = context
    for key, own in _by_device(placements).items():
        if key not in free:
            continue
        kv = sum(memory.kv for _, memory in own)
        room = _KV_SHARE * (free[key] - sum(memory.total for _, memory in own) + kv)
        if kv > room:
            tokens = int(context * max(room, 0) / kv) // _STEP * _STEP
            found = min(found, max(tokens, min(_LEAST_CONTEXT, context)))
    return found


def check_fit(placements: Sequence[Placement], free: Mapping[str, int]) -> None:
    """Raise MemoryShortage. The drafter counts in the fit too (llama.cpp issue 28172)."""
    for key, own in _by_device(placements).items():
        if key in free:  # else a GPU of another node: its worker says so if it is too small
            what = " and ".join(f"{placement.spec.role} {placement.model.name}" for placement, _ in own)
            check_memory(f"{what} on {key}", sum(memory.total for _, memory in own), free[key])


def _by_device(placements: Sequence[Placement]) -> dict[str, list[tuple[Placement, Footprint]]]:
    """What each device's memory is to hold."""
    found: dict[str, list[tuple[Placement, Footprint]]] = {}
    for placement in placements:
        for key, memory in placement.parts:
            found.setdefault(key, []).append((placement, memory))
    return found
