"""Ray left half: what a head that was killed leaves is cleared away by the next start, which waits for that.

Each in a process of its own: Ray ends a process that had joined a head a minute after that is gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

GONE = """
import ray
from ray.cluster_utils import Cluster as RayCluster
from hetero.cluster.cluster import Cluster

made = RayCluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
first = Cluster(made.address)
first.join()
made.head_node.kill_all_processes(check_alive=False, allow_graceful=False)  # the driver is still joined
again = Cluster("local")
again.join()
assert ray.is_initialized() and len(ray.nodes()) == 1
again.leave()
assert not ray.is_initialized()
"""
# Ray's goodbye ends the processes of whichever Ray there is by then.
LEFT = """
import threading
import ray
from hetero.cluster import cluster
from hetero.errors import ClusterError

over, goodbye = threading.Event(), ray.shutdown
ray.shutdown = lambda: over.wait(60) and goodbye()
cluster._say_goodbye(0.0)
ray.shutdown = goodbye
cluster._LONG_GOODBYE = 0.2
try:
    cluster.Cluster("local").join()
    raise AssertionError("it started beside a goodbye")
except ClusterError as error:
    assert "is still being left after 0 s: start hetero in a process of its own" in str(error), error
assert not ray.is_initialized()
over.set()
cluster._LONG_GOODBYE = 60.0
later = cluster.Cluster("local")
later.join()
assert len(ray.nodes()) == 1
later.leave()
"""


def run(script: str, where: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=where, env=dict(os.environ), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.long
def test_next_start_after_a_head_that_is_gone(tmp_path):
    run(GONE, tmp_path)


def test_no_start_while_another_ray_is_being_left(tmp_path):
    run(LEFT, tmp_path)
