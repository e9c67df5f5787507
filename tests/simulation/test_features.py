"""Heads are told the features of the right tokens, and only the tokens they are of; the texts stay the target's."""

from __future__ import annotations

import random

import pytest
from helpers.simulated_world import Faults, World, prompts
from helpers.table_heads import HeadTable
from test_independence import KINDS, check, requests

from hetero.workers.decoding.policy.strategy import NAMES

DRAFTING = [name for name in NAMES if name != "off"]


def play(kind: str, strategy: str, seed: int) -> World:
    agreement, faults = KINDS[kind]
    rng = random.Random(seed)
    world = World(
        seed,
        strategy,
        gamma=rng.randint(1, 8),
        agreement=rng.choice([agreement, (agreement, 0.5)]),
        faults=faults,
        draft_s=0.004,
        cached=rng.choice([0, 2000]),
        past=rng.choice([None, 40]),
        draft_context=rng.choice([30, 4096]),
        heads=True,
    )
    requests(world, seed)
    world.play()
    check(world)
    return world


@pytest.mark.parametrize("strategy", DRAFTING)
def test_every_committed_token_comes_with_the_state_before_it(strategy):
    HeadTable.informed = HeadTable.blind = 0
    for seed in range(2):
        world = play("good", strategy, seed)
        assert world.pair.drafted > 0
    assert HeadTable.informed > 100 and HeadTable.blind == 0


@pytest.mark.parametrize("strategy", DRAFTING)
@pytest.mark.parametrize(
    "kind",
    [
        "lossy",
        "everything",
        *(pytest.param(kind, marks=pytest.mark.long) for kind in ("crashing", "verifier crashing", "failing")),
    ],
)
def test_never_with_that_of_another_token(kind, strategy):
    HeadTable.informed = 0
    for seed in range(2):
        play(kind, strategy, seed)
    assert HeadTable.informed > 20


def test_a_head_that_comes_late_hears_of_all():
    HeadTable.informed = 0
    HeadTable.begun.clear()
    world = World(3, "ahead", heads=True, faults=Faults(drafter_crash=0.15))
    story = world.ask(prompts(3, 1)[0] * 3, max_tokens=200, seed=4, asked={"ignore_end": True})
    world.play()
    check(world)
    assert story.end.stats.draft_n > 0 and HeadTable.informed > 20
    assert len(HeadTable.begun) > 3 and set(HeadTable.begun) == {1}  # before the first token is no state


@pytest.mark.parametrize("strategy", ["serial", "ahead"])
def test_a_head_hears_of_a_cached_beginning(strategy):
    """Of a prompt that begins as an earlier sequence does, its answer too, and what was never evaluated again."""
    HeadTable.informed = HeadTable.blind = 0
    HeadTable.begun.clear()
    world = World(5, strategy, heads=True, cached=4000)
    told: list[int] = prompts(5, 1)[0] * 3
    for turn in range(5):
        story = world.ask(told, max_tokens=40, seed=turn, asked={"ignore_end": True})
        world.play()
        assert turn == 0 or story.end.stats.cached_n >= len(told) - 10
        told = [*told, *story.tokens, 7, 8, 9]
    check(world)
    assert HeadTable.blind == 0 and len(HeadTable.begun) == 5 and set(HeadTable.begun) == {1}
