"""What serve and generate begin with: the cluster of a Config, who plans on it, and the plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from hetero.cluster.cluster import Cluster
from hetero.cluster.inventory import take_inventory
from hetero.config import Config
from hetero.errors import ConfigError
from hetero.placement.device import Inventory
from hetero.planning.plan import Plan
from hetero.planning.planner import Planner, planner_of
from hetero.planning.ranking import Ranker
from hetero.planning.reviser import Reviser
from hetero.planning.table import rows_of, verdict
from hetero.workers.decoding.policy.strategy import AUTO

_NODES_WITHIN = 60.0  # seconds the machines of --require-nodes may take to come


@dataclass(frozen=True)
class Placed:
    """``cluster``: joined if it is a running one, to be left; ``reviser``: of a plan that was chosen by forecasts."""

    plan: Plan
    planner: Planner
    cluster: Cluster
    reviser: Reviser | None = None


def placed(config: Config) -> Placed:
    """Raises HeteroError."""

    def say(line: str) -> None:
        Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)

    if config.strategy == AUTO and (config.cluster or config.address != "local"):
        raise ConfigError("strategy: auto measures one machine: name a strategy where several work together")
    inventory = take_inventory()
    planner = planner_of(config, inventory, say)
    if config.cluster and config.address != "local":
        raise ConfigError(f"cluster: it starts one, and address {config.address} names another: give one of the two")
    cluster = Cluster.opened(config.cluster_host) if config.cluster else Cluster(config.address)
    try:
        if cluster.shared:
            cluster.join()
            if cluster.invitation:
                say(f"on another machine with hetero, to lend it to this one:\n  {cluster.invitation}")
            return Placed(planner.plan(cluster.wait_for(config.require_nodes, _NODES_WITHIN)), planner, cluster)
        if config.require_nodes > 1:
            raise ConfigError(f"require_nodes: {config.require_nodes} machines need a cluster: --cluster or --address")
        if config.strategy == AUTO:
            return _chosen(config, inventory, planner, cluster, say)
        return Placed(planner.plan(), planner, cluster)
    except BaseException:
        cluster.leave()
        raise


def _chosen(
    config: Config, inventory: Inventory, planner: Planner, cluster: Cluster, say: Callable[[str], None]
) -> Placed:
    """The plan that is foreseen to be the fastest. Raises HeteroError."""
    ranker = Ranker(config, inventory, planner, say)
    ranking = ranker.rank()
    for line in verdict(ranking):
        say(line)
    chosen = ranker.planner_of(ranking.entries[0].candidate)
    chosen.foreseen = tuple(rows_of(ranking))
    return Placed(chosen.plan(), chosen, cluster, Reviser(ranking, time.monotonic))
