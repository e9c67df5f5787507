"""Plans for described hardware: nothing that does not fit, and nothing better makes them worse."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero.data import GALLERY
from hetero.errors import ConfigError
from hetero.placement.profile import Profile, Speed, estimate
from hetero.placement.sites import Demand, Proposal, Shape, Site, proposals, rank
from hetero.planning.whatif import Hardware, changed, predict, read_hardware, shape_of

GIB = 1 << 30
TARGET = Shape("target", 5 * GIB, 8 * 10**9, 131072)
DRAFTER = Shape("drafter", GIB, 10**9, 32768)
DEMAND = Demand(TARGET, DRAFTER)

speeds = st.builds(
    Speed,
    st.floats(2e10, 1e12),
    st.floats(3e11, 1e14),
    st.floats(0, 2e-3),
)
pairs = st.builds(
    lambda memories, own: [
        Site("pc", "cpu", memories[0] * GIB, own[0]),
        Site("pc", "cuda:0", memories[1] * GIB, own[1]),
        Site("far", "cuda:0", memories[2] * GIB, own[2]),
    ],
    st.tuples(st.integers(1, 64), st.integers(1, 24), st.integers(1, 24)),
    st.tuples(speeds, speeds, speeds),
)


def roughly(proposal: Proposal) -> float:
    """Tokens a second, thereabouts: a predictor without noise."""
    if proposal.drafter is None or proposal.draft is None:
        return 1.0 / proposal.verify(1)
    best = 0.0
    for gamma in [proposal.gamma] if proposal.gamma else (1, 2, 4, 8):
        tokens = sum(0.75**n for n in range(gamma + 1))
        checking, drafting = proposal.verify(gamma + 1), gamma * proposal.draft(1) + 2 * proposal.link
        best = max(best, tokens / (checking + drafting if proposal.gamma else max(checking, drafting)))
    return best


def best(sites: list[Site], way: float = 1e-3) -> float:
    fitting, _ = proposals(sites, DEMAND, lambda one, two: 1e-4 if one == two else way)
    ranked = rank(fitting, roughly)
    return ranked[0][0] if ranked else 0.0


@given(pairs, st.integers(0, 2), st.floats(1.0, 4.0))
def test_better_hardware_never_makes_the_best_plan_slower(sites, which, factor):
    before = best(sites)
    own = sites[which]
    for better in (
        replace(own, memory=int(own.memory * factor)),
        replace(own, speed=replace(own.speed, bandwidth=own.speed.bandwidth * factor)),
        replace(own, speed=replace(own.speed, operations=own.speed.operations * factor)),
        replace(own, speed=replace(own.speed, overhead=own.speed.overhead / factor)),
    ):
        assert best([better if n == which else site for n, site in enumerate(sites)]) >= before * (1 - 1e-9)
    assert best(sites, 1e-3 / factor) >= before * (1 - 1e-9)


@given(pairs)
def test_nothing_is_proposed_that_does_not_fit(sites):
    fitting, rejected = proposals(sites, DEMAND, lambda one, two: 1e-3)
    for proposal in fitting:
        assert all(needed <= site.memory for site, needed in proposal.memory.items())
        assert sum(share for _, share in proposal.target) == pytest.approx(1.0)
        assert sum(proposal.memory.values()) >= TARGET.weights
    assert all("GiB" in why for _, why in rejected)


@given(speeds, speeds, st.floats(0.05, 1.0))
def test_an_estimate_orders_devices_as_their_figures_do(one, two, active):
    least = min(one.bandwidth, two.bandwidth), min(one.operations, two.operations)
    slow = Speed(*least, max(one.overhead, two.overhead))
    for rows in (1, 3, 8, 40):
        a, b = (estimate(5 * GIB, 8 * 10**9, 131072, speed, active)(rows) for speed in (one, slow))
        assert a <= b * (1 + 1e-9)
        assert estimate(5 * GIB, 8 * 10**9, 131072, one, active)(rows + 1) >= a * (1 - 1e-9)


def test_a_profile_between_and_beyond_its_sizes():
    found = Profile({1: 1.0, 4: 2.0, 8: 6.0}, depth=100, deeper=0.01)
    assert [found(rows) for rows in (1, 2, 4, 6, 8, 16)] == pytest.approx([1.0, 4 / 3, 2.0, 4.0, 6.0, 12.0])
    assert found(1, 200) == pytest.approx(2.0) and found(1, 50) == 1.0


@pytest.mark.parametrize("file", sorted(GALLERY.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_gallery_is_read_and_its_models_fit(file):
    hardware = read_hardware(file.stem)
    demand = Demand(shape_of(hardware.target), shape_of(hardware.drafter), hardware.context)
    fitting, _ = proposals(hardware.sites, demand, hardware.link)
    assert {"off", "serial", "ahead"} <= {proposal.strategy for proposal in fitting}


def test_a_far_drafter_wins_only_within_its_window():
    """A pipelined far draft pays while the round trip is shorter than what the target takes to check a window."""
    hardware = changed(read_hardware("two-pcs-1gbe"), ("8b:4", "0.5b:4"), None)

    def gain(trip: float) -> float:
        apart = Hardware(hardware.machines, hardware.target, hardware.drafter, trip, 0.75)
        demand = Demand(shape_of(apart.target), shape_of(apart.drafter), apart.context)
        fitting, _ = proposals(apart.sites, demand, apart.link)
        on_strong = [p for p in fitting if len(p.target) == 1 and str(p.target[0][0]) == "strong/cpu"]
        plain = next(p for p in on_strong if p.drafter is None)
        far = next(p for p in on_strong if p.strategy == "ahead" and p.drafter and p.drafter.machine == "other")
        return predict(far, 0.75) / predict(plain, 0.75)

    near, late = gain(0.5), gain(2000.0)
    assert near > 1.5 and late < 1.05 and near > gain(60.0) > late - 0.05


def test_wrong_files_are_told_in_a_line(tmp_path):
    for text, what in (
        ("machines: {a: {cpu: {memory_gib: 0}}}", "memory_gib"),
        ("machines: {}", "devices"),
        ("[", "cluster"),
    ):
        file = tmp_path / "x.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError, match=what):
            read_hardware(str(file))
    with pytest.raises(ConfigError, match="pc-4gb"):
        read_hardware("nowhere")
    with pytest.raises(ConfigError, match="70b"):
        shape_of("9000b:4")
