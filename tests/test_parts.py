"""The small parts: stop matching, the draft tree, devices, the wire, the house's arrows."""

from __future__ import annotations

import itertools
import math
import random

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero.config import make_config
from hetero.placement.device import Device, Gpu, Inventory, check_device, default_devices, parse_device
from hetero.placement.errors import DeviceError, MemoryShortage
from hetero.placement.memory import ModelShape, check_memory, footprint
from hetero.plan import make_plan
from hetero.workers.decoding.tree import DraftTree
from hetero.workers.errors import WireError
from hetero.workers.sampling.stop_strings import StopMatcher
from hetero.workers.wire.codec import decode, encode
from hetero.workers.wire.messages import (
    Commit,
    Draft,
    Failed,
    Finished,
    Hint,
    Open,
    Ping,
    Pong,
    Resume,
    Sampling,
    Stats,
    Tokens,
)
from hetero.workers.wire.sockets import bind_router

# Stopping


def release(text: str, stops: list[str], cuts: list[int]) -> tuple[str, bool]:
    data = text.encode()
    matcher = StopMatcher(stops)
    parts = []
    bounds = sorted({0, len(data), *[cut % (len(data) + 1) for cut in cuts]})
    for first, last in itertools.pairwise(bounds):
        parts.append(matcher.feed(data[first:last]))
        if matcher.stopped:
            return "".join(parts), True
    parts.append(matcher.flush())
    return "".join(parts), False


@given(
    st.text(alphabet="ab🙂é", max_size=30),
    st.lists(st.text(alphabet="ab🙂é", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 200), max_size=20),
)
@settings(max_examples=400, deadline=None)
def test_stop_strings_are_found_across_any_borders_and_never_leak(text, stops, cuts):
    data = text.encode()
    ends = [data.find(s.encode()) for s in stops if s.encode() in data]
    got, stopped = release(text, stops, cuts)
    assert stopped is bool(ends)
    if not ends:
        assert got == text
        return
    # Cut at a stop string; which one may depend on token borders only where several overlap.
    assert any(text == got + s + text[len(got) + len(s) :] for s in stops)
    assert len(got.encode()) <= max(ends)
    for stop in stops:
        assert not got.startswith(stop) and (stop not in got or len(stops) > 1)


def test_half_characters_wait_and_broken_ones_become_replacements():
    matcher = StopMatcher([])
    smile = "🙂".encode()
    assert [matcher.feed(smile[i : i + 1]) for i in range(4)] == ["", "", "", "🙂"]
    assert matcher.feed(smile[:2]) == ""
    assert matcher.feed(b"x") == "\ufffdx"
    assert matcher.feed(smile[:3]) == ""
    assert matcher.flush() == "\ufffd"


# The tree


