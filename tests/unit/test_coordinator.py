"""The coordinator's view of several verifiers: when something is in trouble, when all is lost, when a start is over."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hetero.cluster.coordinator import Coordinator
from hetero.config import make_config
from hetero.placement.device import Inventory
from hetero.planning.planner import make_plan


class Life:
    """An incarnation that does nothing."""

    silent_s = 0.0

    def __getattr__(self, name):
        return lambda *_: None


@pytest.fixture
def told():
    """A coordinator of two verifiers whose keepers never start, and what it says of failures."""
    config = make_config({"target": "builtin:toy", "draft": "none", "verifiers": 2, "target_engine": "octet"})
    plan = make_plan(config, Inventory((0, 1), 8 << 30))
    failures: list[str] = []
    made = Coordinator(plan, None, None, on_failure=failures.append)
    return SimpleNamespace(coordinator=made, failures=failures)


def comes(told, role: str) -> None:
    keeper = told.coordinator._keepers[role]
    keeper.incarnation = Life()
    told.coordinator.ready(
        keeper, SimpleNamespace(index=int(role[-1]) if "-" in role else 0, endpoint="x", loaded_s=1.0)
    )


def test_trouble_is_when_none_is_there(told):
    coordinator, keepers = told.coordinator, told.coordinator._keepers
    assert "being started" in coordinator.trouble()
    comes(told, "target-1")
    assert coordinator.trouble() is None and not coordinator.settled.is_set()
    comes(told, "target")
    assert coordinator.settled.is_set()
    coordinator.lost(keepers["target"], "killed")
    assert coordinator.trouble() is None
    coordinator.lost(keepers["target-1"], "killed")
    assert "another one is being started" in coordinator.trouble()
    comes(told, "target")
    assert coordinator.trouble() is None and not told.failures


def test_one_given_up_is_no_failure_while_another_serves_and_one_that_came_back_counts_again(told):
    coordinator, keepers = told.coordinator, told.coordinator._keepers
    for role in ("target", "target-1"):
        comes(told, role)
    coordinator.lost(keepers["target-1"], "killed")
    coordinator.refused(keepers["target-1"], "no memory")
    assert not told.failures and coordinator.trouble() is None
    comes(told, "target-1")  # its machine returned
    coordinator.lost(keepers["target"], "killed")
    coordinator.refused(keepers["target"], "no memory")
    assert not told.failures and coordinator.trouble() is None
    coordinator.lost(keepers["target-1"], "killed")
    coordinator.refused(keepers["target-1"], "no memory")
    assert told.failures and "given up" in coordinator.trouble()


def test_one_that_was_asked_for_and_never_came_fails_the_start(told):
    told.coordinator.refused(told.coordinator._keepers["target-1"], "no memory")
    assert told.failures == ["target-1: no memory"] and told.coordinator.settled.is_set()


def test_a_start_is_over_when_one_serves_and_the_other_waits_for_its_machine(told):
    told.coordinator.waits(told.coordinator._keepers["target"])
    assert not told.coordinator.settled.is_set()
    comes(told, "target-1")
    assert told.coordinator.settled.is_set() and told.coordinator.trouble() is None
