"""Cached prefixes: which are kept, and which are used."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hetero.workers.decoding.prefix_cache import PrefixCache
from hetero.workers.decoding.protocol import DropPrefix, SavePrefix

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
            if isinstance(operation, DropPrefix):
                del held[operation.key]
            else:
                assert isinstance(operation, SavePrefix) and operation.length % step == 0
                held[operation.key] = text[: operation.length]
        assert prefixes.facts == (len(held), sum(map(len, held.values())))
        assert prefixes.facts[1] <= budget


def common(one: list[int], two: list[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
