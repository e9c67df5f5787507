"""Layer-parallel drafting (EasySpec): guesses against the paper's formula written out, and calibration: whatever was
guessed between, what is committed leaves the cache as the ordinary model would have it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from helpers.builtin_pair import DRAFTER, TARGET
from helpers.engines import prefill, tokens
from helpers.recorded_graphs import recorded

from hetero.workers.engines.base import Row
from hetero.workers.engines.torch.checkpoint import load_model
from hetero.workers.engines.torch.collectives import Team
from hetero.workers.engines.torch.engine import TorchEngine, TorchSettings
from hetero.workers.engines.torch.layer_parallel import BatchedGroup, Group, layer_parallel
from hetero.workers.engines.torch.team import TeamEngine
from hetero.workers.errors import Aborted, EngineError, EngineLost, Unsupported

NEAR = 2e-4


def engine(group: int, record=None) -> TorchEngine:
    return TorchEngine(TARGET, TorchSettings(sequences=3, context=256, rows=32, chunk=64, group=group), record)


@pytest.fixture(scope="module")
def plain():
    made = engine(1)
    yield made
    made.shutdown()


@pytest.fixture(scope="module", params=[2, 3, 8], ids=lambda size: f"N={size}")
def guessing(request):
    made = engine(request.param)
    made.size = request.param
    yield made
    made.shutdown()


@pytest.fixture(autouse=True)
def nothing_left(request):
    yield
    for name in ("plain", "guessing"):
        if name in request.fixturenames:
            made = request.getfixturevalue(name)
            for seq in range(9):
                made.close(seq)
            assert made.used_cells == 0


class Written:
    """The formula for one chain of guesses behind an exact prefix, layer by layer, with nothing of ours but weights."""

    def __init__(self, size: int) -> None:
        self.model, self.size = load_model(TARGET, "float32"), size
        self.config = self.model.config

    @torch.inference_mode()
    def __call__(self, prefix: list[int], chain: list[int]) -> np.ndarray:
        count = len(self.model.model.layers)
        inner = [list(range(at, min(at + self.size, count - 1))) for at in range(1, count - 1, self.size)]
        cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._through(prefix, [[n] for n in range(count)], cache)
        return self._through(chain, [[0], *inner, [count - 1]], cache).numpy()

    def _through(self, ids: list[int], groups: list[list[int]], cache: dict) -> torch.Tensor:
        body = self.model.model
        h = body.embed_tokens(torch.tensor(ids))
        begun = cache[0][0].shape[1] if cache else 0
        where = torch.arange(begun, begun + len(ids))
        for group in groups:
            mixed = [self._attention(body.layers[n], n, h, where, cache) for n in group]  # all of the same h
            for n, own in zip(group, mixed, strict=True):
                h = h + own
                h = h + body.layers[n].mlp(body.layers[n].post_attention_layernorm(h))
        return self.model.lm_head(body.norm(h))

    def _attention(self, layer, n: int, h: torch.Tensor, where: torch.Tensor, cache: dict) -> torch.Tensor:
        attention, x = layer.self_attn, layer.input_layernorm(h)
        size = attention.head_dim
        read = attention.q_proj, attention.k_proj, attention.v_proj
        query, key, value = (part(x).view(len(h), -1, size).transpose(0, 1) for part in read)
        angle = where[:, None] / self.config.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2) / size)
        cos, sin = (torch.cat([f(angle), f(angle)], dim=1) for f in (torch.cos, torch.sin))
        turn = lambda y: y * cos + torch.cat((-y[..., size // 2 :], y[..., : size // 2]), -1) * sin  # noqa: E731
        query, key = turn(query), turn(key)
        if n in cache:
            key, value = torch.cat([cache[n][0], key], 1), torch.cat([cache[n][1], value], 1)
        cache[n] = key, value
        groups = query.shape[0] // key.shape[0]
        scores = query @ key.repeat_interleave(groups, 0).transpose(1, 2) / size**0.5
        unseen = torch.arange(key.shape[1])[None] > where[:, None]
        weights = scores.masked_fill(unseen, float("-inf")).softmax(-1)
        mixed = (weights @ value.repeat_interleave(groups, 0)).transpose(0, 1).reshape(len(h), -1)
        return attention.o_proj(mixed)


def near(got: np.ndarray, want: np.ndarray) -> bool:
    return float(np.abs(got - want).max()) <= NEAR * max(1.0, float(np.abs(want).max()))


def test_a_chain_of_guesses_is_the_formula(guessing):
    rng = random.Random(guessing.size)
    written = Written(guessing.size)
    for length in (1, 7, 40):
        prompt, chain = tokens(rng, length), tokens(rng, 5)
        want = written(prompt, chain)
        prefill(guessing, 1, prompt)
        outcome = guessing.extend([Row(1, n + 1, n, token) for n, token in enumerate(chain)])
        got = [outcome.logits(n).copy() for n in range(5)]
        assert all(near(one, two) for one, two in zip(got, want, strict=True))
        guessing.close(1)
        prefill(guessing, 2, prompt)  # one at a time: the same
        for n, token in enumerate(chain):
            assert near(guessing.extend([Row(2, n + 1, n, token)]).logits(0), want[n])
        guessing.close(2)


def test_guesses_are_not_the_model_but_near_it(guessing, plain):
    """Else nothing would be tested, or gained."""
    rng = random.Random(1)
    alike = []
    for _ in range(12):
        prompt = tokens(rng, 30)
        for made in (guessing, plain):
            prefill(made, 1, prompt)
        one, two = (made.extend([Row(1, 1, 0, 17)]).logits(0).copy() for made in (guessing, plain))
        assert not near(one, two)
        alike.append(np.corrcoef(one, two)[0, 1])
        guessing.close(1), plain.close(1)
    assert np.mean(alike) > (0.9 if guessing.size == 2 else 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_committed_is_exact_whatever_was_guessed_between(guessing, plain, seed):
    """Rounds of a drafter: trees are guessed, some tokens are committed, drafted or not; two sequences at once."""
    rng = random.Random(seed)
    texts = {seq: tokens(rng, rng.randrange(1, 60)) for seq in (1, 2)}
    for seq, text in texts.items():
        prefill(guessing, seq, text)
    node, tips = 1, dict.fromkeys(texts, 0)
    for _ in range(6):
        due = {seq: tokens(rng, rng.randrange(1, 4)) for seq in texts}
        rows, last = [], {}
        for seq in texts:
            parent = tips[seq]
            for token in due[seq]:
                rows.append(Row(seq, node, parent, token, committed=True))
                parent, node = node, node + 1
            last[seq] = parent
        guesses = []
        for seq in texts:  # guesses below what is committed, in the same forward
            parent = last[seq]
            for _ in range(rng.randrange(0, 4)):
                guesses.append(Row(seq, node, parent, rng.randrange(3, 4096)))
                parent, node = rng.choice([parent, node]), node + 1
        mixed = [*rows, *guesses]
        outcome = guessing.extend(mixed)
        logits = {row.node: outcome.logits(at).copy() for at, row in enumerate(mixed)}
        for seq, text in texts.items():
            for row in [row for row in rows if row.seq == seq]:
                text.append(row.token)
                assert near(logits[row.node], prefill(plain, 8, text))
                plain.close(8)
            guessing.commit(seq, last[seq], [row.node for row in guesses if row.seq == seq])
            for _ in range(rng.randrange(0, 3)):  # more guesses in the same round
                guessing.extend([Row(seq, node, last[seq], rng.randrange(3, 4096))])
                node += 1
            guessing.commit(seq, last[seq])
            tips[seq] = last[seq]


def test_without_calibration_the_cache_is_another(guessing, plain):
    """What was only guessed stays inexact, and everything after it."""
    rng = random.Random(5)
    prompt, chain = tokens(rng, 20), tokens(rng, 6)
    prefill(guessing, 1, prompt)
    guessing.extend([Row(1, n + 1, n, token) for n, token in enumerate(chain)])
    guessing.commit(1, 6)
    got = guessing.extend([Row(1, 7, 6, 99, committed=True)]).logits(0)
    assert not near(got, prefill(plain, 1, [*prompt, *chain, 99]))


def test_attentions_as_one_and_one_by_one(plain):
    model = load_model(TARGET, "float32")
    loose = layer_parallel(model, 4, lambda layers: Group(layers))
    joined = layer_parallel(model, 4, lambda layers: BatchedGroup(layers) if len(layers) > 1 else layers[0])
    assert any(isinstance(layer, BatchedGroup) for layer in joined.model.layers)
    want, got = (plain._tried(one) for one in (loose, joined))
    assert torch.allclose(want, got, rtol=1e-3, atol=1e-3)
    assert torch.equal(plain._tried(model), plain._tried(layer_parallel(model, 1, lambda layers: Group(layers))))


@pytest.mark.long
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_guess_as_one_device(guessing, plain, ranks):
    """Bit for bit where each layer is computed as it was, and calibrated alike."""
    team = TeamEngine(TARGET, TorchSettings(sequences=3, context=256, rows=32, chunk=64, group=guessing.size), ranks,
                      False, [])  # fmt: skip
    rng = random.Random(ranks)
    try:
        assert not team.limits.lasting
        texts = {seq: tokens(rng, 20 + seq) for seq in (1, 2)}
        for seq, text in texts.items():
            assert near(prefill(team, seq, text), prefill(guessing, seq, text))
        tip = 0
        for first in range(1, 13, 4):
            rows = [Row(seq, first, tip, 30 + first + seq, committed=True) for seq in texts]
            rows += [Row(seq, first + 1, first, 60, False) for seq in texts] + [Row(1, first + 2, first + 1, 61)]
            found = []
            for one in (team, guessing):
                outcome = one.extend(rows)
                found.append([outcome.logits(n).copy() for n in range(len(rows))])
                for seq in texts:
                    one.commit(seq, first)
            assert all(near(a, b) for a, b in zip(*found, strict=True))
            tip = first
        with pytest.raises(EngineError):
            team.extend([Row(1, 90, 77, 5)])  # refused: the ranks hear nothing of it
        rows = [Row(1, 91, tip, 5, committed=True)]
        assert near(team.extend(rows).logits(0), guessing.extend(rows).logits(0))
    finally:
        processes = list(team._ranks)
        team.shutdown()
    assert all(process.poll() is not None for process in processes)


def test_each_rank_has_the_gpu_of_its_number():
    assert [Team(rank, 3, True).device("cuda:0") for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:2"]
    assert Team(1, 2, True).device("cpu") == "cpu"


@pytest.mark.long
def test_a_rank_that_is_lost_ends_the_engine(plain):
    team = TeamEngine(TARGET, TorchSettings(sequences=1, context=64), 2, True, [])
    try:
        team.prefill(1, [3, 4, 5])
        team._ranks[0].kill()
        team._ranks[0].wait()
        with pytest.raises(EngineLost, match="rank 1"):
            team.extend([Row(1, 1, 0, 6)])
    finally:
        team.shutdown()


def test_limits_and_failures(guessing):
    assert not guessing.limits.lasting and not guessing.limits.early_exit
    prefill(guessing, 1, [5, 6, 7])
    before = guessing.used_cells
    guessing.abort()
    guessing._aborted.set()
    clear, guessing._aborted.clear = guessing._aborted.clear, lambda: None
    try:
        with pytest.raises(Aborted):
            guessing.extend([Row(1, 1, 0, 9, committed=True), Row(1, 2, 1, 9)])
    finally:
        del guessing._aborted.clear
        clear()
    assert guessing.used_cells == before
    assert guessing.extend([Row(1, 1, 0, 9, committed=True), Row(1, 2, 1, 9)]).logits(1).shape == (4096,)


def test_recorded_forwards_are_the_same(plain):
    """As with CUDA graphs, both of the exact and of the guessing forwards."""
    made, replayed = engine(3), engine(3, recorded)
    rng = random.Random(2)
    prompt = tokens(rng, 30)
    for one in (made, replayed):
        prefill(one, 1, prompt)
    tip = 0
    for first in range(1, 13, 3):
        rows = [Row(1, first, tip, 40 + first, committed=True), Row(1, first + 1, first, 50)]
        rows.append(Row(1, first + 2, first + 1, 51))
        found = []
        for one in (made, replayed):
            outcome = one.extend(rows)
            found.append([outcome.logits(n).copy() for n in range(3)])
            one.commit(1, first)
        assert all(near(a, b) for a, b in zip(*found, strict=True))
        tip = first
    assert replayed.replays
    made.shutdown(), replayed.shutdown()


def test_models_of_another_kind_are_refused():
    model = load_model(DRAFTER, "float32")
    model.model.layers[1].add_module("more", torch.nn.Identity())
    with pytest.raises(Unsupported, match="Llama's layers"):
        layer_parallel(model, 2, lambda layers: Group(layers))
    model = load_model(DRAFTER, "float32")
    model.model._modules["layers"] = model.model.layers[:2]
    with pytest.raises(Unsupported, match="three layers"):
        layer_parallel(model, 2, lambda layers: Group(layers))
