"""Drafter and verifier on two nodes of a Ray cluster with token authentication, over CURVE."""

from __future__ import annotations

import time

import pytest
import ray
import zmq
from helpers.running_server import RunningServer
from helpers.streams import from_drafter, streams
from ray.cluster_utils import Cluster as RayCluster

from hetero.cluster.cluster import Cluster
from hetero.cluster.inventory import take_inventory
from hetero.config import make_config
from hetero.errors import ClusterError
from hetero.placement.errors import DeviceError
from hetero.planning.planner import make_plan
from hetero.workers.wire.codec import encode
from hetero.workers.wire.messages import MAX_FRAME, Ping
from hetero.workers.wire.sockets import connect_dealer, make_keys

PORTS = (21800, 21849)


@pytest.fixture(scope="module")
def cluster():
    made = RayCluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1, resources={"hetero_target": 1})
    made.add_node(num_cpus=1, resources={"hetero_drafter": 1})
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def stack(cluster):
    made = RunningServer(
        address=cluster.address, exact=True, strategy="serial", lookup=False, port=0, worker_ports="21800-21849"
    )
    yield made
    made.close()


@pytest.mark.long
def test_each_role_on_its_own_node_and_killed_in_turn_the_texts_stay(stack):
    target, drafter = stack.plan.target, stack.plan.drafter
    here = ray.get_runtime_context().get_node_id()
    assert len({target.node.id, drafter.node.id, here}) == 3
    assert target.spec.secure and drafter.spec.secure
    endpoint = stack.status("target").endpoint
    where, _, key = endpoint.partition("#")
    assert len(key) == 64 and PORTS[0] <= int(where.rpartition(":")[2]) <= PORTS[1]
    calm = streams(stack, 180, [11, 12, 13])
    assert sum(from_drafter(last["timings"]) for _, last in calm) > 30
    for role in ("drafter", "target"):
        before = stack.status(role)
        stormy = streams(stack, 180, [11, 12, 13], meanwhile=lambda role=role: stack.kill(role))
        assert [text for text, _ in stormy] == [text for text, _ in calm]
        end = time.monotonic() + 60
        while stack.session.coordinator.statuses[role].epoch == before.epoch:
            assert time.monotonic() < end, stack.events
            time.sleep(0.1)
        assert stack.status(role).public != before.public  # keys live as long as an incarnation
    again = streams(stack, 100, [11, 12])
    assert sum(from_drafter(last["timings"]) for _, last in again) > 5
    stack.settled()


def answer(endpoint: str, keys=None, frames=(), wait: int = 1500) -> bytes | None:
    """What a peer with these keys hears when it pings."""
    context = zmq.Context()
    socket = connect_dealer(context, endpoint, b"stranger", keys)
    socket.setsockopt(zmq.RCVTIMEO, wait)
    try:
        for frame in (*frames, encode(Ping("gateway", 1, []))):
            socket.send(frame)
        return socket.recv()
    except zmq.Again:
        return None
    finally:
        socket.close(0)
        context.term()


def test_a_wrong_or_missing_key_gets_nowhere(stack):
    status = stack.status("target")
    endpoint = status.endpoint
    assert answer(endpoint, make_keys()) is None  # an own key, but nobody's friend
    assert answer(endpoint.partition("#")[0]) is None  # none at all
    assert answer(endpoint[:-2] + ("00" if endpoint[-2:] != "00" else "11"), stack.session.verifiers.keys) is None
    assert stack.status("target").turned_away > status.turned_away
    assert stack.complete("x = ", max_tokens=3)["usage"]["completion_tokens"] == 3


def test_frames_that_are_no_messages_are_dropped_and_counted(stack):
    before = stack.status("target").dropped
    bad = [b"", b"\x80\x04\x95K.", b"\xc1" * 50, b"\x00" * (MAX_FRAME + 1), b"\x92" * 100_000]
    assert answer(stack.status("target").endpoint, stack.session.verifiers.keys, bad, 20_000) is not None
    assert stack.status("target").dropped >= before + len(bad)
    assert stack.complete("x = ", max_tokens=3)["usage"]["completion_tokens"] == 3


def test_devices_of_other_nodes(stack, cluster):
    nodes = Cluster(cluster.address).nodes()
    assert sorted(len(node.marks) for node in nodes) == [0, 1, 1]
    plan = make_plan(make_config({"draft_device": "hetero_target/cpu:0"}), take_inventory(), nodes)
    assert plan.target.node == plan.drafter.node is not None
    local = make_plan(make_config({"target_device": "cpu:0", "draft_device": "cpu:1"}), take_inventory(), nodes)
    assert local.target.spec.secure and local.target.spec.host == "127.0.0.1"
    with pytest.raises(DeviceError, match="node 'attic' is not in the cluster"):
        make_plan(make_config({"target_device": "attic/cpu"}), take_inventory(), nodes)


def test_other_machines_without_a_token_are_refused(stack, monkeypatch):
    entries = [dict(node) for node in ray.nodes()]
    entries[-1]["NodeManagerAddress"] = "192.0.2.77"
    monkeypatch.setattr(ray, "nodes", lambda: entries)
    assert len(Cluster("auto").nodes()) == 3
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(ClusterError, match="RAY_AUTH_MODE=token"):
        Cluster("auto").nodes()
