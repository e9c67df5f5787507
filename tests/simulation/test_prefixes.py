"""Cached prefixes at work in a simulated pair."""

from __future__ import annotations

from helpers.simulated_world import TARGET, World, reference


def test_the_next_turn_of_a_chat_evaluates_only_what_is_new():
    world = World(1, "ahead", cached=400)
    first = world.ask(list(range(40)), max_tokens=30, temperature=0.9)
    world.play()
    text = [*first.opening.prompt, *first.tokens]
    second = world.ask([*text, 1, 2, 3], max_tokens=20, at=world.now)
    world.play()
    world.settle()
    third = world.ask(list(range(40)), max_tokens=30, temperature=0.9, at=world.now)
    world.play()
    world.settle()
    assert second.end.stats.cached_n >= len(text) - 1
    assert third.end.stats.cached_n == 39 and third.tokens == first.tokens
    assert second.tokens == reference(second.opening)
    assert all(
        node.machine.prefixes.facts[0] == 1 for node in world.pair.workers.values()
    )  # each holds what it needs once


def test_a_prefix_that_cannot_be_loaded_costs_nothing_but_time():
    world = World(1, "serial", cached=400)
    first = world.ask(list(range(40)), max_tokens=10)
    world.play()
    engine = world.engine(b"verifier-0")
    engine.forget_prefixes()
    second = world.ask(first.opening.prompt + first.tokens, max_tokens=10, at=world.now)
    world.play()
    assert world.errors and second.tokens == reference(second.opening, TARGET)
    assert second.end.stats.cached_n == 0
