"""The draft tree: what a commit keeps."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

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
