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


def test_a_head_that_comes_late_begins_where_it_hears():
    HeadTable.informed = 0
    world = World(3, "ahead", heads=True, faults=Faults(drafter_crash=0.15))
    story = world.ask(prompts(3, 1)[0] * 3, max_tokens=200, seed=4, asked={"ignore_end": True})
    world.play()
    check(world)
    assert story.end.stats.draft_n > 0 and HeadTable.informed > 20
