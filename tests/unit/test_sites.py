"""Plans for described hardware: nothing that does not fit, and nothing better makes them worse."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
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
boxes = st.builds(
    lambda memory, sizes, cpu, gpu, meet: [
        Site("box", "cpu", memory * GIB, cpu),
        *(Site("box", f"cuda:{n}", size * GIB, gpu, meet) for n, size in enumerate(sizes)),
    ],
    st.integers(1, 64),
    st.lists(st.integers(1, 12), min_size=2, max_size=5),
    speeds,
    speeds,
    st.one_of(st.just(0.0), st.floats(1e-6, 1e-4)),
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


@settings(deadline=None)
@given(st.one_of(pairs, boxes), st.integers(0, 2), st.floats(1.0, 4.0))
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


@given(st.one_of(pairs, boxes))
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


def test_several_gpus_hold_what_one_cannot_and_are_faster_together():
    """Four cards for a 70B: in sequence as fast as one that held it all, together faster by what meeting leaves."""
    hardware = read_hardware("four-24gb")
    alone = [site for site in hardware.sites if site.kind == "cuda"]
    fitting, rejected = proposals(hardware.sites, Demand(shape_of("70b:4"), None), hardware.link)
    plain = {proposal.where: proposal for proposal in fitting}
    together = plain["box/cuda x 4 (tensor)"]
    in_sequence = next(p for where, p in plain.items() if len(p.target) > 1 and not p.tensor and "cpu" not in where)
    assert any("cuda:0" in what and "GiB" in why for what, why in rejected)  # one is too small
    whole = estimate(*(getattr(shape_of("70b:4"), name) for name in ("weights", "parameters", "kv_token")),
                     alone[0].speed, depth=4096)  # fmt: skip
    assert in_sequence.verify(1) == pytest.approx(whole(1), rel=1e-6)
    meeting = 2 * 80 * alone[0].meet
    assert together.verify(1) == pytest.approx((whole(1) - 6e-4) / 4 + 6e-4 + meeting, rel=1e-6)
    apart = [replace(site, meet=0.0) for site in hardware.sites]
    assert not any(p.tensor for p in proposals(apart, Demand(shape_of("70b:4"), None), hardware.link)[0])


def test_of_gpus_alike_one_stands_for_all():
    hardware = read_hardware("eight-80gb")
    demand = Demand(shape_of(hardware.target), shape_of(hardware.drafter), hardware.context)
    fitting, _ = proposals(hardware.sites, demand, hardware.link)
    assert len(fitting) < 200 and len({str(p) for p in fitting}) == len(fitting)
    eight = [p for p in fitting if p.tensor and len(p.target) == 8]
    assert {p.strategy for p in eight if p.drafter is None or p.drafter.kind == "cpu"} >= {"off", "ahead"}
    four = [p for p in fitting if p.tensor and len(p.target) == 4 and p.drafter and p.drafter.kind == "cuda"]
    assert {p.strategy for p in four} == {"serial", "pearl", "ahead"}  # on a fifth; in turns on one of the four


@pytest.mark.long
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
