"""Cached prefixes: which are kept and used, and that what an engine loads is what it had computed."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rehearsal import TARGET as SPEC
from rehearsal import World, reference
from test_engines import CONTEXT, ENGINES, EXACT, close_to, plain, prefill, tokens

from hetero.workers.decoding.prefix_cache import PrefixCache
from hetero.workers.decoding.protocol import Drop, Save
from hetero.workers.engines.base import Row
from hetero.workers.errors import UnknownNode

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=80), min_size=1, max_size=12)


@given(TEXTS, st.integers(16, 120), st.sampled_from([1, 8]))
def test_what_is_kept_fits_the_budget_and_the_longest_is_found(texts, budget, step):
    prefixes, held = PrefixCache(budget, step), {}
    for seq, text in enumerate(texts):
        load = prefixes.load(seq, text)
        shared = {key: common(kept, text[:-1]) // step * step for key, kept in held.items()}
        if load is None:
            assert max(shared.values(), default=0) < 16
        else:
            assert load.length == shared[load.key] == max(shared.values()) < len(text)
        for operation in prefixes.save(seq, text):
            if isinstance(operation, Drop):
                del held[operation.key]
            else:
                assert isinstance(operation, Save) and operation.length % step == 0
                held[operation.key] = text[: operation.length]
        assert prefixes.facts == (len(held), sum(map(len, held.values())))
        assert prefixes.facts[1] <= budget


def common(one: list[int], two: list[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


@pytest.fixture(scope="module", params=[*ENGINES, *EXACT])
def engine(request):
    if request.param in EXACT:
        made = EXACT[request.param]()
        made.tolerance = 0.0
    else:
        make, tolerance = ENGINES[request.param]
        made = make()
        made.tolerance = tolerance
    yield made
    made.shutdown()


def test_a_loaded_prefix_is_what_was_computed(engine):
    rng = random.Random(3)
    chunk = engine.limits.chunk
    prompt, more = tokens(rng, 3 * chunk), tokens(rng, chunk + 9)
    prefill(engine, 1, prompt)
    if not engine.limits.exact:  # draft tokens on another branch are not part of it
        engine.extend([Row(1, 1, 0, 7), Row(1, 2, 0, 8), Row(1, 3, 2, 9)])
    engine.commit(1, 0)
    engine.save(1, 5, 2 * chunk)
    engine.close(1)
    assert engine.used_cells == 0
    for seq, length in ((2, 2 * chunk), (3, chunk)):  # whole, and cut short; both from one copy
        engine.load(seq, 5, length)
        assert engine.used_cells >= length
        got = prefill(engine, seq, more)
        want = plain(engine, prompt[:length] + more)
        close_to(engine, got, want)
        row = engine.extend([Row(seq, 1, 0, 11)]).logits(0).copy()
        engine.commit(seq, 1)
        assert np.isfinite(row).all()
        engine.close(seq)
    engine.drop(5)
    with pytest.raises(UnknownNode):
        engine.load(4, 5, chunk)
    assert engine.used_cells == 0 and 4 * chunk + 9 < CONTEXT


def test_the_next_turn_of_a_chat_evaluates_only_what_is_new():
    world = World(1, "ahead", cached=400)
    first = world.ask(list(range(40)), max_tokens=30, temperature=0.9)
    world.play()
    text = [*first.opening.prompt, *first.tokens]
    second = world.ask([*text, 1, 2, 3], max_tokens=20, at=world.simulation.now)
    world.play()
    world.settle()
    third = world.ask(list(range(40)), max_tokens=30, temperature=0.9, at=world.simulation.now)
    world.play()
    world.settle()
    assert second.end.stats.cached_n >= len(text) - 1
    assert third.end.stats.cached_n == 39 and third.tokens == first.tokens
    assert second.tokens == reference(second.opening)
    assert all(node.machine.prefixes.facts[0] == 1 for node in world.nodes.values())  # each holds what it needs once


def test_a_prefix_that_cannot_be_loaded_costs_nothing_but_time(monkeypatch):
    world = World(1, "serial", cached=400)
    first = world.ask(list(range(40)), max_tokens=10)
    world.play()
    engine = world.engines[b"verifier"]
    engine._saved.clear()
    second = world.ask(first.opening.prompt + first.tokens, max_tokens=10, at=world.simulation.now)
    world.play()
    assert world.errors and second.tokens == reference(second.opening, SPEC)
    assert second.end.stats.cached_n == 0
