"""The one interface of all engines, for target and drafter alike.

The owner of a sequence's tree chooses node ids: never reused, a child's above its parent's; node 0 is the end of
the prefilled prefix. A row's parent is node 0, an evaluated node, or an earlier row of the same call.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeAlias

from hetero.workers.errors import EngineError, KvFull, UnknownNode, Unsupported
from hetero.workers.sampling.logits_processors import Logits
from hetero.workers.sampling.sampler import Candidates, Sampled, Sampler


@dataclass(frozen=True, slots=True)
class Row:
    """One token to evaluate: ``node`` of sequence ``seq`` below ``parent``."""

    seq: int
    node: int
    parent: int
    token: int


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine can hold, known before any call.

    ``context``: tokens a sequence may reach; ``rows``: rows of one ``extend``; ``chunk``: tokens of one
    ``prefill``; ``sequences``: open at once; ``exact``: whether it runs in exact mode (chains of one sequence
    a forward); ``draft_nodes``: evaluated nodes a sequence may hold below its committed ones; ``branches``: how many of
    them may be leaves, over all sequences; ``early_exit``: whether ``extend`` serves a ``Hint``.
    """

    vocabulary: int
    context: int
    rows: int
    chunk: int
    sequences: int
    exact: bool = False
    draft_nodes: int = 64
    branches: int = 1 << 20
    early_exit: bool = False


class Outcome(Protocol):
    """The results of one forward. Rows are sampled lazily, and only until the engine's next call."""

    @abstractmethod
    def logits(self, row: int) -> Logits:
        """Logits of a row (index in the call; a prefill has the single row 0), shape [vocabulary], float32."""

    def sample(self, row: int, sampler: Sampler, position: int) -> Sampled:
        """The sample at ``position``, the one after the row's token. Raises NotFinite."""
        return sampler.sample(self.logits(row), position)

    def candidates(self, row: int, sampler: Sampler, position: int, count: int) -> Candidates:
        """The ``count`` likeliest samples at ``position``: what a drafter proposes. Raises NotFinite."""
        return sampler.candidates(self.logits(row), position, count)


# Receives the early exit of a forward in flight, on the engine's thread; valid until the engine's next call.
Hinted: TypeAlias = Callable[[Outcome], None]


class Engine(Protocol):
    """A loaded model. Calls come from one thread at a time, except ``abort``."""

    limits: EngineLimits

    def prefill(self, seq: int, tokens: Sequence[int]) -> Outcome:
        """Append a chunk to a sequence's prefix, opening it if need be; logits of the last token only.

        Raises EngineError (KvFull, TooManyLeaves, Aborted, ...); the sequence is then as before the call.
        """

    def extend(self, rows: Sequence[Row], hinted: Hinted | None = None) -> Outcome:
        """Evaluate rows of one or several sequences. All or nothing: a failure leaves the state before it.

        Where ``limits.early_exit`` holds, ``hinted`` gets what the LM head makes of a middle layer, before the
        forward ends (Mirror-SD); elsewhere it is not called.
        """

    def commit(self, seq: int, node: int, keep: Collection[int] = ()) -> None:
        """Keep the path to ``node`` and, below it, the nodes ``keep``; drop the rest."""

    def close(self, seq: int) -> None:
        """Free a sequence; closing an unknown one does nothing."""

    def save(self, seq: int, key: int, length: int) -> None:
        """Copy the first ``length`` tokens of a sequence aside, under ``key``; it may only be closed after."""

    def load(self, seq: int, key: int, length: int) -> None:
        """Open a sequence with the first ``length`` tokens saved under ``key``, as if they had been prefilled.

        Raises UnknownNode for a key that was not saved, KvFull, TooManyLeaves.
        """

    def drop(self, key: int) -> None:
        """Forget what was saved under ``key``; an unknown one does nothing."""

    def abort(self) -> None:
        """Make the forward in flight, if any, fail with Aborted. Callable from any thread."""

    def shutdown(self) -> None:
        """Free the model."""

    @property
    def used_cells(self) -> int:
        """KV cells held, for health and tests of leaks; only to be asked while no forward runs."""


