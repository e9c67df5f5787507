"""The text of benchmarks is data: a refactoring must not change what is measured."""

from __future__ import annotations

import hashlib

from helpers.builtin_pair import TARGET

from hetero.bench.quality import held_out
from hetero.data import HELD_OUT
from hetero.workers.models.tokenizer import GgufTokenizer

DIGEST = "25d993c4985f3ef45962e7bbbc97a3d83da65d918ce251b01fc9eac704b6977f"


def test_the_text_is_what_it_was():
    assert hashlib.sha256(HELD_OUT.read_bytes()).hexdigest() == DIGEST


def test_it_is_long_enough_for_every_benchmark():
    assert len(held_out(GgufTokenizer(TARGET), 1 << 20)) > 20_000
