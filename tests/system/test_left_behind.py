"""Ray left half: what a head that was killed leaves is cleared away by the next start."""

import ray
from ray.cluster_utils import Cluster as RayCluster

from hetero.cluster.cluster import Cluster


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