class Ledger:
    """What an engine holds of one sequence: the committed prefix up to ``tip``, and the nodes below it."""

    __slots__ = ("length", "nodes", "tip")

    def __init__(self) -> None:
        self.length = 0  # tokens up to and with the tip
        self.tip = 0  # the committed node; 0 is the end of the prefilled prefix
        self.nodes: dict[int, tuple[int, int]] = {}  # node -> (parent, position), parents first

    def __contains__(self, node: int) -> bool:
        return node in self.nodes or (node == self.tip and self.length > 0)

    def position(self, node: int) -> int:
        """Position of the tip or of a node below it."""
        return self.length - 1 if node == self.tip else self.nodes[node][1]

    def path(self, node: int) -> list[int]:
        """Nodes below the tip on the way to ``node``, top down."""
        path = []
        while node != self.tip:
            path.append(node)
            node = self.nodes[node][0]
        return path[::-1]

    def check_prefill(self, tokens: Sequence[int], limits: EngineLimits) -> None:
        """Raises EngineError when a chunk cannot be appended to the prefix."""
        if self.tip or self.nodes:
            raise EngineError("prefill after extend: the prefix is complete once nodes hang on it")
        if not 0 < len(tokens) <= limits.chunk:
            raise EngineError(f"a prefill chunk has 1 to {limits.chunk} tokens, not {len(tokens)}")
        if self.length + len(tokens) > limits.context:
            raise KvFull(f"{self.length + len(tokens)} tokens exceed the context of {limits.context}")
        check_tokens(tokens, limits)

    def opened(self, length: int) -> Ledger:
        """This ledger, new, with a prefix of ``length`` tokens."""
        self.length = length
        return self

    def append(self, rows: Sequence[Row], limits: EngineLimits) -> list[int]:
        """Enter rows of this sequence in order; returns their positions. Raises before anything changed."""
        new: dict[int, tuple[int, int]] = {}
        for row in rows:
            if row.parent not in self and row.parent not in new:
                raise UnknownNode(f"sequence {row.seq}: node {row.node} hangs on unknown node {row.parent}")
            if row.node <= row.parent or row.node in self.nodes or row.node in new:
                raise UnknownNode(f"sequence {row.seq}: node id {row.node} is not new")
            above = new[row.parent][1] if row.parent in new else self.position(row.parent)
            if above + 1 >= limits.context:
                raise KvFull(f"position {above + 1} exceeds the context of {limits.context}")
            new[row.node] = (row.parent, above + 1)
        self.nodes.update(new)
        return [position for _, position in new.values()]

    def undo(self, rows: Sequence[Row]) -> None:
        """Take back ``append`` after a failed forward."""
        for row in rows:
            del self.nodes[row.node]

    def commit(self, node: int, keep: Collection[int]) -> tuple[list[int], list[int]]:
        """Move the tip down to ``node``; returns (the path committed, the nodes dropped)."""
        if node not in self:
            raise UnknownNode(f"commit of node {node}, which is not at or below the committed node {self.tip}")
        path = self.path(node)
        kept: dict[int, tuple[int, int]] = {}
        for other, entry in self.nodes.items():
            if other in keep and (entry[0] == node or entry[0] in kept):
                kept[other] = entry
        if len(kept) != len(keep):
            raise UnknownNode(f"commit of node {node}: not all of {sorted(keep)} hang below it")
        dropped = [other for other in self.nodes if other not in kept and other not in path]
        self.length = self.position(node) + 1
        self.nodes = kept
        self.tip = node
        return path, dropped


def check_rows(rows: Sequence[Row], limits: EngineLimits) -> None:
    """Bounds of one ``extend`` call. Raises EngineError before native code sees a number."""
    if not 0 < len(rows) <= limits.rows:
        raise EngineError(f"a forward has 1 to {limits.rows} rows, not {len(rows)}")
    for row in rows:
        if not 0 <= row.token < limits.vocabulary:
            raise EngineError(f"token {row.token} is outside the vocabulary of {limits.vocabulary}")
    if limits.exact:
        if len({row.seq for row in rows}) != 1:
            raise Unsupported("exact mode runs one sequence a forward")
        if any(below.parent != above.node for above, below in pairwise(rows)):
            raise Unsupported("exact mode checks chains, not trees")


def check_tokens(tokens: Sequence[int], limits: EngineLimits) -> None:
    """Bounds of prompt tokens. Raises EngineError."""
    for token in tokens:
        if not 0 <= token < limits.vocabulary:
            raise EngineError(f"token {token} is outside the vocabulary of {limits.vocabulary}")
