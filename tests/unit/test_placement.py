"""Device names, defaults, memory, and plans by default."""

from __future__ import annotations

import pytest

from hetero.config import make_config
from hetero.placement.candidates import candidates
from hetero.placement.device import Device, Gpu, Inventory, check_device, default_devices, parse_device
from hetero.placement.errors import ConfigError, DeviceError, MemoryShortage
from hetero.placement.memory import ModelShape, check_memory, footprint
from hetero.planning.planner import make_plan


@pytest.mark.parametrize(
    "name, device",
    [
        ("cpu", Device("cpu")),
        ("cpu:0-3", Device("cpu", (0, 1, 2, 3))),
        ("cpu:0,2-3", Device("cpu", (0, 2, 3))),
        ("cuda:1", Device("cuda", (1,))),
        ("cuda", Device("cuda", (0,))),
        ("cuda:0-3", Device("cuda", (0, 1, 2, 3))),
        ("pc/vulkan:0,2", Device("vulkan", (0, 2), "pc")),
        ("big-pc/cpu:0", Device("cpu", (0,), "big-pc")),
        ("10.0.0.2/cuda:0", Device("cuda", (0,), "10.0.0.2")),
    ],
)
def test_device_names(name, device):
    assert parse_device(name) == device
    assert parse_device(str(device)) == device


@pytest.mark.parametrize(
    "name", ["", "gpu:0", "cpu:", "cpu:3-1", "cpu:x", "cuda:0-16", "mps:0,1", "a/b/cpu", "cpu:0-99999999", "cpu:²"]
)
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


def test_several_gpus_take_a_target_that_none_holds_alone():
    cards = tuple(Gpu("cuda", n, "a card", 24 << 30) for n in range(4))
    box = Inventory((0, 1), 64 << 30, cards)
    for size, want in ((20, "cuda:0"), (30, "cuda:0-1"), (60, "cuda:0-2"), (80, "cuda:0-3"), (95, "cpu:0-1")):
        assert str(default_devices(box, size << 30, True)[0]) == want
    assert str(default_devices(box, 30 << 30, True)[1]) == "cuda:2"
    assert str(default_devices(box, 60 << 30, True, lambda count: 8 % count == 0)[0]) == "cuda:0-3"
    assert str(default_devices(box, 60 << 30, True, lambda count: False)[0]) == "cpu:0-1"
    assert str(default_devices(box, 80 << 30, True)[1]) == "cpu:0-1"
    assert check_device(parse_device("cuda:1-3"), box) == Device("cuda", (1, 2, 3))
    with pytest.raises(DeviceError, match="cuda:3-4: not on this machine, which has cuda:0, cuda:1"):
        check_device(parse_device("cuda:3-4"), box)
    mac = Inventory((0, 1), 8 << 30, (Gpu("mps", 0, "a Mac", 8 << 30),))
    assert str(default_devices(mac, 20 << 30, True)[0]) == "cpu:0-1"


