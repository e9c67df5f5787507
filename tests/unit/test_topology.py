"""Other machines' cores, played from files as Linux has them: who works together, who may draft."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero.cluster.topology import memory_limit, read_topology
from hetero.placement.device import Inventory, default_devices
from hetero.placement.topology import Core, Topology


def machine(root: Path, siblings: list[str], nodes: tuple[str, ...] = (), **files: str) -> Path:
    """``siblings``: of each hardware thread; ``nodes``: cores near each node of memory; ``files``: more, by path with
    __ for / ."""
    for n, shared in enumerate(siblings):
        put(root, f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list", shared)
    for n, near in enumerate(nodes):
        put(root, f"sys/devices/system/node/node{n}/cpulist", near)
    for name, text in files.items():
        put(root, name.replace("__", "/"), text)
    return root


def put(root: Path, name: str, text: str) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


I7 = [f"{n // 2 * 2}-{n // 2 * 2 + 1}" for n in range(16)] + [str(n) for n in range(16, 20)]


def devices(found: Topology) -> tuple[str, str]:
    inventory = Inventory(tuple(core.number for core in found.cores), 64 << 30, (), found)
    return tuple(map(str, default_devices(inventory, 1, True)))


def test_eight_fast_cores_of_two_threads_and_four_slow_ones(tmp_path):
    root = machine(tmp_path, I7, sys__devices__cpu_core__cpus="0-15", sys__devices__cpu_atom__cpus="16-19")
    found = read_topology(range(20), root)
    assert found.fast == (0, 2, 4, 6, 8, 10, 12, 14) and found.slow == (16, 17, 18, 19)
    assert devices(found) == ("cpu:0,2,4,6,8,10,12,14", "cpu:16-19")
    assert found.beside((0, 3)) == (4, 6, 8, 10, 12, 14)  # 3 is the sibling of 2


def test_two_sockets(tmp_path):
    siblings = [f"{n % 16},{n % 16 + 16}" for n in range(32)]
    found = read_topology(range(32), machine(tmp_path, siblings, ("0-7,16-23", "8-15,24-31")))
    assert found.fast == tuple(range(16)) and found.slow == ()
    assert found.near(found.fast) == {0: tuple(range(8)), 1: tuple(range(8, 16))}
    assert devices(found) == ("cpu:0-14", "cpu:15")


def test_capacities_tell_an_arm_boards_big_cores(tmp_path):
    root = machine(tmp_path, [str(n) for n in range(8)])
    for n in range(8):
        put(root, f"sys/devices/system/cpu/cpu{n}/cpu_capacity", "1024" if n >= 4 else "446")
    found = read_topology(range(8), root)
    assert found.fast == (4, 5, 6, 7) and found.slow == (0, 1, 2, 3)


@pytest.mark.parametrize(
    "files",
    [
        {"proc__self__cgroup": "0::/", "sys__fs__cgroup__cpu.max": "200000 100000"},
        {"proc__self__cgroup": "0::/a/b", "sys__fs__cgroup__a__cpu.max": "250000 100000",
         "sys__fs__cgroup__a__b__cpu.max": "max 100000"},
        {"proc__self__cgroup": "4:cpu,cpuacct:/x", "sys__fs__cgroup__cpu__x__cpu.cfs_quota_us": "200000",
         "sys__fs__cgroup__cpu__x__cpu.cfs_period_us": "100000"},
    ],
)  # fmt: skip
def test_a_containers_quota_bounds_the_threads(tmp_path, files):
    found = read_topology(range(20), machine(tmp_path, I7, **files))
    assert found.fast == (0, 2) and devices(found) == ("cpu:0", "cpu:2")


def test_a_containers_memory_bounds_the_models(tmp_path):
    machine(tmp_path, ["0"], proc__self__cgroup="0::/box")
    assert memory_limit(tmp_path) is None
    put(tmp_path, "sys/fs/cgroup/box/memory.max", str(4 << 30))
    put(tmp_path, "sys/fs/cgroup/box/memory.current", str(1 << 30))
    assert memory_limit(tmp_path) == 3 << 30
    put(tmp_path, "sys/fs/cgroup/box/memory.stat", f"anon 5\ninactive_file {256 << 20}\nactive_file {256 << 20}")
    assert memory_limit(tmp_path) == 3 << 30 | 512 << 20  # files that were read are no loss
    put(tmp_path, "sys/fs/cgroup/box/memory.max", "max")
    assert memory_limit(tmp_path) is None


def test_without_such_files_cores_are_alike(tmp_path):  # macOS
    found = read_topology(range(8), tmp_path)
    assert found.fast == tuple(range(8)) and found.slow == () and devices(found) == ("cpu:0-6", "cpu:7")


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.4, 0.9, 1.0])), min_size=1, max_size=12),
    st.floats(0, 16),
)
def test_no_two_threads_share_a_core_and_none_waits_for_a_slow_one(cores, quota):
    speeds = dict(cores)
    found = Topology(tuple(Core(n, physical, 0, speeds[physical]) for n, (physical, _) in enumerate(cores)), quota)
    both = found.fast + found.slow
    physical = [core.physical for core in found.cores if core.number in both]
    assert found.fast and len(physical) == len(set(physical))
    assert not quota or len(both) <= max(1, int(quota))
    top = max(core.speed for core in found.cores)
    assert all(core.speed >= 0.8 * top for core in found.cores if core.number in found.fast)
