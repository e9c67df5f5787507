"""The engines of the conformance suite, each on the built-in pair, and what is asked of all of them."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import pytest

from helpers.builtin_pair import DRAFTER, TARGET
from helpers.recorded_graphs import recorded
from hetero.workers.engines.llama_cpp.engine import LlamaEngine, LlamaSettings
from hetero.workers.engines.octet.engine import OctetEngine, OctetSettings
from hetero.workers.engines.octet.library import why_not
from hetero.workers.engines.table import TableEngine, TableSpec
from hetero.workers.engines.torch.engine import TorchEngine, TorchSettings
from hetero.workers.engines.torch.team import TeamEngine

CONTEXT = 512


def table():
    return TableEngine(TableSpec(vocabulary=4096, context=CONTEXT, sequences=3, rows=32, chunk=64))


def llama(exact=False, path=TARGET, threads=1, kv_cache="f16"):
    own = LlamaSettings(threads, sequences=3, context=CONTEXT, rows=32, chunk=64, exact=exact, kv_cache=kv_cache)
    return LlamaEngine(path, own)


def torch_(exact=False, record=None):
    return TorchEngine(TARGET, TorchSettings(sequences=3, context=CONTEXT, rows=32, chunk=64, exact=exact), record)


def team(tensor: bool):
    own = TorchSettings(sequences=3, context=CONTEXT, rows=32, chunk=64)
    return TeamEngine(TARGET, own, 2, tensor, [])


def octet(kv_cache="f16"):
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    own = OctetSettings(threads=2, sequences=3, context=CONTEXT, rows=32, chunk=64, kv_cache=kv_cache)
    return OctetEngine(TARGET, own)


ENGINES = {
    "table": (table, 0.0),
    "octet": (octet, 0.0),
    "octet, cache of bytes": (lambda: octet("q8_0"), 0.0),
    "llama_cpp": (llama, 5e-3),  # F16 weights: kernels of another width round differently
    "torch": (torch_, 2e-4),
    "torch replayed": (lambda: torch_(record=recorded), 2e-4),
    "torch, tensor-parallel on two ranks": (lambda: team(True), 2e-4),
    "torch, its layers on two ranks": (lambda: team(False), 2e-4),
    "llama_cpp drafter": (lambda: llama(path=DRAFTER), 5e-3),
}
EXACT = {
    "llama_cpp exact": lambda: llama(exact=True),
    "llama_cpp exact, cache of bytes": lambda: llama(True, kv_cache="q8_0"),
    "llama_cpp exact, 2 threads": lambda: llama(True, threads=2),
    "torch exact": lambda: torch_(exact=True),
}


def teams_long(names: Iterable[str]) -> list:
    """For a fixture: engines by name, those of several ranks marked long."""
    return [pytest.param(name, marks=pytest.mark.long if "ranks" in name else ()) for name in names]


def held(engine) -> int:
    return engine.used_cells


def tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, 4096) for _ in range(count)]


def prefill(engine, seq: int, prompt: list[int]):
    outcome = None
    for first in range(0, len(prompt), engine.limits.chunk):
        outcome = engine.prefill(seq, prompt[first : first + engine.limits.chunk])
    return outcome.logits(0).copy()


def plain(engine, path: list[int]) -> np.ndarray:
    """Logits after a path, by prefill alone in a sequence of its own."""
    logits = prefill(engine, 199, path)
    engine.close(199)
    return logits


def close_to(engine, got: np.ndarray, want: np.ndarray) -> None:
    assert np.abs(got - want).max() <= engine.tolerance * max(1.0, float(np.abs(want).max()))
