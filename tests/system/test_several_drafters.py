"""More than one drafter at once, of which one has other token ids: the same texts, with all, and when one is lost."""

from __future__ import annotations

import random

import pytest
from helpers.builtin_pair import DRAFTER
from helpers.odd_gguf import other_vocabulary
from helpers.real_workers import until
from helpers.running_server import RunningServer
from helpers.streams import from_drafter, streams

from hetero.cluster.inventory import take_inventory
from hetero.config import make_config
from hetero.errors import HeteroError
from hetero.planning.planner import make_plan

SEEDS = [5, 6, 7]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    order = list(range(1, 4096))
    random.Random(0).shuffle(order)
    return other_vocabulary(DRAFTER, tmp_path_factory.mktemp("other") / "other.gguf", [0, *order])


@pytest.fixture(scope="module")
def stack(other):
    made = RunningServer(also_draft=[f"{other}@cpu:0"], strategy="serial", exact=True, lookup=False, port=0)
    yield made
    made.close()


@pytest.mark.long
def test_both_propose_and_either_may_be_lost(stack):
    assert set(stack.settled()) == {"target", "drafter", "drafter-1"}
    calm = streams(stack, 300, SEEDS)
    sources = [last["timings"]["draft_sources"] for _, last in calm]
    for name in ("drafter", "drafter-1"):
        assert sum(own.get(name, {"accepted": 0})["accepted"] for own in sources) > 0
    for role in ("drafter-1", "drafter"):
        stormy = streams(stack, 300, SEEDS, meanwhile=lambda role=role: stack.kill(role))
        assert [text for text, _ in stormy] == [text for text, _ in calm]
    assert {stack.status(role).index for role in ("drafter", "drafter-1")} == {0, 1}
    until(lambda: len(stack.status("target").drafters) == 2, 60)
    again = streams(stack, 200, SEEDS)
    assert all(text.startswith(begun) for (text, _), (begun, _) in zip(calm, again, strict=True))
    assert sum(from_drafter(last["timings"]) for _, last in again) > 0
    stack.settled()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"also_draft": ["nothing"]}, "write MODEL@DEVICE"),
        ({"also_draft": [f"{DRAFTER}@pc/cpu:0"]}, "a device of this machine"),
        ({"also_draft": [f"{DRAFTER}@cpu:0"], "draft": "none"}, "which --draft names"),
        ({"also_draft": [f"{DRAFTER}@cpu:999"]}, "no core 999"),
    ],
)
def test_what_cannot_be_is_told(settings, words):
    with pytest.raises(HeteroError, match=words):
        make_plan(make_config(settings), take_inventory())
