"""M drafters, N verifiers, and everything that can go wrong with them: each schedule is a pure function of its seed."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
from helpers.simulated_world import TARGET, Faults, World, prompts, reference

from hetero.gateway.verifiers.routing import Router
from hetero.workers.decoding.policy.strategy import NAMES
from hetero.workers.wire.messages import Finished

SHARES = 10  # tests among which the schedules are shared out, so that they may run side by side
DEFAULT, LONG = range(500), range(500, int(os.environ.get("HETERO_SCHEDULES", "10000")))
SMALL = replace(TARGET, draft_nodes=48)  # a drafter whose verifier hangs comes to its bound soon
ONE = os.environ.get("HETERO_SCHEDULE")  # the one to reproduce


def faults(rng: random.Random) -> Faults:
    """Some of what can go wrong; now and then nothing, or all of it."""

    def maybe(value):
        return value if rng.random() < 0.3 else 0.0

    def mean(low: float, high: float) -> float | None:
        return rng.uniform(low, high) if rng.random() < 0.3 else None

    return Faults(
        lose=maybe(0.2),
        repeat=maybe(0.2),
        delay=rng.choice([0.0005, 0.0005, 0.03]),
        jitter=maybe(0.02),
        engine=maybe(0.2),
        drafter_crash=mean(0.3, 2),
        verifier_crash=mean(0.5, 3),
        hang=mean(0.3, 2),
        partition=mean(0.3, 2),
        jump=mean(0.3, 2),
        adversary=rng.random() < 0.3,
        guesses=rng.random() < 0.3,
        revised=mean(0.3, 1),
    )


def play(seed: int) -> World:
    rng = random.Random(seed)
    verifiers, drafters = rng.randint(1, 3), rng.randint(0, 3)
    routed = rng.random() < 0.8
    world = World(
        seed,
        rng.choice(NAMES),
        gamma=rng.randint(1, 8),
        agreement=tuple(rng.choice([0.0, 0.7, 0.9, 1.0]) for _ in range(drafters)) or None,
        faults=faults(rng),
        draft_s=rng.choice([0.002, 0.01, 0.05]),
        cached=rng.choice([0, 150]),
        past=rng.choice([None, 40]),
        verifiers=verifiers,
        target=SMALL,
        route=Router(2).choose if routed else None,
    )
    for prompt in prompts(seed, 3):
        world.ask(
            prompt,
            max_tokens=rng.randint(1, 20),
            temperature=rng.choice([0.0, 0.8]),
            seed=rng.randrange(2**40),
            at=rng.uniform(0, 0.5),
            verifier=rng.randrange(verifiers),
            presence=rng.choice([0.0, 1.0]),
            logprobs=rng.choice([-1, 2]),
        )
    world.play(3600)
    for story in world.stories:
        assert isinstance(story.end, Finished), story.end
        assert story.tokens == reference(story.opening)
    assert not [error for error in world.errors if "node" in error]
    return world


def play_each(seeds: range) -> None:
    accepted = resumed = frozen = 0
    for seed in seeds if ONE is None else [int(ONE)]:
        try:
            world = play(seed)
        except BaseException as error:
            line = f"HETERO_SCHEDULE={seed} python -m pytest -m '' '{__file__}::test_texts_are_the_targets[0]'"
            raise AssertionError(f"schedule {seed}; to reproduce it:\n{line}") from error
        accepted += sum(story.end.stats.draft_n_accepted for story in world.stories)
        resumed += sum(story.end.stats.resumed_n > 0 for story in world.stories)
        frozen += sum(worker.frozen for worker in world.pair.workers.values())
    assert ONE is not None or min(accepted, resumed, frozen) > 0, (accepted, resumed, frozen)  # they did befall them


@pytest.mark.parametrize("share", range(SHARES))
def test_texts_are_the_targets(share):
    play_each(DEFAULT[share::SHARES])


@pytest.mark.long
@pytest.mark.parametrize("share", range(SHARES))
def test_nor_do_they_differ_in_ten_thousand(share):
    play_each(LONG[share::SHARES])


def test_a_verifiers_sequences_go_on_at_another_while_it_is_away():
    world = World(1, "ahead", verifiers=2, route=Router(3).choose)
    stories = [world.ask(prompt, 40, seed=n, at=0.0) for n, prompt in enumerate(prompts(1, 6))]
    left = []

    def kill() -> None:
        left.extend(story for story in stories if story.end is None and story.verifier == b"verifier-0")
        world.pair.kill(b"verifier-0", 1e6)

    world.pair.clock.at(0.12, kill)
    world.play()
    assert len(left) >= 2 and all(story.verifier == b"verifier-1" for story in left)
    assert any(story.end.stats.resumed_n > 0 for story in left)
    assert all(story.tokens == reference(story.opening) for story in stories)
