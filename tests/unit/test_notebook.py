"""What a drafter notes down of the target's corrections: bounded, and only what belongs together."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero.workers.decoding import notebook
from hetero.workers.decoding.corrections import TOP, corrections
from hetero.workers.decoding.notebook import Notebook
from hetero.workers.engines.base import Outcome
from hetero.workers.wire.messages import Correction

TOKENS = 1000


def correction(base: int) -> Correction:
    """The target's likeliest there is ``base % 100``."""
    return Correction(1, 1, base, [base % 100, 5], [-0.1, -3.0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 700), max_size=60), st.integers(1, 600))
def test_lessons_are_what_was_corrected(bases, length):
    book, tokens = Notebook(TOKENS), [7 + n for n in range(length)]
    for base in bases:
        assert book.note("a", correction(base))
    book.close("a", tokens)
    book.close("b", tokens)  # nothing was noted
    seen = {}
    for lesson in book._lessons:
        assert len(lesson.tokens) <= notebook._WINDOW
        first = lesson.tokens[0] - 7
        assert lesson.tokens == tokens[first : first + len(lesson.tokens)]
        for place, ids in zip(lesson.places, lesson.ids, strict=True):
            seen[first + place + 1] = ids[0]
    assert seen == {base: base % 100 for base in bases if 0 < base <= length}


def test_it_is_bounded_and_what_is_owed_ends():
    book = Notebook(TOKENS)
    assert book.step() == []
    for n in range(700):
        for base in range(1, 3000, 97):
            book.note(n, correction(base))
        book.close(n, list(range(1, 900)))
    assert len(book) == notebook._LESSONS
    steps = 0
    while taken := book.step():
        assert 1 <= len(taken) <= notebook._MOST
        book.ended(True)
        steps += 1
    assert notebook._LESSONS / 4 < steps == book.steps <= notebook._VISITS * notebook._LESSONS
    for _ in range(3000):  # of one that never ends
        book.note("long", correction(5))
    assert len(book._open["long"]) == notebook._PLACES


def test_what_makes_no_sense_is_not_noted():
    book = Notebook(50)
    assert not book.note("a", Correction(1, 1, 3, [50], [-1.0]))
    assert not book.note("a", Correction(1, 1, 3, [5, 6], [-1.0]))
    assert not book.note("a", Correction(1, 1, 3, [], []))


class Given(Outcome):
    def __init__(self, rows):
        self.rows = rows

    def logits(self, row):
        return self.rows[row]


def test_the_targets_own_likeliest_tokens_are_told():
    rows = np.random.default_rng(1).normal(0, 3, (3, 400)).astype(np.float32)
    rows[1, 7] = np.nan
    found = list(corrections(9, 4, [(0, 11), (1, 12), (2, 13)], Given(rows)))
    assert [(one.seq, one.epoch, one.base) for one in found] == [(9, 4, 11), (9, 4, 13)]  # never what is not finite
    for one, row in zip(found, (0, 2), strict=True):
        exact = rows[row].astype(np.float64)
        exact -= np.log(np.exp(exact).sum())
        order = np.argsort(-exact)[:TOP]
        assert one.likely == order.tolist() and np.allclose(one.logprobs, exact[order], atol=1e-5)


def test_after_steps_that_fail_nothing_more_is_learned():
    book = Notebook(TOKENS)
    for n in range(20):
        book.note(n, correction(9))
        book.close(n, list(range(30)))
    for well in (False, False, True, False, False, False):
        assert book.step()
        book.ended(well)
        book.ended(False)  # of a job that was no step
    assert book.steps == 1 and book.step() == []
    assert not Notebook(0).note("a", correction(9))  # who does not learn
