"""Short answers, one after another: what a drafter that never pays may cost them, and what a good one brings."""

from __future__ import annotations

import pytest
from helpers.simulated_world import World, prompts

from hetero.workers.decoding.policy.choice import Choice, Record


def seconds(agreement, count: int = 40) -> tuple[float, World]:
    """Of all answers, of 20 tokens each; the drafter's step takes three quarters of a target's forward."""
    world = World(1, "ahead", agreement=agreement, draft_s=0.015)
    for n, prompt in enumerate(prompts(1, count)):
        world.ask(prompt, 20, 0.8, seed=n, at=2.0 * n, asked={"ignore_end": True})
    world.play(1e5)
    return sum(story.end.stats.predicted_ms for story in world.stories) / 1e3, world


@pytest.mark.parametrize("agreement", [(0.0,), (0.0, 0.0)])
def test_drafters_that_never_pay_cost_little(agreement, monkeypatch):
    plain, _ = seconds(None)
    assert seconds(agreement)[0] < 1.08 * plain
    # Without memory each answer tries them anew.
    monkeypatch.setattr(Record, "choose", lambda self, drafters: Choice(frozenset(drafters), False))
    assert seconds(agreement)[0] > 1.1 * plain


def test_of_two_the_one_that_pays_is_had():
    plain, _ = seconds(None)
    took, world = seconds((0.9, 0.0))
    assert took < plain
    first, second = (peer.drafted for peer in sorted(world.pair[b"verifier-0"].machine.drafters, key=lambda p: p.index))
    assert first > 2 * second
    record = world.pair[b"verifier-0"].machine.record
    assert record.worth(frozenset({0})) > 1 > record.worth(frozenset({1}))
