"""The arithmetic and the policies of speculation: windows, waits, calibrated growth, trials."""

from __future__ import annotations

import random
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero.placement.cost import Curve, Outlook, Rate, batch_worth, rows_worth
from hetero.workers.decoding.drafter import Drafter
from hetero.workers.decoding.policy.calibration import Calibration
from hetero.workers.decoding.policy.expansion import BranchExpansion, ChainExpansion, TreeExpansion
from hetero.workers.decoding.policy.speculation_switch import SpeculationSwitch
from hetero.workers.decoding.policy.strategy import strategy
from hetero.workers.decoding.protocol import Extend
from hetero.workers.decoding.tree import DraftTree
from hetero.workers.engines.base import EngineLimits, Outcome
from hetero.workers.sampling.sampler import Candidates
from hetero.workers.wire.messages import Commit, Open, Sampling

# Arithmetic


@given(
    st.lists(st.floats(0, 1), max_size=20).map(lambda found: sorted(found, reverse=True)),
    st.floats(0, 500),
    st.floats(0, 0.01),
    st.integers(1, 4),
)
@settings(max_examples=200, deadline=None)
def test_the_window_is_the_best_of_all_sizes(reaches, rate, row, first):
    def seconds(rows):
        return 0.01 + row * rows

    def worth(n):
        return sum(reaches[:n]) - rate * seconds(first + n)

    found = rows_worth(reaches, seconds, rate, first)
    assert worth(found) >= max(worth(n) for n in range(len(reaches) + 1)) - 1e-9


def test_a_batch_grows_while_rows_are_free_and_stays_small_when_they_cost():
    values = [0.8, 0.4, 0.2, 0.1, 0.05]
    assert batch_worth(values, lambda rows: 0.004) == 5
    assert batch_worth(values, lambda rows: 0.004 * rows) == 1
    assert batch_worth(values, lambda rows: 0.004 if rows <= 3 else 0.02) == 3


def outlook(reaches, leaf=1.0, beta=0.95, first=0.004, step=0.004, row=0.0) -> Outlook:
    return Outlook(reaches, leaf, alpha=0.8, beta=beta, ranks=6, first=first, step=step, row=row, room=15)


def test_waiting():
    full, empty = [0.8**n for n in range(1, 16)], []
    assert outlook(empty).pays(30.0)
    assert not outlook(empty, first=0.2, step=0.2).pays(30.0)
    assert not outlook(full, leaf=full[-1], first=0.0001, step=0.0001).pays(30.0)  # it would displace better ones
    # The first draft is far, the next ones near: one alone does not pay, several do.
    assert not outlook(empty, beta=0.8, first=0.05, step=10.0).pays(30.0)
    assert outlook(empty, beta=0.8, first=0.05, step=0.001).pays(30.0)
    # Where rows cost time, drafts that fill a window are worth less.
    assert outlook([0.8], leaf=0.8).pays(30.0)
    assert not outlook([0.8], leaf=0.8, row=0.025).pays(30.0)


def test_a_curve_is_hopeful_beyond_what_was_measured_straight_within_and_never_falls():
    curve = Curve()
    assert not curve and curve(3) == 0.0
    curve.add(1, 0.010)
    curve.add(9, 0.026)
    assert [curve(rows) for rows in (0, 1, 5, 9, 40)] == pytest.approx([0.010, 0.010, 0.018, 0.026, 0.026])
    curve.add(5, 0.050)  # an outlier: nine rows took less
    assert curve(5) == pytest.approx(0.026)
    assert curve.points.rows == (1, 5, 9) and curve.points.seconds == pytest.approx((0.010, 0.026, 0.026))


def test_a_rate_is_a_ratio_of_sums():
    rate = Rate(1.0)
    for seconds in (0.1, 0.9):
        rate.add(1, seconds)
    assert rate() == pytest.approx(2.0)  # the mean of the ratios would be 5.6


def test_calibration_finds_the_true_chances():
    """Six cells of 4000 draws: an error of 0.03 is beyond 3.7 sigma in each."""
    rng = random.Random(3)
    calibration = Calibration()
    confidences = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    true = [0.7, 0.15, 0.05, 0.03, 0.01, 0.01]
    for _ in range(4000):
        at, taken = rng.random(), None
        for rank, chance in enumerate(true):
            if at < chance:
                taken = rank
                break
            at -= chance
        calibration.observe(confidences, taken)
    assert calibration.chances(confidences) == pytest.approx(true, abs=0.03)
    assert sum(Calibration().chances([0.0] * 6)) < 1.0


# The tree and its growth


def planted(seed: int, size: int = 60) -> DraftTree:
    rng = random.Random(seed)
    tree = DraftTree(0, 0)
    nodes = [0]
    while len(nodes) < size:
        above = rng.choice(nodes)
        left = 1.0 - sum(tree[child].chance for child in tree[above].children.values())
        node = tree.add(above, len(tree[above].children) + 1, left * rng.uniform(0.1, 0.9))
        nodes.append(node)
    return tree


