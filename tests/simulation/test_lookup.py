"""Looking up what stood before: it helps where a text repeats itself, and tells nobody of others."""

from __future__ import annotations

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


def told(owners: tuple[str, str], theirs: str, seed: int) -> list[tuple[int, int]]:
    """What two users get by turns, of whom the first is told ``theirs``: the second's drafts of past answers."""
    world = World(seed, "off", agreement=None, past=5000)
    mine = []
    for n, prompt in enumerate(prompts(seed, 3)):
        world.ask(prompt, 26, seed=n, grammar=theirs, at=3.0 * n, asked={"owner": owners[0]})
        mine.append(world.ask(prompt, 26, seed=n, at=3.0 * n + 1.5, grammar=ONCE, asked={"owner": owners[1]}))
    world.play()
    assert all(story.tokens == reference(story.opening) for story in world.stories)
    return [story.end.stats.sources.get("past", (0, 0)) for story in mine]


@pytest.mark.parametrize("seed", range(6))
def test_nothing_of_what_one_was_told_is_looked_up_for_another(seed):
    """Whether the other is told the very same before, or something else: the first time nothing is known of it."""
    for theirs in (ONCE, CYCLE):
        apart = told(("them", "me"), theirs, seed)
        assert apart[0] == (0, 0) and apart[1][1] > 10  # of one's own answers the second time
    shared = told(("us", "us"), ONCE, seed)
    assert shared[0][1] > 10  # it would show
