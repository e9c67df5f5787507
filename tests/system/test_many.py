"""Several verifiers of one target, several drafters for them all: the same texts, and through the loss of any."""

from __future__ import annotations

import random

import pytest
from helpers.builtin_pair import DRAFTER
from helpers.real_workers import until
from helpers.running_server import RunningServer
from helpers.streams import from_drafter, streams

from hetero.cluster.inventory import take_inventory
from hetero.config import make_config
from hetero.errors import HeteroError
from hetero.planning.planner import make_plan

SEEDS = [5, 6, 7, 8]
SETTINGS = {"target_engine": "octet", "target_device": "cpu:0-1", "strategy": "serial", "gamma": 3, "lookup": False}


def started(verifiers: int, drafters: int) -> RunningServer:
    others = [f"{DRAFTER}@cpu:0"] * (drafters - 1)
    return RunningServer(verifiers=verifiers, also_draft=others, parallel=2, port=0, **SETTINGS)


def texts(found: list[tuple[str, dict]]) -> list[str]:
    return [text for text, _ in found]


@pytest.fixture(scope="module")
def one_to_one() -> list[str]:
    stack = started(1, 1)
    try:
        return texts(streams(stack, 200, SEEDS))
    finally:
        stack.close()


@pytest.fixture(scope="module")
def two() -> RunningServer:
    made = started(2, 1)
    yield made
    made.close()


def test_two_verifiers_share_the_streams_and_one_drafter(one_to_one, two):
    roles, accepted = ("target", "target-1"), 0
    until(lambda: all(two.status(role).drafters for role in roles), 60)  # the drafter has found both

    def drafted() -> bool:  # the toy does not wait for a drafter that gets no core
        nonlocal accepted
        found = streams(two, 200, SEEDS)
        assert texts(found) == one_to_one
        accepted += sum(from_drafter(last["timings"]) for _, last in found)
        return accepted > 20 and all(two.status(role).drafters[0].drafted > 0 for role in roles)

    until(drafted, 60)
    served = [two.status(role) for role in roles]
    assert all(status.forwards > 0 for status in served) and [status.index for status in served] == [0, 1]
    assert {tuple(placement.device.indices) for placement in two.plan.targets} == {(0,), (1,)}
    two.settled()


@pytest.mark.parametrize("role", ["target", "target-1", "drafter"])
def test_any_of_them_is_killed_and_no_stream_notices(one_to_one, two, role):
    before = two.status(role).epoch
    assert texts(streams(two, 200, SEEDS, meanwhile=lambda: two.kill(role))) == one_to_one
    until(lambda: two.session.coordinator.statuses[role].epoch != before, 60)
    assert texts(streams(two, 200, SEEDS)) == one_to_one
    two.settled()


def test_while_one_verifier_is_away_the_other_answers_and_nothing_is_in_trouble(two):
    two.kill("target-1")
    until(lambda: "target-1" not in two.session.coordinator._ready, 30)
    assert two.session.trouble() is None and two.session.ready
    assert len(two.complete("def a", max_tokens=20, seed=1)["choices"][0]["text"]) > 10
    until(lambda: "target-1" in two.session.coordinator._ready, 60)


def test_the_turns_of_a_chat_find_their_beginnings_cached(two):
    """Ten turns of six chats in any order: all but what is new is taken from the verifier that had it."""
    rng, asked, cached = random.Random(4), 0, 0
    chats = [f"# chat {n}\n" + "def walk(path):\n    return path\n" * (2 + n) for n in range(6)]
    for turn in range(10):
        for n in rng.sample(range(6), 6):
            chats[n] += f"\nassert turn_{turn} == {n}\n"
            answer = two.complete(chats[n], max_tokens=12, seed=n)
            chats[n] += answer["choices"][0]["text"]
            if turn:
                asked += answer["usage"]["prompt_tokens"]
                cached += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached / asked > 0.7, (cached, asked)
    two.settled()


@pytest.mark.long
@pytest.mark.parametrize("verifiers, drafters", [(1, 3), (2, 3)])
def test_several_drafters_serve_them_all(one_to_one, verifiers, drafters):
    stack = started(verifiers, drafters)
    try:
        assert texts(streams(stack, 200, SEEDS)) == one_to_one
        for placement in stack.plan.placements:
            killed = streams(stack, 200, SEEDS, meanwhile=lambda role=placement.name: stack.kill(role))
            assert texts(killed) == one_to_one
        for target in stack.plan.targets:
            until(lambda name=target.name: len(stack.status(name).drafters) == drafters, 90)
        stack.settled()
    finally:
        stack.close()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"verifiers": 3, "target_device": "cpu:0-1"}, "verifiers: 3 want a core each, and the target has 2"),
        ({"verifiers": 0}, "verifiers: Expected `int` >= 1"),
        ({"verifiers": 65}, "verifiers: Expected `int` <= 64"),
    ],
)
def test_what_cannot_be_is_told(settings, words):
    with pytest.raises(HeteroError, match=words):
        make_plan(make_config({**SETTINGS, **settings}), take_inventory())