def reach(tree: DraftTree, node: int) -> float:
    chances = []
    while node != tree.root:
        chances.append(tree[node].chance)
        node = tree[node].parent
    return prod(chances)


@pytest.mark.parametrize("seed", range(10))
def test_the_best_nodes_are_the_likeliest_and_connected(seed):
    tree = planted(seed)
    if seed % 2:
        tree.advance(next(iter(tree[tree.root].children)))
    every = sorted((reach(tree, node) for node in range(100) if node in tree and node != tree.root), reverse=True)
    found = tree.best(12)
    assert [reach(tree, node.id) for node in found] == pytest.approx(every[:12])
    seen = {tree.root}
    for node in found:
        assert node.parent in seen and tree.reach(node.id) == pytest.approx(reach(tree, node.id))
        seen.add(node.id)


def draft(rng: random.Random, width: int) -> Candidates:
    return Candidates(rng.sample(range(9), width), sorted(rng.uniform(0, 3) for _ in range(width)))


@pytest.mark.parametrize("seed", range(20))
def test_a_tree_grows_at_its_likeliest_leaves_and_forgets_none(seed):
    rng = random.Random(seed)
    tree = DraftTree(0, 0)
    expansion = TreeExpansion(tree, Calibration(), frozenset({8}))
    expanded: set[int] = set()
    for _ in range(60):
        open_ = {
            node for node in range(5000) if node in tree and node not in expanded and tree[node].token != 8
        }  # fmt: skip
        given = expansion.leaves(4)
        chosen = [leaf for _, leaf in given]
        values = [value for value, _ in given]
        assert values == sorted(values, reverse=True) and set(chosen) <= open_
        best = sorted((tree.reach(node) for node in open_), reverse=True)[: len(given)]
        assert values == pytest.approx(best)
        assert len(given) == min(4, len(open_))
        for leaf in chosen[1:]:
            if rng.random() < 0.3:
                expansion.put_back(leaf)
            else:
                expanded.add(leaf)
                expansion.expanded(leaf, draft(rng, 6))
        if chosen:
            expanded.add(chosen[0])
            expansion.expanded(chosen[0], draft(rng, 6))
        if rng.random() < 0.3:
            token = rng.randrange(8)
            expansion.committing(token)
            tree.advance(token)
            expansion.committed()


def test_a_chain_keeps_its_lead():
    rng = random.Random(1)
    tree = DraftTree(0, 0)
    expansion = ChainExpansion(tree, Calibration(), frozenset(), lead=3)
    for _ in range(3):
        ((_, leaf),) = expansion.leaves(8)
        expansion.expanded(leaf, draft(rng, 1))
    assert expansion.leaves(8) == [] and len(tree) == 3
    token = next(tree.chain()).token
    expansion.committing(token)
    tree.advance(token)
    expansion.committed()
    assert len(expansion.leaves(8)) == 1


def test_branches_grow_below_a_finished_window_and_prefer_hints():
    rng = random.Random(2)
    tree = DraftTree(0, 0)
    expansion = BranchExpansion(tree, Calibration(), frozenset(), gamma=3)
    while len(expansion.window()) <= 3:
        ((_, leaf),) = expansion.leaves(8)
        expansion.expanded(leaf, draft(rng, 4))
    window = expansion.window()
    assert [tree[node].position for node in window] == [0, 1, 2, 3]
    learned = Calibration()
    for _ in range(500):  # the first hint has been right nine times in ten, and none of the others
        learned.observe([0.0], 0 if rng.random() < 0.9 else None)
    expansion.hint(window[1], [100], learned)
    hinted = tree[window[1]].children[100]
    value, leaf = expansion.leaves(8)[0]
    assert leaf == hinted and value == pytest.approx(tree.reach(window[1]) * learned.chances([0.0])[0])
    assert learned.chances([0.0])[0] > 0.8 and expansion.hint_started == {hinted}
    for _ in range(100):
        leaves = expansion.leaves(4)
        for _, leaf in leaves:
            assert leaf not in window[:-1]
            expansion.expanded(leaf, draft(rng, 4))
    assert not expansion.leaves(4)
    deepest = max(tree[node].position for node in range(2000) if node in tree)
    assert deepest <= 3 + 1 + 3  # a branch of gamma below the target's own token after the window


# Whether speculation pays


def spend(switch: SpeculationSwitch, rounds: int, seconds: float, alone: float, tokens=1, drafted=0) -> list[bool]:
    states = []
    for _ in range(rounds):
        switch.round(tokens, drafted, seconds, alone)
        states.append(switch.resting)
    return states


