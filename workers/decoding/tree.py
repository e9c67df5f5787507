"""The draft tree of one sequence: drafted tokens below the newest committed one.

Whoever proposes tokens only adds paths; a commit re-roots the tree: the surviving subtree stays, the rest goes.
Node ids are never reused and parents come before children, so they serve as the engine's node ids too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import exp, log

_LEAST = 1e-9  # of a chance, so that its logarithm exists
_DOUBT = 0.005  # that none of a proposer's candidates comes, at least


@dataclass(slots=True)
class DraftNode:
    """A draft token below its parent. ``position`` is its index in prompt + output; ``chance`` the calibrated one that
    the target takes it once at its parent, all proposers heard; ``surprisal`` the sum of -log(chance) on the way here,
    which orders nodes by reach and survives re-rooting; ``source``: who proposed it first, ``drafter``: which model
    drafter, first or later (-1: none; sources below 0 are none, see ``proposers``); ``claim``: its chance in the
    opinion of ``surest``, the surest of those who proposed it; ``found``: whether it was, first or later, proposed
    without a model."""

    id: int
    parent: int
    token: int
    position: int
    chance: float
    surprisal: float
    source: int = 0
    drafter: int = 0
    claim: float = 1.0
    surest: int = 0
    found: bool = False
    children: dict[int, int] = field(default_factory=dict)

    @property
    def drafted(self) -> bool:
        """Whether a model drafter proposed it."""
        return self.drafter >= 0


class DraftTree:
    """Draft tokens below ``root``, the newest committed token."""

    def __init__(self, position: int, token: int) -> None:
        """A bare root at the end of a prefix; the engines' node 0."""
        self._nodes = {0: DraftNode(0, -1, token, position, 1.0, 0.0)}
        self._next = 1
        self.root = 0

    def __len__(self) -> int:
        """Draft tokens held, the root not counted."""
        return len(self._nodes) - 1

    def __getitem__(self, node: int) -> DraftNode:
        return self._nodes[node]

    def __contains__(self, node: int) -> bool:
        return node in self._nodes

    @property
    def position(self) -> int:
        """Position of the newest committed token."""
        return self._nodes[self.root].position

    def reach(self, node: int) -> float:
        """Chance that the target comes to a node from the root."""
        return exp(self._nodes[self.root].surprisal - self._nodes[node].surprisal)

    def add(self, parent: int, token: int, chance: float, source: int = 0) -> int:
        """Add ``token`` below ``parent``, of a ``chance`` in its source's opinion; returns its node. Of one that is
        there already the surer of those who proposed it is believed."""
        above = self._nodes[parent]
        chance = max(chance, _LEAST)
        known = above.children.get(token)
        if known is not None:
            old = self._nodes[known]
            old.drafter = old.drafter if old.drafted else max(source, -1)
            old.found = old.found or source < 0
            if chance > old.claim:
                old.claim, old.surest = chance, source
                self._weigh(above)
            return known
        node = self._put(above, token, chance, source)
        if len(above.children) > 1:
            self._weigh(above)
        return node

    def advance(self, token: int) -> int:
        """Commit ``token`` after the root: its node becomes the root, all other branches go. Returns it."""
        old = self.root
        known = self._nodes[old].children.get(token)
        self.root = self._put(self._nodes[old], token, 1.0, 0) if known is None else known
        for sibling in self._nodes.pop(old).children.values():
            if sibling != self.root:
                self._drop(sibling)
        return self.root

    def chain(self, drafted: bool = False) -> Iterator[DraftNode]:
        """The likeliest path below the root, top down; ``drafted``: of what model drafters proposed."""
        node = self.likeliest(self.root, drafted)
        while node is not None:
            yield node
            node = self.likeliest(node.id, drafted)

    def likeliest(self, node: int, drafted: bool = False) -> DraftNode | None:
        """The likeliest child of a node; ``drafted``: of those that model drafters proposed."""
        children = (self._nodes[child] for child in self._nodes[node].children.values())
        own = (child for child in children if child.drafted or not drafted)
        return min(own, key=lambda child: (child.surprisal, child.id), default=None)

    def tokens(self, node: int) -> list[int]:
        """The draft tokens on the way from the root to a node, it included."""
        found = []
        while node != self.root:
            found.append(self._nodes[node].token)
            node = self._nodes[node].parent
        return found[::-1]

    def best(self, count: int) -> list[DraftNode]:
        """The ``count`` likeliest nodes below the root, likeliest first, so parents before children."""
        found: list[DraftNode] = []
        waiting: list[tuple[float, int]] = []
        node = self._nodes[self.root]
        while len(found) < count:
            for child in node.children.values():
                heappush(waiting, (self._nodes[child].surprisal, child))
            if not waiting:
                break
            node = self._nodes[heappop(waiting)[1]]
            found.append(node)
        return found

    def _put(self, above: DraftNode, token: int, chance: float, source: int) -> int:
        """A new node below another one."""
        surprisal, drafter = above.surprisal - log(chance), max(source, -1)
        node = DraftNode(
            self._next, above.id, token, above.position + 1, chance, surprisal, source, drafter, chance, source
        )
        node.found = source < 0
        self._next += 1
        self._nodes[node.id] = node
        above.children[token] = node.id
        return node.id

    def _weigh(self, above: DraftNode) -> None:
        """Children of a node share one certainty. A proposer's candidates exclude each other; proposers that differ
        are taken as independent, so one is right where the others are wrong (a product of experts, Hinton 2002)."""
        children = [self._nodes[child] for child in above.children.values()]
        doubts: dict[int, float] = {}
        for child in children:
            doubts[child.surest] = doubts.get(child.surest, 1.0) - child.claim
        if len(doubts) == 1:
            chances = [child.claim for child in children]
        else:
            odds = [child.claim / max(doubts[child.surest], _DOUBT) for child in children]
            whole = 1.0 + sum(odds)
            chances = [max(odd / whole, _LEAST) for odd in odds]
        for child, chance in zip(children, chances, strict=True):
            if chance != child.chance:
                self._shift(child.id, log(chance / child.chance))
                child.chance = chance

    def _shift(self, top: int, nats: float) -> None:
        """A node, and with it all below, is likelier by so much."""
        waiting = [top]
        while waiting:
            node = self._nodes[waiting.pop()]
            node.surprisal -= nats
            waiting.extend(node.children.values())

    def _drop(self, top: int) -> None:
        waiting = [top]
        while waiting:
            waiting.extend(self._nodes.pop(waiting.pop()).children.values())