def test_an_engine_on_several_gpus(monkeypatch):
    """GGUF files' layers in sequence by llama.cpp; torch a rank on each."""
    monkeypatch.setattr("hetero.workers.engines.accelerators.llama_kinds", lambda: frozenset({"cuda"}))
    monkeypatch.setattr("hetero.workers.engines.accelerators.torch_kinds", lambda: frozenset({"cuda"}))
    box = Inventory((0, 1), 64 << 30, tuple(Gpu("cuda", n, "a card", 1 << 30) for n in range(4)))
    asked = {"target_device": "cuda:0-1", "draft_device": "cuda:2-3"}
    plan = make_plan(make_config(asked), box)
    for placement, gpus in ((plan.target, [0, 1]), (plan.drafter, [2, 3])):
        assert (placement.spec.engine, placement.spec.gpus, placement.spec.ranks) == ("llama_cpp", gpus, 1)
        assert [name for name, _ in placement.parts] == [f"cuda:{n}" for n in gpus]
        assert sum(memory.weights for _, memory in placement.parts) == pytest.approx(placement.memory.weights, rel=0.01)
    uneven = Inventory((0, 1), 64 << 30, (Gpu("cuda", 0, "a card", 3 << 30), Gpu("cuda", 1, "a card", 1 << 30)))
    parts = make_plan(make_config({"target_device": "cuda:0-1", "draft": "none"}), uneven).target.parts
    assert parts[0][1].weights == pytest.approx(3 * parts[1][1].weights, rel=0.01)
    shared = make_plan(make_config({**asked, "target_engine": "torch", "draft_engine": "torch", "draft_group": 2}), box)
    assert (shared.target.spec.ranks, shared.drafter.spec.ranks, shared.drafter.spec.group) == (2, 2, 2)
    whole = make_plan(make_config({"target_engine": "torch", "target_device": "cuda:0", "draft": "none"}), box).target
    assert shared.target.parts[0][1].weights == pytest.approx(whole.memory.weights / 2, rel=0.01)
    assert make_plan(make_config({**asked, "target_ranks": 2}), box).target.spec.engine == "torch"
    for wrong, why in (
        ({"target_ranks": 4}, "target_ranks: each rank has a GPU of its own: 4 ranks, and cuda:0-1 names 2"),
        ({"target_engine": "torch", "exact": True}, "exact mode of torch"),
        ({"target_engine": "torch", "target_device": "cuda:0-2", "draft_device": "cuda:3"}, "heads of keys, which 3"),
        ({"target_engine": "octet"}, "octet runs on CPUs only"),
    ):
        with pytest.raises(ConfigError, match=why):
            make_plan(make_config({**asked, **wrong}), box)
    split = make_plan(make_config({**asked, "gpu_layers": 1, "target_engine": "llama_cpp"}), box).target
    assert [name for name, _ in split.parts] == ["cuda:0", "cuda:1", "cpu"]
    found = {str(c.target): c for c in candidates(box, True) if c.strategy == "ahead"}
    assert str(found["cuda:0-1"].drafter) in ("cuda:2", "cpu:0-1") and "cuda:0-3" in found


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


def test_a_cache_of_bytes_takes_half_and_torch_keeps_none():
    two = Inventory((0, 1), 64 << 30)
    by_kept = {kept: make_plan(make_config({"kv_cache": kept}), two) for kept in ("f16", "q8_0")}
    halves, bytes_ = (by_kept[kept].target for kept in ("f16", "q8_0"))
    assert bytes_.spec.kv_cache == "q8_0" and 0.5 < bytes_.memory.kv / halves.memory.kv < 0.6
    assert bytes_.spec.cached > 1.7 * halves.spec.cached
    mixed = make_plan(make_config({"kv_cache": "q8_0", "draft_engine": "torch"}), two)
    assert mixed.drafter.spec.kv_cache == "f16"  # a draft is only a guess
    with pytest.raises(ConfigError, match="kv_cache: torch cannot keep q8_0: take one of llama_cpp, octet"):
        make_plan(make_config({"kv_cache": "q8_0", "target_engine": "torch"}), two)


def test_a_gpu_may_hold_some_layers_of_the_target(monkeypatch):
    monkeypatch.setattr("hetero.workers.engines.accelerators.llama_kinds", lambda: frozenset({"vulkan"}))
    card = Inventory((0, 1, 2), 64 << 30, (Gpu("vulkan", 0, "a card", 1 << 30),))
    asked = {"draft": "none", "target_device": "vulkan:0", "gpu_layers": 1, "target_engine": "llama_cpp"}
    whole = make_plan(make_config({**asked, "gpu_layers": -1}), card).target
    split = make_plan(make_config(asked), card).target
    layers = whole.model.shape.layers
    assert whole.spec.gpu_layers == -1 and whole.spec.cores == [] and [name for name, _ in whole.parts] == ["vulkan:0"]
    assert split.spec.gpu_layers == 1 and split.spec.cores == [0, 1, 2]
    parts = dict(split.parts)
    assert parts.keys() == {"vulkan:0", "cpu"}
    assert parts["vulkan:0"].kv == pytest.approx(whole.memory.kv / layers, rel=0.01)
    assert parts["vulkan:0"].kv + parts["cpu"].kv == pytest.approx(whole.memory.kv, rel=0.01)
    assert make_plan(make_config({**asked, "gpu_layers": 500}), card).target.spec.gpu_layers == -1
    for wrong, why in (({"target_device": "cpu"}, "the target is on cpu"), ({"gpu_layers": -2}, "gpu_layers")):
        with pytest.raises(ConfigError, match=why):
            make_plan(make_config({**asked, **wrong}), card)