def test_speculation_that_loses_rests_longer_and_longer():
    switch = SpeculationSwitch(probe=False)
    states = spend(switch, 1000, seconds=0.02, alone=0.01)
    assert states.index(True) == 4  # five tokens' time was lost
    turns = [n for n in range(1, len(states)) if states[n] != states[n - 1]]
    rests = np.diff(turns)[::2]
    assert list(rests[:3]) == [64, 128, 256] and switch.plain == sum(states[:-1])


def test_speculation_that_wins_only_stops_to_measure():
    switch = SpeculationSwitch(probe=True)
    assert switch.resting
    states = spend(switch, 3000, seconds=0.005, alone=0.01)
    assert 3 <= sum(states) <= 9
    unknown = SpeculationSwitch(probe=False)
    assert not any(spend(unknown, 500, seconds=1.0, alone=0.0))


def test_a_drafter_is_measured_against_what_there_is_without_it():
    """Four tokens a round, three of them looked up, in one and a half times the forward: plainly, it gains."""
    assert not any(spend(SpeculationSwitch(probe=False), 500, seconds=0.01, alone=0.01, tokens=4, drafted=1)[:100])
    assert not any(spend(SpeculationSwitch(probe=False), 100, seconds=0.015, alone=0.01, tokens=4, drafted=3))
    assert any(spend(SpeculationSwitch(probe=False), 30, seconds=0.015, alone=0.01, tokens=4, drafted=1))


def test_one_slow_round_is_no_verdict():
    switch = SpeculationSwitch(probe=False)
    assert not any(spend(switch, 3, seconds=0.008, alone=0.01))
    assert spend(switch, 1, seconds=3.0, alone=0.01) == [False]
    assert spend(switch, 1, seconds=3.0, alone=0.01) == [False]
    assert spend(switch, 1, seconds=3.0, alone=0.01) == [True]


def test_hints_are_trusted_as_far_as_they_proved_right():
    tree, learned = DraftTree(0, 0), Calibration()
    expansion = BranchExpansion(tree, Calibration(), frozenset(), gamma=2)
    before = learned.chances([0.0, 0.0])
    for _ in range(200):  # the second hint is always right
        expansion.hint(tree.root, [5, 6], learned)
        expansion.committing(6)
        tree.advance(6)
        expansion.committed()
    after = learned.chances([0.0, 0.0])
    assert after[0] < 0.1 < before[0] and before[1] < 0.5 < 0.9 < after[1]


# A drafter and the check in flight


class Ranked(Outcome):
    """Always the same six candidates, with no margin between them."""

    def logits(self, row):
        raise NotImplementedError

    def candidates(self, row, sampler, position, count):
        return Candidates(list(range(6)), [0.0] * 6)


def test_forwards_get_short_when_a_commit_is_due():
    drafter = Drafter(2, EngineLimits(8, 1000, 16, 64, 1, draft_nodes=500), frozenset(), strategy("ahead"), 8)
    drafter.linked(b"verifier")
    drafter.receive(b"verifier", Open(1, 1, [0], [], Sampling(0.0, 0, 1.0, 0.0, 1, 0), 500, []), 0.0)
    now = 0.0

    def seconds(rows: int) -> float:
        return 0.002 + 0.0002 * rows

    def forward() -> int:
        nonlocal now
        run = drafter.step(now).job
        if run is None:
            return 0
        rows = len(run.forward.rows) if isinstance(run.forward, Extend) else 1
        now += seconds(rows)
        drafter.completed(Ranked() if run.forward is not None else None, seconds(rows), now)
        return rows

    assert forward() == 1 and forward() > 1  # the prompt, then its candidates
    drafter.receive(b"verifier", Commit(1, 1, 1, [7], 0.0), now)  # none of them: one leaf
    free = [forward() for _ in range(20)]
    assert free[0] == 1
    assert set(free[5:]) <= {7, 8} and free[-1] == 8
    now += 0.001
    drafter.receive(b"verifier", Commit(1, 1, 2, [], 0.0045), now)  # a check begins that takes so long
    due = now + 0.0045
    while now < due:  # what it starts ends before the commit, but for the shortest forward of all
        began, rows = now, forward()
        assert rows <= 5 or now <= due
        if now == began:
            break
    now = due + 0.0005  # the commit is late: nothing long now
    assert 0 < forward() <= 5
    now = due + 0.1  # it was lost, it seems
    assert max(forward() for _ in range(3)) > 5


def test_a_leaf_expanded_by_the_prompt_is_not_given_out_again():
    tree = DraftTree(0, 0)
    expansion = TreeExpansion(tree, Calibration(), frozenset())
    expansion.expanded(tree.root, Candidates([1, 2, 3], [2.0, 1.0, 2.0]))
    assert sorted(leaf for _, leaf in expansion.leaves(8)) == sorted(tree[tree.root].children.values())
