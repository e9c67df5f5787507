"""Forwards of fixed shapes, recorded and replayed (the conformance suite runs them too: "torch replayed")."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from helpers.builtin_pair import DRAFTER
from helpers.recorded_graphs import recorded

from hetero.workers.engines.base import Row
from hetero.workers.engines.torch.engine import TorchEngine, TorchSettings


def engine(record=None) -> TorchEngine:
    return TorchEngine(DRAFTER, TorchSettings(sequences=2, context=600, draft_nodes=100), record)


@pytest.fixture(scope="module")
def plain():
    made = engine()
    yield made
    made.shutdown()


def test_a_recording_is_of_the_operations_not_of_their_values():
    table, index = torch.arange(12.0).view(4, 3), torch.tensor([1])
    out = torch.zeros(3)
    replay = recorded(lambda: out.copy_((table[index] * 2).view(3)))
    assert out.tolist() == [6, 8, 10]
    index.copy_(torch.tensor([3]))
    replay()
    assert out.tolist() == [18, 20, 22]
    with pytest.raises(RuntimeError, match="not permitted"):
        recorded(lambda: table * int(index))


def walk(made, rng, rounds=25) -> list[np.ndarray]:
    """Logits of trees grown and committed in two sequences, past the narrowest span and through several widths."""
    found, tips, node = [], {1: 0, 2: 0}, 0
    for seq in tips:
        prompt = [int(t) for t in rng.integers(0, made.limits.vocabulary, 240)]
        made.prefill(seq, prompt)
    for n in range(rounds):
        seqs = [1, 2] if n % 5 == 4 else [1 + n % 2]
        rows = []
        for seq in seqs:
            above = tips[seq]
            for at in range(int(rng.integers(1, 9))):
                node += 1
                rows.append(Row(seq, node, above, int(rng.integers(0, made.limits.vocabulary))))
                above = node if at % 2 else above
        outcome = made.extend(rows)
        found += [outcome.logits(row).copy() for row in range(len(rows))]
        for seq in seqs:
            tips[seq] = next(row.node for row in reversed(rows) if row.seq == seq)
            made.commit(seq, tips[seq])
    for seq in (2, 1):  # the next walk gets the same slots
        made.close(seq)
    return found


def test_replays_equal_plain_forwards_and_are_few(plain):
    runs = []

    def record(run):
        runs.append(run)
        return recorded(run)

    made = engine(record)
    again = walk(made, np.random.default_rng(7))
    for mine, theirs in zip(again, walk(plain, np.random.default_rng(7)), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-4)
    shapes = len(runs)
    assert 4 <= shapes <= 12  # rows x spans x slots met
    walk(made, np.random.default_rng(7))
    assert len(runs) == shapes
    assert made.used_cells == 0
    made.shutdown()


def test_heavy_models_replay_one_sequence_only(plain, monkeypatch):
    monkeypatch.setattr("hetero.workers.engines.torch.graphs._LIGHT", 0)
    alone = []

    def record(run):
        def replay():
            alone.append(run)
            return again()

        again = recorded(run)
        return replay

    made = engine(record)
    for seq in (1, 2):
        made.prefill(seq, [3, 4, 5])
    made.extend([Row(1, 1, 0, 6), Row(2, 1, 0, 7)])
    assert not alone
    made.extend([Row(1, 2, 1, 6)])
    assert alone
    made.shutdown()


def test_what_is_not_finite_harms_neither_others_nor_the_next(plain):
    """No mask hides a NaN in a cell, and a replay reads more cells than it needs."""
    made = engine(recorded)
    made.prefill(1, [3, 4, 5])
    made.prefill(2, [3, 4, 5])
    slot = made._slots[1].slot
    for cache in (made._keys, made._values):
        cache[slot, :, :, 2:] = float("nan")
    assert np.isnan(made.extend([Row(1, 1, 0, 6)]).logits(0)).any()
    assert np.isfinite(made.extend([Row(2, 1, 0, 6)]).logits(0)).all()
    made.close(1)
    made.prefill(1, [7, 8])
    plain.prefill(1, [7, 8])
    row = [Row(1, 1, 0, 6)]
    for _ in range(2):  # the first records
        np.testing.assert_allclose(made.extend(row).logits(0), plain.extend(row).logits(0), atol=2e-4)
        for one in (made, plain):
            one.commit(1, 0)
        row = [Row(1, row[0].node + 1, 0, 9)]
    assert made.replays
    plain.close(1)
    made.shutdown()


@pytest.mark.parametrize("fault", ["raises", "differs"])
def test_without_graphs_it_is_only_slower(plain, fault, caplog):
    tries = []

    def record(run):
        tries.append(run)
        if fault == "raises":
            raise RuntimeError("operation not permitted when stream is capturing")
        return lambda: run().add_(1000)

    made = engine(record)
    with caplog.at_level(logging.WARNING):
        for mine, theirs in zip(
            walk(made, np.random.default_rng(3), 6), walk(plain, np.random.default_rng(3), 6), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)
    assert len(tries) == 1 and len(caplog.records) == 1 and "kernel by kernel" in caplog.text
    made.shutdown()
