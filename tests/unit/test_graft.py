"""Drafted subtrees into the tree: against the slow way, path by path."""

from __future__ import annotations

import random

import pytest

from hetero.workers.decoding.graft import graft
from hetero.workers.decoding.tree import DraftTree
from hetero.workers.wire.messages import Draft

VOCABULARY = 5


def paths_of(draft: Draft) -> list[list[int] | None]:
    """The token path of each drafted node; None where it hangs on nothing."""
    found: list[list[int] | None] = []
    for at, (parent, token) in enumerate(zip(draft.parents, draft.tokens, strict=True)):
        above = [] if parent < 0 else found[parent] if parent < at else None
        found.append(None if above is None else [*above, token])
    return found


def held(tree: DraftTree, node: int, path: list[int]) -> dict[tuple[int, ...], int]:
    """Every path in the tree, with who proposed its last token."""
    found = {}
    for token, child in tree[node].children.items():
        found[(*path, token)] = tree[child].source
        found |= held(tree, child, [*path, token])
    return found


@pytest.mark.parametrize("seed", range(300))
def test_a_draft_adds_what_agrees_with_the_commits_and_nothing_else(seed):
    rng = random.Random(seed)
    tree = DraftTree(9, 0)
    for source in range(3):
        size, since = rng.randrange(12), [rng.randrange(4) for _ in range(rng.randrange(4))]
        tokens = [rng.randrange(VOCABULARY + 1) for _ in range(size)]
        for n in range(min(size, len(since))):  # make it likely that some of it agrees
            tokens[n] = since[n] if rng.random() < 0.8 else tokens[n]
        parents = [n - 1 if rng.random() < 0.6 else rng.randrange(-1, size) for n in range(size)]
        draft = Draft(1, 1, 1, parents, tokens, [0.5] * size, 0.0)
        want = held(tree, tree.root, [])
        for path in paths_of(draft):
            if path is None or path[: len(since)] != since[: len(path)] or max(path) >= VOCABULARY:
                continue
            rest = tuple(path[len(since) :])
            if rest and all(rest[:n] in want for n in range(1, len(rest))):
                want.setdefault(rest, source)
        before = len(tree)
        fresh = graft(tree, draft, since, 1000, VOCABULARY, source)
        assert held(tree, tree.root, []) == want and fresh == len(tree) - before == len(want) - before


def test_a_full_tree_takes_no_more_but_knows_what_it_has():
    tree = DraftTree(0, 0)
    tree.add(0, 1, 0.5)
    draft = Draft(1, 1, 1, [-1, -1, 0], [1, 2, 3], [0.5] * 3, 0.0)
    assert graft(tree, draft, [], 1, VOCABULARY, 0) == 0 and len(tree) == 1
    assert graft(tree, draft, [], 2, VOCABULARY, 0) == 1 and len(tree) == 2


def test_lists_of_unlike_lengths_are_no_draft():
    tree = DraftTree(0, 0)
    assert graft(tree, Draft(1, 1, 1, [-1], [1, 2], [0.5], 0.0), [], 9, VOCABULARY, 0) == 0
