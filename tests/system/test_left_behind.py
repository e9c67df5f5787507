"""Ray left half: what a head that was killed leaves is cleared away by the next start, which waits for that."""

from __future__ import annotations

import threading

import pytest
import ray
from ray.cluster_utils import Cluster as RayCluster

from hetero.cluster import cluster
from hetero.cluster.cluster import Cluster
from hetero.errors import ClusterError


def test_next_start_after_a_head_that_is_gone():
    made = RayCluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    first = Cluster(made.address)
    first.join()
    made.head_node.kill_all_processes(check_alive=False, allow_graceful=False)  # the driver is still joined
    again = Cluster("local")
    again.join()
    try:
        assert ray.is_initialized() and len(ray.nodes()) == 1
    finally:
        again.leave()
    assert not ray.is_initialized()


def test_no_start_while_another_ray_is_being_left(monkeypatch):
    """Ray's goodbye ends the processes of whichever Ray there is by then."""
    goodbye, over = ray.shutdown, threading.Event()
    monkeypatch.setattr(ray, "shutdown", lambda: over.wait(60) and goodbye())
    cluster._say_goodbye(0.0)
    monkeypatch.setattr(ray, "shutdown", goodbye)
    monkeypatch.setattr(cluster, "_LONG_GOODBYE", 0.2)
    try:
        with pytest.raises(ClusterError, match="is still being left after 0 s: start hetero in a process of its own"):
            Cluster("local").join()
        assert not ray.is_initialized()
    finally:
        over.set()
    monkeypatch.undo()
    later = Cluster("local")
    later.join()
    try:
        assert len(ray.nodes()) == 1
    finally:
        later.leave()
