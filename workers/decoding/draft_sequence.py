"""One sequence at the drafter: its tokens, its tree, how it grows, what it tells the verifier."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from hetero.workers.decoding.kv_cursor import KvCursor
from hetero.workers.decoding.policy.calibration import RANKS, Calibration
from hetero.workers.decoding.policy.expansion import BranchExpansion, ExpansionPolicy
from hetero.workers.decoding.target_sequence import sampler_of
from hetero.workers.wire.messages import MAX_NODES, Draft, Hint, Open


class DraftSequence:
    """One sequence at the drafter. ``track`` is None until its prefix is evaluated."""

    def __init__(self, opening: Open, peer: bytes) -> None:
        self.opening = opening
        self.peer = peer
        self.tokens = [*opening.prompt, *opening.committed]
        self.limit = len(opening.prompt) + opening.max_tokens
        self.sampler = sampler_of(opening)
        for token in opening.committed:
            self.sampler.processor.commit(token)
        self.restart()
        self.failures = 0
        self.told_at: float | None = None  # when the last commit came
        self.due_at = -inf  # when the next one should come

    def restart(self) -> None:
        """Begin again from the tokens; the engine's state is freed by the caller."""
        self.prefilled = 0
        self.prefix = 0  # key of the cached prefix it began with
        self.cursor: KvCursor | None = None
        self.expansion: ExpansionPolicy | None = None

    def begin(self, cursor: KvCursor, expansion: ExpansionPolicy) -> None:
        """The prefix is evaluated: draft tokens may grow below it."""
        self.cursor, self.expansion = cursor, expansion

    def learn(self, base: int, tokens: list[int]) -> bool:
        """Take committed tokens from ``base`` on; False when they do not fit what is known."""
        if base > len(self.tokens):
            return False
        known = self.tokens[base : base + len(tokens)]
        if known != tokens[: len(known)]:
            return False
        for token in tokens[len(known) :]:
            self.tokens.append(token)
            self.sampler.processor.commit(token)
            if self.cursor is not None and self.expansion is not None:
                self.expansion.committing(token)
                self.cursor.commit(token)
        if self.expansion is not None:
            self.expansion.committed()
        return True

    def hinted(self, hint: Hint, calibration: Calibration, vocabulary: int) -> None:
        """Root branches at what the target's early exit expects."""
        if self.cursor is None or not isinstance(self.expansion, BranchExpansion):
            return
        tree = self.cursor.tree
        places: list[int | None] = []
        for at, (parent, token, likely) in enumerate(zip(hint.parents, hint.tokens, hint.likely, strict=True)):
            place = tree.root if parent < 0 else None
            if 0 <= parent < at and (above := places[parent]) is not None:
                place = tree[above].children.get(token)
            places.append(place)
            tokens = [token for token in likely if token < vocabulary][:RANKS]
            if place is not None and tokens:
                self.expansion.hint(place, tokens, calibration)

    def draft(self, new: list[int], step: float) -> Draft:
        """The subtree of new nodes and of all nodes on the way to them; a draft step takes ``step`` seconds."""
        assert self.cursor is not None
        tree = self.cursor.tree
        wanted: set[int] = set()
        for node in new:
            while node != tree.root and node not in wanted:
                wanted.add(node)
                node = tree[node].parent
        nodes = sorted(wanted)[:MAX_NODES]  # parents come first
        index = {node: at for at, node in enumerate(nodes)}
        return Draft(
            seq=self.opening.seq,
            epoch=self.opening.epoch,
            base=tree.position + 1,
            parents=[index.get(tree[node].parent, -1) for node in nodes],
            tokens=[tree[node].token for node in nodes],
            chances=[tree[node].chance for node in nodes],
            seconds=min(step, 3600.0),
        )


@dataclass(frozen=True, slots=True)
class LeavesInFlight:
    """One sequence's part of the forward in flight: its leaves, and all its nodes -> row of the outcome."""

    sequence: DraftSequence
    cursor: KvCursor
    leaves: list[int]
    rows: dict[int, int]
