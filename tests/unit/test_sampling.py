"""The sampler draws from the target's distribution, and its noise is independent wherever it must be.

Random tests state their false-alarm probability; their seeds are fixed, so a pass stays a pass.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hetero.workers.errors import NotFinite
from hetero.workers.sampling.filters import Filters, largest
from hetero.workers.sampling.gumbel import GumbelNoise, prompt_digest
from hetero.workers.sampling.sampler import Sampler
from hetero.workers.wire.messages import Sampling

ALARM = 1e-4  # false-alarm probability of each random test


def rows(seed: int, vocabulary: int = 40, sharpness: float = 1.5) -> np.ndarray:
    return (sharpness * np.random.default_rng(seed).standard_normal(vocabulary)).astype(np.float32)


def by_definition(logits: np.ndarray, spec: Sampling) -> np.ndarray:
    """The filtered, normalised distribution, the slow way."""
    x = logits.astype(np.float64) / spec.temperature
    order = np.argsort(-x, kind="stable")
    keep = np.ones(len(x), bool)
    if spec.top_k:
        keep &= x >= x[order[min(spec.top_k, len(x)) - 1]]
    p = np.exp(x - x.max()) * keep
    p /= p.sum()
    if spec.top_p < 1:
        total, kept = 0.0, []
        for i in order:
            kept.append(i)
            total += p[i]
            if total >= spec.top_p:
                break
        keep &= np.isin(np.arange(len(x)), kept)
    if spec.min_p:
        keep &= x >= x.max() + math.log(spec.min_p)
    p = np.exp(x - x.max()) * keep
    return p / p.sum()


SPECS = [
    Sampling(0.8),
    Sampling(1.0),
    Sampling(1.5),
    Sampling(0.8, top_k=5),
    Sampling(1.0, top_p=0.8),
    Sampling(1.0, min_p=0.1),
    Sampling(0.9, top_k=20, top_p=0.9, min_p=0.02),
]


def counts(logits: np.ndarray, spec: Sampling, draws: int, position: int, bias=None) -> np.ndarray:
    found = np.zeros(len(logits))
    for seed in range(draws):
        sampler = Sampler(Sampling(spec.temperature, spec.top_k, spec.top_p, spec.min_p, seed), b"p" * 16)
        token = sampler.sample(logits, position)
        found[bias(seed, token) if bias else token] += 1
    return found


def p_value(found: np.ndarray, expected: np.ndarray) -> float:
    assert found[expected == 0].sum() == 0
    few = expected * found.sum() < 5
    a = np.append(found[~few], found[few].sum())
    b = np.append(expected[~few], expected[few].sum()) * found.sum()
    if b[-1] == 0:
        a, b = a[:-1], b[:-1]
    return float(stats.chisquare(a, b).pvalue) if len(a) > 1 else 1.0


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("position", [1, 37])
def test_samples_follow_the_distribution(spec, position):
    logits = rows(3, sharpness=0.7)
    assert p_value(counts(logits, spec, 4000, position), by_definition(logits, spec)) > ALARM


def test_a_planted_bias_is_caught():
    logits = rows(3, sharpness=0.7)
    best = int(logits.argmax())

    def bias(seed: int, token: int) -> int:
        return best if seed % 10 == 0 else token  # one draw in ten is greedy

    assert p_value(counts(logits, SPECS[0], 4000, 1, bias), by_definition(logits, SPECS[0])) < ALARM


def test_noise_is_gumbel():
    noise = GumbelNoise(5, 0, b"d" * 16)
    found = np.concatenate([noise.of(np.arange(2000), position) for position in range(20)])
    assert stats.kstest(found, stats.gumbel_r.cdf).pvalue > ALARM


@pytest.mark.parametrize("vocabulary", [100, 4096, 70000])
def test_the_loud_list_is_what_it_says(vocabulary):
    noise = GumbelNoise(9, 1, b"d" * 16)
    for position in (0, 1, 15, 16, 100):
        ids, values = noise.loud(position, vocabulary)
        every = noise.of(np.arange(vocabulary), position)
        assert ids.tolist() == np.flatnonzero(every > 6.0).tolist()
        assert np.array_equal(values, every[ids])
    for token in range(0, vocabulary, 97):
        assert noise.one(token, 3) == pytest.approx(noise.of(np.array([token]), 3)[0], rel=1e-12)


def pairs():
    prompt, other = prompt_digest([1, 2, 3]), prompt_digest([1, 2, 4])
    base = (7, 0, prompt, 5)
    return {
        "positions": (base, (7, 0, prompt, 6)),
        "far positions": (base, (7, 0, prompt, 5 + 256)),
        "choices": (base, (7, 1, prompt, 5)),
        "prompts": (base, (7, 0, other, 5)),
        "neighbouring seeds": (base, (8, 0, prompt, 5)),
        "seed against position": (base, (6, 0, prompt, 6)),
    }


@pytest.mark.parametrize("kind", pairs())
def test_noise_is_independent_across(kind):
    one, two = pairs()[kind]
    ids = np.arange(20000)
    a = GumbelNoise(*one[:3]).of(ids, one[3])
    b = GumbelNoise(*two[:3]).of(ids, two[3])
    for shift in (0, 1, 7):  # also not the same noise moved by a few ids
        r = stats.spearmanr(a, np.roll(b, shift))
        assert r.pvalue > ALARM


def test_choices_of_one_request_differ_and_prompts_draw_independently():
    logits = np.zeros(1000, np.float32)
    first = {Sampler(Sampling(1.0, seed=1, choice=c), b"p" * 16).sample(logits, 3) for c in range(200)}
    assert len(first) > 160  # 200 draws of 1000 have 181 distinct values on average, sd 4
    first = {Sampler(Sampling(1.0, seed=1), prompt_digest([p])).sample(logits, 1) for p in range(200)}
    assert len(first) > 160


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("vocabulary", [40, 3000])
def test_the_short_cut_is_exact(spec, vocabulary):
    for seed in range(150):
        logits = rows(seed, vocabulary, 0.2 + seed % 7)
        sampler = Sampler(spec, b"p" * 16)
        x = logits * np.float32(1 / spec.temperature)
        every = x + GumbelNoise(spec.seed, 0, b"p" * 16).of(np.arange(vocabulary), seed)
        every[by_definition(logits, spec) == 0] = -np.inf
        margin = sampler.margin(logits, seed)
        best = int(every.argmax())
        second = np.delete(every, best).max()
        assert sampler.sample(logits, seed) == best
        assert margin <= every[best] - second + 1e-5
        if spec.top_k == 0 and spec.top_p == 1 and spec.min_p == 0 and every[best] - second < 2.9:
            assert margin == pytest.approx(every[best] - second, abs=1e-5)


@pytest.mark.parametrize("spec", [Sampling(0.0), *SPECS])
def test_a_change_under_the_margin_never_flips(spec):
    """What the margin promises: logits moved by less than half of it sample the same token."""
    rng = np.random.default_rng(1)
    flips = 0
    for seed in range(300):
        logits = rows(seed)
        sampler = Sampler(spec, b"p" * 16)
        found = sampler.sample(logits, seed)
        temperature = spec.temperature or 1.0
        room = 0.49 * sampler.margin(logits, seed) * temperature * (1 - 1e-4)
        moved = (logits + room * rng.choice([-1, 1], len(logits))).astype(np.float32)
        if spec.top_p < 1:  # the mass itself moves too: only the plain border is promised
            continue
        assert sampler.sample(moved, seed) == found
        wild = (logits + 3 * rng.choice([-1, 1], len(logits))).astype(np.float32)
        flips += sampler.sample(wild, seed) != found
    assert flips > 20 or spec.top_p < 1


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("poison", ["nan", "inf", "all -inf"])
def test_logits_that_are_not_finite_are_refused(temperature, poison):
    logits = rows(1)
    if poison == "all -inf":
        logits[:] = -np.inf
    else:
        logits[7] = float(poison)
    with pytest.raises(NotFinite):
        Sampler(Sampling(temperature), b"p" * 16).sample(logits, 1)


def test_tiny_temperatures_are_greedy():
    logits = rows(1, 100)
    for temperature in (1e-38, 1e-20, 1e-6):
        sampler = Sampler(Sampling(temperature), b"p" * 16)
        assert sampler.sample(logits, 1) == int(logits.argmax()) and np.isfinite(sampler.margin(logits, 1))


def test_equal_logits_greedy_takes_the_first():
    logits = np.zeros(9, np.float32)
    logits[[3, 5]] = 1
    sampler = Sampler(Sampling(0.0), b"p" * 16)
    assert (sampler.sample(logits, 0), sampler.margin(logits, 0)) == (3, 0.0)


@pytest.mark.parametrize("spec", SPECS[3:])
@pytest.mark.parametrize("vocabulary", [7, 300, 9000])
def test_to_pass_is_to_reach_the_edge(spec, vocabulary):
    """Two ways to filter: whether one id passes, without sorting, and where the border lies. Ties, too."""
    for seed in range(8):
        x = np.round(rows(seed, vocabulary, 0.3 + seed), 1 if seed % 2 else 6) / np.float32(spec.temperature)
        filters = Filters(spec, x, float(x.max()))
        edge = filters.edge()
        allowed = by_definition(x * np.float32(spec.temperature), spec) > 0
        borders = x[np.argsort(np.abs(x - edge))[:40]]
        for value in {float(x.max()), float(x.min()), *borders.tolist()}:
            assert filters.passes(value) == (value >= edge), (value, edge)
        assert not (allowed & (x < edge)).any()  # ties at the border pass here, by definition only the first do


@pytest.mark.parametrize("size", [1, 50, 3000, 40000])
@pytest.mark.parametrize("count", [1, 7, 48])
def test_the_largest_are_found_whatever_the_order(size, count):
    rng = np.random.default_rng(size)
    for x in (rng.standard_normal(size), np.sort(rng.standard_normal(size)), np.zeros(size), np.arange(size) % 64):
        found = np.sort(x.astype(np.float32)[largest(x.astype(np.float32), count)])
        assert found.tolist() == np.sort(x.astype(np.float32))[-count:].tolist()
