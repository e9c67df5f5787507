"""Several drafters for one verifier, several verifiers for one drafter: the same tokens, drafts of all used."""

from __future__ import annotations

import random

import pytest
from helpers.simulated_world import Faults, World, prompts, reference

from hetero.workers.decoding.policy.strategy import NAMES
from hetero.workers.wire.messages import Cancel, Failed

DRAFTING = [name for name in NAMES if name != "off"]


def ask(world: World, seed: int, verifiers: int = 1) -> None:
    rng = random.Random(seed)
    for n, prompt in enumerate(prompts(seed, 6)):
        temperature = rng.choice([0.0, 0.8, 1.0])
        world.ask(prompt, 50, temperature, seed=rng.randrange(2**40), at=rng.uniform(0, 0.5), verifier=n % verifiers)


def check(world: World) -> None:
    for story in world.stories:
        assert story.tokens == reference(story.opening)
    world.settle()
    for name, worker in world.pair.workers.items():
        assert worker.machine.idle and world.engine(name).used_cells == 0, name
    assert not [error for error in world.errors if "node" in error or "are open" in error]


@pytest.mark.parametrize("name", DRAFTING)
def test_drafts_of_two_drafters_are_used(name):
    """A second drafter evicted the first at every ping once."""
    accepted = [0, 0]
    for seed in range(2):
        world = World(seed, name, agreement=(0.8, 0.7))
        ask(world, seed)
        world.play()
        check(world)
        drafters = {peer.index: peer for peer in world.pair[b"verifier-0"].machine.drafters}
        assert drafters.keys() == {0, 1} and all(peer.drafted > 0 for peer in drafters.values())
        for index, peer in drafters.items():
            accepted[index] += peer.accepted
        assert sum(peer.accepted for peer in drafters.values()) == sum(
            s.end.stats.draft_n_accepted for s in world.stories
        )
    assert min(accepted) > 10


@pytest.mark.parametrize("name", ["serial", "ahead"])
def test_two_drafters_that_fail_in_turn_change_nothing(name):
    for seed in range(4):
        faults = Faults(lose=0.1, repeat=0.1, jitter=0.02, engine=0.1, drafter_crash=0.5, adversary=seed % 2 == 0)
        world = World(seed, name, agreement=(0.9, 0.0), faults=faults)
        ask(world, seed)
        world.play()
        check(world)


def test_one_of_two_drafters_that_leaves_is_forgotten():
    world = World(3, "ahead", agreement=(0.8, 0.8))
    ask(world, 3)
    verifier = world.pair[b"verifier-0"].machine
    world.pair.clock.at(0.3, lambda: world.pair.kill(b"drafter-1", 1e6))
    world.play()
    world.pair.settle(5.0)
    assert [peer.index for peer in verifier.drafters] == [0]
    assert all(story.tokens == reference(story.opening) for story in world.stories)


@pytest.mark.parametrize("name", DRAFTING)
def test_one_drafter_serves_two_verifiers(name):
    accepted = [0, 0]
    for seed in range(2):
        world = World(seed, name, agreement=0.8, verifiers=2, faults=Faults(verifier_crash=1.0 if seed % 2 else None))
        ask(world, seed, verifiers=2)
        world.play()
        check(world)
        for story in world.stories:
            accepted[int(story.verifier[-1:])] += story.end.stats.draft_n_accepted
    assert min(accepted) > 10


def test_sequences_of_the_same_name_are_kept_apart():
    """Two verifiers choose names of their own."""
    from hetero.workers.decoding.drafter import Drafter
    from hetero.workers.decoding.policy.strategy import strategy
    from hetero.workers.engines.base import EngineLimits
    from hetero.workers.wire.messages import Commit, Open, Sampling

    drafter = Drafter(1, EngineLimits(8, 100, 16, 64, 4), frozenset(), strategy("ahead"))
    for n, peer in enumerate((b"verifier-0", b"verifier-1")):
        drafter.receive(peer, Open(7, 50 + n, [n], [], Sampling(0.0), 50, []), 0.0)
    assert drafter.counts == (2, 0)
    drafter.receive(b"verifier-0", Commit(7, 50, 1, [3], 0.0), 0.0)
    pings = {peer: message.lengths for peer, message in drafter.step(0.0).sends}
    assert pings == {b"verifier-0": [(7, 2)], b"verifier-1": [(7, 1)]}


def test_a_drafter_that_is_lost_while_its_sequence_ends_harms_nobody():
    """An early exit for a window of a sequence that was cancelled looked for a drafter that was forgotten."""
    world = World(1, "mirror", gamma=3)
    story = world.ask([1, 2, 3], 60)
    machine = world.pair[b"verifier-0"].machine

    def cut() -> None:
        if not (machine._scheduler.flight and machine._scheduler.flight.windows):
            world.pair.clock.after(0.001, cut)
            return
        machine.receive(b"client", Cancel(story.opening.seq), world.now)
        machine.lost(b"drafter-0", world.now)
        story.end = Failed(1, 0, "cancelled", "")

    world.pair.clock.at(0.2, cut)
    world.play()
    world.settle()  # the early exit and the end of that forward
    assert machine.idle


@pytest.mark.parametrize("name", ["serial", "ahead"])
def test_a_silent_drafter_beside_a_good_one_does_not_hold_windows_back(name):
    """It pings, and drafts nothing: it is waited for once, not before every window."""
    mute = World(2, name, agreement=(0.9, 0.9), faults=Faults())
    alone = World(2, name, agreement=0.9)
    for world in (mute, alone):
        for n, prompt in enumerate(prompts(2, 3)):
            world.ask(prompt, 60, 0.8, seed=n)
    drafter = mute.pair[b"drafter-1"].machine
    drafter._open = lambda peer, opening: None
    for world in (mute, alone):
        world.play()
    waited = [sum(story.end.stats.waited_ms for story in world.stories) for world in (mute, alone)]
    assert waited[0] < 1.5 * waited[1] + 100
    assert all(story.tokens == reference(story.opening) for story in mute.stories)
