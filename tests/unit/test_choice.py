"""Which drafters a sequence gets: what paid, and now and then the others."""

from __future__ import annotations

from hetero.workers.decoding.policy import tuning
from hetero.workers.decoding.policy.choice import Record

BOTH, FIRST, SECOND = frozenset({0, 1}), frozenset({0}), frozenset({1})


def live(record: Record, worths: dict, sequences: int, drafters=(0, 1)) -> list:
    """Sequences one after another, in which a mixture is worth what ``worths`` says; returns what each had."""
    had = []
    for _ in range(sequences):
        choice = record.choose(drafters)
        had.append(None if choice.rests else choice.drafters)
        if not choice.rests:
            record.learn(choice.drafters, 1.0, worths[choice.drafters])
    return had


def test_each_mixture_is_tried_then_the_best_is_had_and_others_ever_more_seldom():
    had = live(Record(), {BOTH: 1.5, FIRST: 2.0, SECOND: 0.5}, 400)
    assert set(had[:3]) == {BOTH, FIRST, SECOND}
    assert had.count(FIRST) > 370
    others = [n for n, one in enumerate(had[3:]) if one != FIRST]
    assert 4 <= len(others) <= 16
    assert others[-1] - others[-2] > others[1] - others[0]


def test_where_none_pays_nearly_all_rest_and_one_in_many_tries():
    had = live(Record(), {FIRST: 0.6}, 400, drafters=(0,))
    assert had[0] == FIRST and had[1:7] == [None] * 6
    assert 5 <= sum(one is not None for one in had) <= 16


def test_a_drafter_that_becomes_good_is_found_within_the_longest_pause():
    record, worths = Record(), {FIRST: 0.6}
    live(record, worths, 500, drafters=(0,))
    worths[FIRST] = 3.0
    had = live(record, worths, 4 * tuning.TRIAL_LAST, drafters=(0,))
    assert had[-20:].count(FIRST) >= 18


def test_a_drafter_that_comes_later_is_tried_and_one_that_left_is_not_chosen():
    record = Record()
    live(record, {FIRST: 1.2}, 5, drafters=(0,))
    assert {BOTH, SECOND} <= set(live(record, {BOTH: 1.1, FIRST: 1.2, SECOND: 4.0}, 4))
    assert set(live(record, {SECOND: 4.0}, 20, drafters=(1,))) == {SECOND}


def test_nothing_is_learned_of_sequences_without_measured_rounds():
    record = Record()
    record.learn(FIRST, 0.0, 0.0)
    assert record.choose([0]).drafters == FIRST and record.worth(FIRST) == float("inf")
