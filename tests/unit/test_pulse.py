"""Whether a worker hangs: a long prompt does not, a loop that stands still does, and so does a forward without end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hetero.workers.runtime.pulse import ForwardTimes, Pulse

PATIENCE = 15.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_worker_that_loads_is_not_judged():
    clock = Clock()
    pulse = Pulse(clock)
    clock.now += 3600
    assert pulse.trouble(PATIENCE) == ""


def test_a_loop_that_stands_still_is_noticed():
    clock = Clock()
    pulse = Pulse(clock)
    pulse.turned()
    clock.now += PATIENCE
    assert pulse.trouble(PATIENCE) == ""
    clock.now += 1
    assert "has not turned for 16 s" in pulse.trouble(PATIENCE)
    pulse.turned()
    assert pulse.trouble(PATIENCE) == ""


def test_a_long_prompt_is_none_while_the_loop_turns():
    clock = Clock()
    pulse = Pulse(clock)
    for rows, seconds in ((1, 1), (512, 100), (512, 300)):  # the machine is busy with something else, too
        pulse.turned()
        pulse.begins(rows)
        for _ in range(seconds):
            clock.now += 1
            pulse.turned()
            assert pulse.trouble(PATIENCE) == ""
        pulse.ends(True)


def test_a_forward_without_end_is_noticed():
    clock = Clock()
    pulse = Pulse(clock)
    pulse.begins(1)
    clock.now += 0.1
    pulse.ends(True)
    pulse.begins(8)
    while not (told := pulse.trouble(PATIENCE)):
        clock.now += 1
        pulse.turned()
        assert clock.now < 300
    assert told == "a forward of 8 rows has run for 61 s, where 60 s is most"


def test_a_quick_forward_on_the_loops_own_thread_has_a_forwards_time():
    clock = Clock()
    pulse = Pulse(clock)
    pulse.turned()
    pulse.begins(1)
    clock.now += 30
    assert pulse.trouble(PATIENCE) == ""
    pulse.ends(True)
    assert "has not turned" in pulse.trouble(PATIENCE)


def test_failed_forwards_teach_nothing():
    clock = Clock()
    pulse = Pulse(clock)
    pulse.begins(4)
    clock.now += 0.001
    pulse.ends(False)
    pulse.begins(4)
    clock.now += 599
    assert "forward" not in pulse.trouble(1e9)
    clock.now += 2
    assert "forward of 4 rows" in pulse.trouble(1e9)


@given(st.lists(st.tuples(st.integers(1, 2048), st.floats(1e-4, 100)), min_size=1, max_size=20), st.integers(0, 2048))
def test_what_took_so_long_before_may_take_as_long_again(seen, rows):
    times = ForwardTimes()
    for size, seconds in seen:
        times.add(size, seconds)
    assert times.limit(rows) >= 60
    # Of a size that was seen, ten times the slowest is never stuck, were all sizes as slow a row.
    slowest = max(seconds / size for size, seconds in seen)
    same = ForwardTimes()
    for size, _ in seen:
        same.add(size, size * slowest)
    for size, _ in seen:
        assert same.limit(size) >= 10 * size * slowest
