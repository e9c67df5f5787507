"""One sequence as its engine sees it: the draft tree, and how far the engine's cache has come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hetero.workers.decoding.protocol import Keep
from hetero.workers.decoding.tree import DraftTree
from hetero.workers.engines.base import Row


class KvCursor:
    """A tree and the engine's place in it.

    ``pending`` are committed nodes beyond the engine's tip, oldest first: some may be evaluated already (they
    only need a commit), the others are the first rows of the next forward. Where guesses do not last
    (``EngineLimits.lasting``), only what was evaluated as a committed token counts for the former, and a commit costs
    all draft tokens their KV.
    """

    def __init__(self, seq: int, position: int, token: int, lasting: bool = True) -> None:
        """At the end of a prefix of ``position`` + 1 tokens that ends with ``token``."""
        self.seq = seq
        self.tree = DraftTree(position, token)
        self.pending: list[int] = []
        self._tokens: dict[int, int] = {}  # of pending nodes: a re-rooted tree forgets them
        self._tip = 0
        self._evaluated: set[int] = set()
        self._lasting = lasting
        self._sent: set[int] = set()  # pending nodes that were rows of a forward, where guesses do not last
        self._moved = False  # whether the tree was re-rooted since the last ``keep``

    def commit(self, token: int) -> int:
        """The target decided ``token``; returns its node."""
        node = self.tree.advance(token)
        self._moved = True
        self.pending.append(node)
        self._tokens[node] = token
        return node

    def evaluated(self, nodes: Iterable[int]) -> None:
        """The engine has these nodes now."""
        self._evaluated.update(nodes)

    def has(self, node: int) -> bool:
        """Whether the engine has evaluated a node of the tree."""
        return node in self._evaluated or node == self._tip

    def keep(self, *, drafts: bool) -> Keep | None:
        """The engine commit due before the next forward, if any; without ``drafts`` all of them lose their KV."""
        due = bool(self.pending) and self._good(self.pending[0])
        if drafts and not self._moved and not due:
            return None
        drafts = drafts and (self._lasting or not self._moved)
        self._moved = False
        tip = self._tip
        while self.pending and self._good(self.pending[0]):
            self._tip = self.pending.pop(0)
            self._evaluated.remove(self._tip)
            self._sent.discard(self._tip)
            del self._tokens[self._tip]
        alive = frozenset(node for node in self._evaluated if drafts and node in self.tree)
        if self._tip == tip and len(alive) == len(self._evaluated):
            return None
        self._evaluated = set(alive)
        return Keep(self.seq, self._tip, alive)

    def _good(self, node: int) -> bool:
        """Whether a pending node's KV is good for what comes after it."""
        return node in self._evaluated and (self._lasting or node in self._sent)

    def settle(self) -> tuple[Keep, int]:
        """The commit that leaves the engine with committed tokens only, and how many of prompt and output those are."""
        self.keep(drafts=False)
        return Keep(self.seq, self._tip), self.tree.position + 1 - len(self.pending)

    def held(self) -> int:
        """Draft tokens the engine holds."""
        return len(self._evaluated)

    def unevaluated(self, node: int) -> list[int]:
        """Draft tokens on the way to a node, it included, that the engine lacks; top down."""
        found = []
        while node != self.tree.root and not self.has(node):
            found.append(node)
            node = self.tree[node].parent
        return found[::-1]

    def ends(self) -> set[int]:
        """Leaves among the nodes the engine holds: where a branch may go on."""
        inner = {self.tree[node].parent for node in self._evaluated if node in self.tree and node != self.tree.root}
        return self._evaluated - inner or {self.tree.root}

    def rows(self, drafts: Sequence[int], limit: int) -> list[Row]:
        """Rows for the pending nodes (after ``keep``) and then ``drafts``, parents first; at most ``limit``."""
        rows = []
        parent = self._tip
        for node in self.pending:
            rows.append(Row(self.seq, node, parent, self._tokens[node], committed=True))
            parent = node
        if not self._lasting:
            self._sent.update(self.pending)
        for draft in drafts:
            node_ = self.tree[draft]
            rows.append(Row(self.seq, draft, node_.parent, node_.token))
        return rows[:limit]
