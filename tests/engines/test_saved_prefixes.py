"""What an engine loads of a cached prefix is what it had computed."""

from __future__ import annotations

import random

import numpy as np
import pytest
from helpers.engines import CONTEXT, ENGINES, EXACT, close_to, plain, prefill, teams_long, tokens

from hetero.workers.engines.base import Row
from hetero.workers.errors import UnknownNode


@pytest.fixture(scope="module", params=teams_long([*ENGINES, *EXACT]))
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
    engine.save_prefix(1, 5, 2 * chunk)
    engine.close(1)
    assert engine.used_cells == 0
    for seq, length in ((2, 2 * chunk), (3, chunk)):  # whole, and cut short; both from one copy
        engine.load_prefix(seq, 5, length)
        assert engine.used_cells >= length
        got = prefill(engine, seq, more)
        want = plain(engine, prompt[:length] + more)
        close_to(engine, got, want)
        row = engine.extend([Row(seq, 1, 0, 11)]).logits(0).copy()
        engine.commit(seq, 1)
        assert np.isfinite(row).all()
        engine.close(seq)
    engine.drop_prefix(5)
    with pytest.raises(UnknownNode):
        engine.load_prefix(4, 5, chunk)
    assert engine.used_cells == 0 and 4 * chunk + 9 < CONTEXT
