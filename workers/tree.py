"""The draft tree of one sequence: guessed tokens below the newest committed one.

Whoever proposes tokens only adds paths; a commit re-roots the tree: the surviving subtree stays, the rest goes.
Node ids are never reused and parents come before children, so they serve as the engine's node ids too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Node:
    """A token below its parent. ``position`` is its index in prompt + output; ``confidence`` its drafter's margin."""

    id: int
    parent: int
    token: int
    position: int
    confidence: float
    children: dict[int, int] = field(default_factory=dict)


class DraftTree:
    """Guesses below ``root``, the newest committed token."""

    def __init__(self, position: int, token: int) -> None:
        """A bare root at the end of a prefix; the engines' node 0."""
        self._nodes = {0: Node(0, -1, token, position, 0.0)}
        self._next = 1
        self.root = 0

    def __len__(self) -> int:
        """Guesses held, the root not counted."""
        return len(self._nodes) - 1

    def __getitem__(self, node: int) -> Node:
        return self._nodes[node]

    def __contains__(self, node: int) -> bool:
        return node in self._nodes

    @property
    def position(self) -> int:
        """Position of the newest committed token."""
        return self._nodes[self.root].position

    def add(self, parent: int, token: int, confidence: float) -> int:
        """Guess ``token`` below ``parent``; returns its node (the present one if it was guessed before)."""
        above = self._nodes[parent]
        known = above.children.get(token)
        if known is not None:
            return known
        node = Node(self._next, parent, token, above.position + 1, confidence)
        self._next += 1
        self._nodes[node.id] = node
        above.children[token] = node.id
        return node.id

    def advance(self, token: int) -> int:
        """Commit ``token`` after the root: its node becomes the root, all other branches go. Returns it."""
        old = self.root
        self.root = self.add(old, token, 0.0)
        for sibling in self._nodes.pop(old).children.values():
            if sibling != self.root:
                self._drop(sibling)
        return self.root

    def chain(self, start: int | None = None) -> Iterator[Node]:
        """The most confident path below ``start`` (the root), top down."""
        node = self._nodes[self.root if start is None else start]
        while node.children:
            node = max((self._nodes[child] for child in node.children.values()), key=lambda n: (n.confidence, -n.id))
            yield node

    def _drop(self, top: int) -> None:
        waiting = [top]
        while waiting:
            waiting.extend(self._nodes.pop(waiting.pop()).children.values())
