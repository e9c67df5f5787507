"""Where a text ends: stop strings across any borders."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from hetero.workers.sampling.stop_strings import StopMatcher


def release(text: str, stops: list[str], cuts: list[int]) -> tuple[str, bool]:
    data = text.encode()
    matcher = StopMatcher(stops)
    parts = []
    bounds = sorted({0, len(data), *[cut % (len(data) + 1) for cut in cuts]})
    for first, last in itertools.pairwise(bounds):
        parts.append(matcher.feed(data[first:last]))
        if matcher.stopped:
            return "".join(parts), True
    parts.append(matcher.flush())
    return "".join(parts), False


@given(
    st.text(alphabet="ab🙂é", max_size=30),
    st.lists(st.text(alphabet="ab🙂é", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 200), max_size=20),
)
@settings(max_examples=400, deadline=None)
def test_stop_strings_are_found_across_any_borders_and_never_leak(text, stops, cuts):
    data = text.encode()
    ends = [data.find(s.encode()) for s in stops if s.encode() in data]
    got, stopped = release(text, stops, cuts)
    assert stopped is bool(ends)
    if not ends:
        assert got == text
        return
    # Cut at a stop string; which one may depend on token borders only where several overlap.
    assert any(text == got + s + text[len(got) + len(s) :] for s in stops)
    assert len(got.encode()) <= max(ends)
    for stop in stops:
        assert not got.startswith(stop) and (stop not in got or len(stops) > 1)


def test_half_characters_wait_and_broken_ones_become_replacements():
    matcher = StopMatcher([])
    smile = "🙂".encode()
    assert [matcher.feed(smile[i : i + 1]) for i in range(4)] == ["", "", "", "🙂"]
    assert matcher.feed(smile[:2]) == ""
    assert matcher.feed(b"x") == "\ufffdx"
    assert matcher.feed(smile[:3]) == ""
    assert matcher.flush() == "\ufffd"
