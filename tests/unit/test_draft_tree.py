"""The draft tree: what a commit keeps."""

from __future__ import annotations

import random
from math import isclose

from hypothesis import given, settings
from hypothesis import strategies as st

from hetero.workers.decoding.proposers.proposer import LOOKUP
from hetero.workers.decoding.tree import DraftTree


@given(st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_a_commit_keeps_the_subtree_and_nothing_else(seed):
    rng = random.Random(seed)
    tree = DraftTree(4, 99)
    paths = {(): 0}  # token path below the committed prefix -> node
    seen = {0}
    for _ in range(rng.randrange(60)):
        if rng.random() < 0.8:
            above = rng.choice(list(paths))
            token = rng.randrange(4)
            node = tree.add(paths[above], token, rng.random())
            assert ((*above, token) in paths) == (node in seen)
            paths[(*above, token)] = node
            seen.add(node)
        else:
            token = rng.randrange(4)
            root = tree.advance(token)
            assert root == paths.get((token,), root)
            paths = {path[1:]: node for path, node in paths.items() if path[:1] == (token,)} or {(): root}
            seen.add(root)
    assert len(tree) == len(paths) - 1
    for path, node in paths.items():
        assert tree[node].position == tree.position + len(path)
        if path:
            assert tree[paths[path[:-1]]].children[path[-1]] == node


@st.composite
def opinions(draw):
    """What several proposers think comes next: (source, token, chance), a proposer's chances below 1 in sum."""
    found = []
    for source in draw(st.lists(st.integers(-3, 2), min_size=1, max_size=4, unique=True)):
        rest = 0.995
        for token in draw(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True)):
            chance = draw(st.floats(0.01, 0.99)) * rest
            found.append((source, token, chance))
            rest -= chance
    return found


@given(opinions(), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_children_share_one_certainty_whoever_comes_first(said, rng):
    def chances(said):
        tree = DraftTree(0, 0)
        for source, token, chance in said:
            tree.add(tree.add(0, token, chance, source), 9, 0.5, source)  # and something below it
        found = {token: tree[node].chance for token, node in tree[0].children.items()}
        for token, node in tree[0].children.items():
            below = tree[node].children[9]
            assert isclose(tree.reach(node), found[token], rel_tol=1e-6)
            assert isclose(tree.reach(below), found[token] * 0.5, rel_tol=1e-6)
        return found

    found = chances(said)
    assert sum(found.values()) <= 1.0 + 1e-9
    if len({token for _, token, _ in said}) == len(said):  # nobody agrees: the order is of no matter
        again = chances(rng.sample(said, len(said)))
        assert all(isclose(found[token], again[token], rel_tol=1e-6) for token in found)
        if len({source for source, _, _ in said}) == 1:
            assert all(isclose(found[token], chance) for _, token, chance in said)
        else:
            assert all(found[token] <= chance + 1e-9 for _, token, chance in said)


def test_the_surer_of_two_that_disagree_is_believed():
    tree = DraftTree(0, 0)
    looked_up = tree.add(0, 1, 0.5, LOOKUP)
    drafted = tree.add(0, 2, 0.9, 0)
    assert tree.reach(drafted) > 0.8 > 0.1 > tree.reach(looked_up)
    assert tree.add(0, 1, 0.8, 0) == looked_up and tree[looked_up].source == LOOKUP and tree[looked_up].surest == 0
    assert tree[looked_up].chance > 0.4  # both are the drafter's words now
