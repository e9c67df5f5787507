"""Several ranks as one engine: a tensor-parallel target, a drafter whose layers are shared out. Real processes."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
from helpers.running_server import RunningServer
from helpers.streams import from_drafter, streams

pytestmark = pytest.mark.long

SETTINGS = {"lookup": False, "target_engine": "torch", "port": 0, "context": 600, "parallel": 2}
SEEDS = [11, 12]


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """The texts of one device without a drafter."""
    stack = RunningServer(draft="none", **SETTINGS)
    try:
        return [text for text, _ in streams(stack, 200, SEEDS)]
    finally:
        stack.close()


@pytest.fixture(scope="module")
def team(alone):  # one Ray at a time
    stack = RunningServer(strategy="serial", target_ranks=2, draft_ranks=2, draft_group=3, **SETTINGS)
    yield stack
    left = ranks(stack, "target") + ranks(stack, "drafter")
    assert len(left) == 2
    stack.close()
    _, alive = psutil.wait_procs(left, timeout=10)
    assert not alive


def ranks(stack: RunningServer, role: str) -> list[psutil.Process]:
    """The further ranks of a role."""
    children = psutil.Process(stack.status(role).pid).children()
    return [child for child in children if "hetero.workers.engines.torch.rank" in child.cmdline()]


def test_the_texts_are_those_of_one_device(team, alone):
    found = streams(team, 200, SEEDS)
    assert [text for text, _ in found] == alone
    assert sum(from_drafter(last["timings"]) for _, last in found) > 40


@pytest.mark.parametrize("name", ["ahead", *(pytest.param(name, marks=pytest.mark.long) for name in ("mirror", "off"))])
def test_all_strategies_work_over_it(team, alone, name):
    team.session.coordinator.follow(name, 0)
    found = streams(team, 120, SEEDS)
    team.session.coordinator.follow("serial", 4)
    assert [text for text, _ in found] == [text[: len(found[n][0])] for n, text in enumerate(alone)]
    assert all(len(text) > 100 for text, _ in found)
    used = sum(from_drafter(last["timings"]) for _, last in found)
    assert used == 0 if name == "off" else used > 5 or name == "ahead"  # which may find that none pays here


@pytest.mark.long
@pytest.mark.parametrize(
    ("role", "fault"),
    [
        pytest.param("target", signal.SIGKILL, id="target killed"),
        pytest.param("drafter", signal.SIGSTOP, id="drafter stopped"),
    ],
)
def test_a_rank_lost_in_mid_stream(team, alone, role, fault):
    """All ranks go with it and come again; clients see a pause."""
    before, lost = team.status(role), ranks(team, role)
    assert len(lost) == 1
    found = streams(team, 200, SEEDS, meanwhile=lambda: os.kill(lost[0].pid, fault))
    assert [text for text, _ in found] == alone
    end = time.monotonic() + 90
    while team.session.coordinator.statuses[role].epoch == before.epoch:
        assert time.monotonic() < end, team.events
        if role == "drafter":  # it is missed when it should draft
            streams(team, 20, [1])
        time.sleep(0.2)
    assert not lost[0].is_running() and not psutil.pid_exists(before.pid)
    assert len(ranks(team, role)) == 1
    again = streams(team, 60, SEEDS)
    assert [text for text, _ in again] == [text[: len(again[n][0])] for n, text in enumerate(alone)]
    assert any("team" in event for event in team.events)
