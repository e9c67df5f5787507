"""Models with recurrent memory through llama.cpp: what is rejected leaves no trace, whatever the windows were."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from helpers.real_workers import Client, eager, opening, until, workers
from helpers.recurrent_gguf import VOCABULARY, lfm2, mamba

from hetero.workers.engines.base import Row
from hetero.workers.engines.llama_cpp.engine import LlamaSettings, load_llama
from hetero.workers.engines.llama_cpp.recurrent import RecurrentEngine
from hetero.workers.errors import Unsupported
from hetero.workers.runtime.spec import WorkerSpec


@pytest.fixture(scope="module", params=[mamba, lfm2], ids=["mamba", "lfm2"])
def made(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("model") / "model.gguf")


def loaded(path, **more) -> RecurrentEngine:
    found = load_llama(path, LlamaSettings(threads=1, context=256, chunk=64, **{"sequences": 2, **more}))
    assert isinstance(found, RecurrentEngine)
    return found


def close(got: np.ndarray, want: np.ndarray) -> None:
    assert np.abs(got - want).max() <= 6e-3 * max(1.0, float(np.abs(want).max())), np.abs(got - want).max()


def test_it_computes_the_models_function(made):
    path, model = made
    tokens = np.random.default_rng(0).integers(3, VOCABULARY, 90).tolist()
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0].float().numpy()
    engine = loaded(path)
    outcome = engine.prefill(1, tokens[:50], every=True)
    for n in range(50):
        close(outcome.logits(n), wanted[n])
    for first in range(50, 90, 8):
        rows = [Row(1, n, n - 1 if n > 50 else 0, tokens[n]) for n in range(first, min(first + 8, 90))]
        outcome = engine.extend(rows)
        for n, row in enumerate(rows):
            close(outcome.logits(n), wanted[row.node])
        engine.commit(1, rows[-1].node)
    engine.shutdown()


def test_rejected_tokens_leave_no_trace(made):
    """Windows of any length of which any part is accepted, also none, survivors below, and two sequences in turn."""
    path, model = made
    rng = random.Random(1)
    engine = loaded(path)
    said = {seq: [rng.randrange(3, VOCABULARY) for _ in range(20 + seq)] for seq in (1, 2)}
    tips, waiting, node = {1: 0, 2: 0}, {1: [], 2: []}, 0
    for seq, tokens in said.items():
        engine.prefill(seq, tokens)
    rejected = kept_below = 0
    for _ in range(60):
        seq = rng.choice((1, 2))
        rows, parent = [], waiting[seq][-1].node if waiting[seq] else tips[seq]
        for _ in range(rng.randint(1, 9)):
            node += 1
            rows.append(Row(seq, node, parent, rng.randrange(3, VOCABULARY)))
            parent = node
        if len(waiting[seq]) + len(rows) > engine.limits.draft_nodes or len(said[seq]) > 200:
            rows = []
        chain = [*waiting[seq], *rows]
        if rows:
            outcome = engine.extend(rows)
            got = outcome.logits(len(rows) - 1).copy()
            with torch.no_grad():
                want = model(torch.tensor([[*said[seq], *[row.token for row in chain]]])).logits[0, -1].float().numpy()
            close(got, want)
        if not chain:
            continue
        accepted = rng.randint(0, len(chain))
        below = rng.randint(0, len(chain) - accepted) if rng.random() < 0.4 else 0
        rejected += len(chain) - accepted - below
        kept_below += below
        said[seq] += [row.token for row in chain[:accepted]]
        if accepted:
            tips[seq] = chain[accepted - 1].node
        waiting[seq] = chain[accepted : accepted + below]
        engine.commit(seq, tips[seq], [row.node for row in waiting[seq]])
    assert rejected > 20 and kept_below > 5
    for seq in (1, 2):
        engine.close(seq)
    assert engine.used_cells == 0
    engine.shutdown()


def test_what_is_met_again_stays_little(made):
    """Half of each window rejected, for long; with survivors below, too."""
    path, model = made
    rng = random.Random(2)
    engine = loaded(path)
    said = [rng.randrange(3, VOCABULARY) for _ in range(9)]
    engine.prefill(1, said)
    node = tip = 0
    chain: list[Row] = []
    for turn in range(70):
        for _ in range(4):
            node += 1
            chain.append(Row(1, node, chain[-1].node if chain else tip, rng.randrange(3, VOCABULARY)))
        outcome = engine.extend(chain[-4:])
        if turn % 9 == 0:
            with torch.no_grad():
                wanted = model(torch.tensor([[*said, *[row.token for row in chain]]])).logits[0, -1].float().numpy()
            close(outcome.logits(3).copy(), wanted)
        accepted = chain[:2]
        chain = chain[2:3] if turn < 35 else []
        said += [row.token for row in accepted]
        tip = accepted[-1].node
        engine.commit(1, tip, [row.node for row in chain])
        held = engine._sequences[1]
        assert len(held.pending) + len(held.since) <= 5 * engine.limits.rows
    engine.shutdown()


def test_exact_mode_is_refused(made):
    with pytest.raises(Unsupported, match="exact"):
        loaded(made[0], exact=True)


def test_a_branch_is_refused_and_changes_nothing(made):
    path, _ = made
    engine = loaded(path)
    engine.prefill(1, [5, 6, 7])
    first = engine.extend([Row(1, 1, 0, 8)]).logits(0).copy()
    with pytest.raises(Unsupported, match="chain"):
        engine.extend([Row(1, 2, 0, 9)])
    with pytest.raises(Unsupported, match="chain"):
        engine.extend([Row(1, 2, 1, 9), Row(1, 3, 1, 9)])
    engine.commit(1, 0)
    close(engine.extend([Row(1, 4, 0, 8)]).logits(0), first)
    engine.shutdown()


@pytest.mark.parametrize("strategy", ["serial", "ahead"])
def test_texts_do_not_depend_on_the_drafter(made, strategy, monkeypatch):
    """Both roles on such models, over real sockets; near-ties may flip, so nearly all tokens are the same."""
    eager(monkeypatch)
    path, _ = made
    found = []
    for name in ("off", strategy):
        common = {"strategy": name, "gamma": 4, "context": 256, "sequences": 2}
        target = WorkerSpec("target", str(path), "llama_cpp", cores=[0], **common)
        drafter = None if name == "off" else WorkerSpec("drafter", str(path), "llama_cpp", cores=[1], **common)
        with workers(target, drafter, False) as (verifier, *_), Client(verifier.status().endpoint) as client:
            if drafter:
                until(lambda v=verifier: v.status().drafters)
            asked = [opening(n + 1, [5 + n, 70, 300], 60, 0.8, seed=n) for n in range(4)]
            answers = client.ask(*asked)
            found.append([answers[o.seq][0] for o in asked])
            if drafter:
                stats = [answers[o.seq][2].stats for o in asked]
                accepted = sum(each.draft_n_accepted for each in stats)
                assert accepted > 20 and accepted > 0.4 * sum(each.draft_n for each in stats)
    assert found[0] == found[1]
