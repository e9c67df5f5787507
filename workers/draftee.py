"""One sequence at the drafter: its tokens, its tree, how it grows, what it tells the verifier."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from placement.calibration import RANKS, Calibration
from workers.growth import BranchGrower, Grower
from workers.sequence import sampler_of
from workers.track import Track
from workers.wire.messages import MAX_NODES, Draft, Hint, Open


class Draftee:
    """One sequence at the drafter. ``track`` is None until its prefix is evaluated."""

    def __init__(self, opening: Open, peer: bytes) -> None:
        self.opening = opening
        self.peer = peer
        self.tokens = [*opening.prompt, *opening.committed]
        self.limit = len(opening.prompt) + opening.max_tokens
        self.sampler = sampler_of(opening)
        for token in opening.committed:
            self.sampler.shaping.commit(token)
        self.restart()
        self.failures = 0
        self.told_at: float | None = None  # when the last commit came
        self.due_at = -inf  # when the next one should come

    def restart(self) -> None:
        """Begin again from the tokens; the engine's state is freed by the caller."""
        self.prefilled = 0
        self.prefix = 0  # key of the cached prefix it began with
        self.track: Track | None = None
        self.grower: Grower | None = None

    def begin(self, track: Track, grower: Grower) -> None:
        """The prefix is evaluated: guesses may grow below it."""
        self.track, self.grower = track, grower

    def learn(self, base: int, tokens: list[int]) -> bool:
        """Take committed tokens from ``base`` on; False when they do not fit what is known."""
        if base > len(self.tokens):
            return False
        known = self.tokens[base : base + len(tokens)]
        if known != tokens[: len(known)]:
            return False
        for token in tokens[len(known) :]:
            self.tokens.append(token)
            self.sampler.shaping.commit(token)
            if self.track is not None and self.grower is not None:
                self.grower.committing(token)
                self.track.commit(token)
        if self.grower is not None:
            self.grower.committed()
        return True

    def hinted(self, hint: Hint, calibration: Calibration, vocabulary: int) -> None:
        """Root branches at what the target's early exit expects."""
        if self.track is None or not isinstance(self.grower, BranchGrower):
            return
        tree = self.track.tree
        places: list[int | None] = []
        for at, (parent, token, likely) in enumerate(zip(hint.parents, hint.tokens, hint.likely, strict=True)):
            place = tree.root if parent < 0 else None
            if 0 <= parent < at and (above := places[parent]) is not None:
                place = tree[above].children.get(token)
            places.append(place)
            tokens = [token for token in likely if token < vocabulary][:RANKS]
            if place is not None and tokens:
                self.grower.hint(place, tokens, calibration)

    def draft(self, new: list[int], step: float) -> Draft:
        """The subtree of new nodes and of all nodes on the way to them; a draft step takes ``step`` seconds."""
        assert self.track is not None
        tree = self.track.tree
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
class Expansion:
    """One sequence's part of the forward in flight: its leaves, and all its nodes -> row of the outcome."""

    draftee: Draftee
    track: Track
    leaves: list[int]
    rows: dict[int, int]
