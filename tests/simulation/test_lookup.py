"""Looking up what stood before: it helps where a text repeats itself, and tells nobody of others."""

from __future__ import annotations

import random

import pytest
from helpers.simulated_world import World, prompts, reference
from llguidance import LLMatcher

from hetero.workers.decoding.policy.strategy import NAMES

CYCLE = LLMatcher.grammar_from_regex("(abcdefghijk){12}")
ONCE = LLMatcher.grammar_from_regex("qwertyuiopasdfghjklzxcvbnm")


@pytest.mark.parametrize("agreement", [None, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_a_text_that_repeats_itself_takes_fewer_forwards(name, agreement):
    """With a drafter and without, under all strategies, ``off`` too."""
    if name != "off" and agreement is None:
        pytest.skip("a strategy needs a drafter")
    found = []
    for past in (None, 0):
        world = World(3, name, agreement=agreement, past=past)
        story = world.ask([1, 2, 3], max_tokens=120, grammar=CYCLE)
        world.play()
        assert story.tokens == reference(story.opening)
        found.append(story.end.stats)
    without, with_ = found
    assert with_.forwards_n < 0.5 * without.forwards_n
    drafted, accepted = with_.sources["lookup"]
    assert accepted > 30 and accepted > 0.8 * drafted
    assert sum(n for n, _ in with_.sources.values()) == with_.draft_n
    assert sum(hits for _, hits in with_.sources.values()) == with_.draft_n_accepted


@pytest.mark.parametrize("past", [0, 1000])
def test_an_answer_given_before_is_looked_up_for_whom_it_was_given(past):
    world = World(5, "off", agreement=None, past=past)
    first = world.ask([1, 2, 3], max_tokens=26, grammar=ONCE, asked={"owner": "a"})
    world.play()
    again = world.ask([4, 5, 6], max_tokens=26, grammar=ONCE, asked={"owner": "a"}, at=world.now)
    other = world.ask([7, 8, 9], max_tokens=26, grammar=ONCE, asked={"owner": "b"}, at=world.now)
    world.play()
    assert first.tokens == again.tokens == other.tokens and "lookup" not in first.end.stats.sources
    assert "past" not in other.end.stats.sources and other.end.stats.forwards_n == first.end.stats.forwards_n
    if past:
        assert again.end.stats.sources["past"][1] > 18 and again.end.stats.forwards_n < 9
    else:
        assert "past" not in again.end.stats.sources


@pytest.mark.parametrize("seed", range(12))
def test_nothing_of_what_one_was_told_is_looked_up_for_another(seed):
    """Two worlds alike but for what the other user is told: the same, or something else."""
    seen = []
    for theirs in (CYCLE, ONCE):
        rng = random.Random(seed)
        world = World(seed, "off", agreement=None, past=5000)
        mine = []
        for n, prompt in enumerate(prompts(seed, 4)):
            world.ask(prompt, max_tokens=20, grammar=theirs, at=2.0 * n, asked={"owner": "them"})
            own = rng.choice(["", CYCLE, ONCE])
            mine.append(world.ask(prompt, 40, seed=n, at=2.0 * n + 1, grammar=own, asked={"owner": "me"}))
        world.play()
        for first in (n for n, story in enumerate(mine) if not any(own.opening.grammar for own in mine[:n])):
            assert mine[first].end.stats.sources.get("past", (0, 0))[1] == 0
        seen.append([story.tokens for story in mine])
    assert seen[0] == seen[1]


def test_shared_the_same_would_show():
    """The test above can fail: one owner for both, and it does."""
    counts = []
    for grammar in (CYCLE, ONCE):
        world = World(1, "off", agreement=None, past=5000)
        world.ask([9, 9, 9], max_tokens=26, grammar=grammar)
        story = world.ask([1, 2, 3], max_tokens=26, grammar=ONCE, at=2.0)
        world.play()
        counts.append(story.end.stats.forwards_n)
    assert counts[1] < counts[0]