@given(st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_a_commit_keeps_the_subtree_and_nothing_else(seed):
    rng = random.Random(seed)
    tree = DraftTree(4, 99)
    paths = {(): 0}  # token path below the committed prefix -> node
    seen = {0}
    for _ in range(rng.randrange(60)):
        if rng.random() < 0.8:
            above = rng.choice(list(paths))
            token = rng.randrange(4)
            node = tree.add(paths[above], token, rng.random())
            assert ((*above, token) in paths) == (node in seen)
            paths[(*above, token)] = node
            seen.add(node)
        else:
            token = rng.randrange(4)
            root = tree.advance(token)
            assert root == paths.get((token,), root)
            paths = {path[1:]: node for path, node in paths.items() if path[:1] == (token,)} or {(): root}
            seen.add(root)
    assert len(tree) == len(paths) - 1
    for path, node in paths.items():
        assert tree[node].position == tree.position + len(path)
        if path:
            assert tree[paths[path[:-1]]].children[path[-1]] == node


# Devices, memory, cost


@pytest.mark.parametrize(
    "name, device",
    [
        ("cpu", Device("cpu")),
        ("cpu:0-3", Device("cpu", (0, 1, 2, 3))),
        ("cpu:0,2-3", Device("cpu", (0, 2, 3))),
        ("cuda:1", Device("cuda", (1,))),
        ("cuda", Device("cuda", (0,))),
        ("big-pc/cpu:0", Device("cpu", (0,), "big-pc")),
        ("10.0.0.2/cuda:0", Device("cuda", (0,), "10.0.0.2")),
    ],
)
def test_device_names(name, device):
    assert parse_device(name) == device
    assert parse_device(str(device)) == device


@pytest.mark.parametrize("name", ["", "gpu:0", "cpu:", "cpu:3-1", "cpu:x", "cuda:0,1", "a/b/cpu", "cpu:0-99999999"])
def test_bad_device_names_are_refused(name):
    with pytest.raises(DeviceError, match="device"):
        parse_device(name)


def test_devices_are_checked_against_the_machine():
    inventory = Inventory((0, 1), 8 << 30)
    assert check_device(parse_device("cpu"), inventory) == Device("cpu", (0, 1))
    for name in ("cpu:2", "cuda:0"):
        with pytest.raises(DeviceError, match=name):
            check_device(parse_device(name), inventory)


def test_default_devices():
    two = Inventory((0, 1), 8 << 30)
    assert default_devices(two, 1, True) == (Device("cpu", (0,)), Device("cpu", (1,)))
    assert default_devices(two, 1, False)[0] == Device("cpu", (0, 1))
    weak = Inventory((0, 1), 8 << 30, (Gpu("cuda", 0, "weak", 2 << 30),))
    assert default_devices(weak, 40 << 30, True) == (Device("cpu", (0, 1)), Device("cuda", (0,)))
    strong = Inventory((0, 1), 8 << 30, (Gpu("cuda", 0, "a", 80 << 30), Gpu("cuda", 1, "b", 80 << 30)))
    assert default_devices(strong, 40 << 30, True) == (Device("cuda", (0,)), Device("cuda", (1,)))


def test_a_role_not_placed_by_hand_takes_the_cores_the_other_leaves():
    four = Inventory((0, 1, 2, 3), 64 << 30)
    for fields, want in (
        ({}, ("cpu:0-2", "cpu:3")),
        ({"draft_device": "cpu:0"}, ("cpu:1-3", "cpu:0")),
        ({"target_device": "cpu:0-1"}, ("cpu:0-1", "cpu:2-3")),
        ({"target_device": "cpu:0-1", "draft_device": "cpu:1"}, ("cpu:0-1", "cpu:1")),
        ({"draft": "none"}, ("cpu:0-3", None)),
    ):
        plan = make_plan(make_config(fields), four)
        assert (str(plan.target.device), str(plan.drafter.device) if plan.drafter else None) == want


def test_memory():
    shape = ModelShape(weights=1000, parameters=500, layers=2, kv_heads=3, head_dim=5, vocabulary=7)
    found = footprint(shape, cells=11, width=2, rows=1)
    assert found.kv == 2 * 2 * 3 * 5 * 11 * 2
    assert found.total > 1000 + found.kv
    check_memory("x", 5, 5)
    with pytest.raises(MemoryShortage, match="x needs"):
        check_memory("x", 6, 5)


# The wire

SAMPLING = Sampling(0.8, 0, 1.0, 0.0, 2**63 - 1, 0)
OPENING = Open(1, 2, [1, 2, 3], [4], SAMPLING, 10, ["stop"])
MESSAGES = [
    OPENING,
    Resume(OPENING),
    Commit(1, 2, 3, [4, 5], 0.0),
    Hint(1, 2, 3, [-1, 0], [4, 5], [[6, 7], []]),
    Draft(1, 2, 3, [-1, 0], [5, 6], [0.5, 1.0], 0.25),
    Tokens(1, 2, 3, [4], "né"),
    Finished(1, 2, 3, "stop", "", Stats(1, 2.0, 3, 4.0, 5, 6, 7, 0, 8, 9.5)),
    Failed(1, 2, "code", "why"),
    Ping("drafter", 1, [(1, 2)]),
    Pong(4),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_messages_come_back_as_they_went(message):
    assert decode(encode(message)) == message


def raw(**fields):
    return msgpack.packb(fields)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\x80\x04\x95",  # a pickle
        raw(type="Nope"),
        raw(type="Pong"),
        raw(type="Pong", epoch=1, more=2),
        raw(type="Pong", epoch=-1),
        raw(type="Pong", epoch=2**63),
        raw(type="Pong", epoch="1"),
        raw(type="Pong", epoch=1.0),
        raw(type="Commit", seq=1, epoch=1, base=2**40, tokens=[], due=0.0),
        raw(type="Commit", seq=1, epoch=1, base=0, tokens=[-1], due=0.0),
        raw(type="Commit", seq=1, epoch=1, base=0, tokens=[2**31], due=0.0),
        raw(type="Commit", seq=1, epoch=1, base=0, tokens=[1], due=-1.0),
        raw(type="Commit", seq=1, epoch=1, base=0, tokens=[1], due=math.inf),
        raw(type="Draft", seq=1, epoch=1, base=0, parents=[-2], tokens=[1], chances=[1.0], seconds=0.0),
        raw(type="Draft", seq=1, epoch=1, base=0, parents=[-1] * 1025, tokens=[1], chances=[1.0], seconds=0.0),
        raw(type="Draft", seq=1, epoch=1, base=0, parents=[-1], tokens=[1], chances=[math.nan], seconds=0.0),
        raw(type="Draft", seq=1, epoch=1, base=0, parents=[-1], tokens=[1], chances=[1.5], seconds=0.0),
        raw(type="Draft", seq=1, epoch=1, base=0, parents=[-1], tokens=[1], chances=[1.0], seconds=1e9),
        raw(type="Hint", seq=1, epoch=1, base=0, parents=[-1], tokens=[1], likely=[[1] * 17]),
        msgpack.packb([1, 2, 3]),
        msgpack.packb({"type": "Pong", "epoch": msgpack.ExtType(5, b"x")}),
        b"\x81" * 2000,
        encode(OPENING) + b"x",
    ],
)
def test_anything_else_is_refused(frame):
    with pytest.raises(WireError):
        decode(frame)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_bytes_never_do_more_than_fail(data):
    with pytest.raises(WireError):
        decode(data)


def test_sockets_stay_on_the_loopback():
    with pytest.raises(WireError, match="loopback"):
        bind_router(None, "0.0.0.0")
