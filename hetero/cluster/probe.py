"""What each machine of a cluster has, asked of itself."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil
from rich.table import Table

from hetero.cluster.cluster import Cluster
from hetero.cluster.inventory import cpu_name, take_inventory
from hetero.placement.nodes import DRAFTER, TARGET, Node
from hetero.workers.runtime.build import build

_ANSWER = 60.0  # seconds a machine may take: a process starts there
_ECHOES = 5


class Probe:
    """An actor that looks at the machine it is on."""

    def facts(self) -> dict[str, object]:
        found = take_inventory()
        gpus = [f"{gpu.device} {gpu.name}" for gpu in found.gpus]
        total = psutil.virtual_memory().total
        return {"build": build(), "cpu": f"{cpu_name()}, {len(found.cores)} cores", "gpus": gpus, "memory": total}

    def echo(self) -> None:
        return None


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster. ``memory`` in bytes; ``round_trip``: seconds of a call, there and back; ``trouble``:
    why nothing more is known of it."""

    node: Node
    build: str = ""
    cpu: str = ""
    gpus: tuple[str, ...] = ()
    memory: int = 0
    round_trip: float = 0.0
    trouble: str = ""


def look(cluster: Cluster) -> list[Machine]:
    """All machines of a joined cluster. Raises ClusterError."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = cluster.nodes()
    shell = ray.remote(Probe)
    probes = []
    for node in nodes:
        where = NodeAffinitySchedulingStrategy(node.id, soft=False)
        probes.append(shell.options(num_cpus=0, scheduling_strategy=where).remote())
    asked = [probe.facts.remote() for probe in probes]
    end = time.monotonic() + _ANSWER
    found = []
    for node, probe, answer in zip(nodes, probes, asked, strict=True):
        try:
            facts = ray.get(answer, timeout=max(0.0, end - time.monotonic()))
            took = []
            for _ in range(_ECHOES):
                began = time.monotonic()
                ray.get(probe.echo.remote(), timeout=_ANSWER)
                took.append(time.monotonic() - began)
            found.append(Machine(node, facts["build"], facts["cpu"], tuple(facts["gpus"]), facts["memory"], min(took)))
        except ray.exceptions.GetTimeoutError:
            found.append(Machine(node, trouble=f"no answer in {_ANSWER:.0f} s"))
        except ray.exceptions.RayError:
            found.append(Machine(node, trouble="hetero cannot run there: install the same as here"))
    return found


def table_of(machines: list[Machine]) -> Table:
    """The machines as people read them."""
    table = Table()
    for name in ("machine", "address", "role", "devices", "memory", "hetero", "round trip"):
        table.add_column(name, overflow="fold")
    roles = {TARGET: "target", DRAFTER: "drafter"}
    for machine in machines:
        node = machine.node
        role = ", ".join(name for mark, name in roles.items() if mark in node.marks) or "any"
        name = node.name + (" (here)" if node.here else "")
        if machine.trouble:
            table.add_row(name, node.address, role, machine.trouble, "-", node.build or "-", "-")
            continue
        devices = "\n".join([f"cpu {machine.cpu}", *machine.gpus])
        same = "" if machine.build == build() else " (NOT as here)"
        trip = f"{1e3 * machine.round_trip:.1f} ms"
        table.add_row(
            name, node.address, role, devices, f"{machine.memory / 2**30:.0f} GiB", machine.build + same, trip
        )
    return table
