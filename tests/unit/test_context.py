"""The context nobody chose: the model's, or what memory allows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.builtin_pair import TARGET

from hetero.config import make_config
from hetero.errors import MemoryShortage
from hetero.placement.device import Inventory
from hetero.planning.planner import Planner
from hetero.serve import remarks
from hetero.workers.models.model import read_model


def planned(monkeypatch, made_for: int, memory: int, **settings):
    """A plan of the built-in target, as if it were made for ``made_for`` tokens, on a machine of so many bytes."""
    model = read_model(TARGET, "wide")
    wide = replace(model, metadata=replace(model.metadata, context=made_for))
    monkeypatch.setattr("hetero.planning.planner.find_model", lambda path, role, of=None: wide)
    return Planner(make_config(settings), Inventory(cores=(0, 1), memory=memory, gpus=())).plan()


def test_it_is_the_models_where_that_fits(monkeypatch):
    plan = planned(monkeypatch, 131072, 64 << 30)
    assert plan.context == 131072 and not plan.cut and remarks(plan) == []


def test_it_is_cut_to_memory_and_said(monkeypatch):
    plan = planned(monkeypatch, 131072, 1 << 30)
    assert 2048 < plan.context < 131072 and plan.context % 256 == 0 and plan.cut
    assert remarks(plan) == [f"context: {plan.context} of the model's 131072 tokens, as memory allows (--context)"]
    kv = sum(placement.memory.kv for placement in plan.placements)
    rest = (1 << 30) - sum(placement.memory.total - placement.memory.kv for placement in plan.placements)
    assert 0.4 * rest < kv <= 0.51 * rest


def test_what_was_asked_for_is_not_cut(monkeypatch):
    assert planned(monkeypatch, 131072, 64 << 30, context=4096).context == 4096
    with pytest.raises(MemoryShortage):
        planned(monkeypatch, 131072, 1 << 30, context=131072)
    with pytest.raises(MemoryShortage):
        planned(monkeypatch, 131072, 150 << 20)  # not even the least
