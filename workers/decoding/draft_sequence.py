"""One sequence at the drafter: its tokens, its tree, how it grows, what it tells its verifier."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from hetero.workers.decoding.feature_run import FeatureRun
from hetero.workers.decoding.kv_cursor import KvCursor
from hetero.workers.decoding.policy.calibration import Calibration
from hetero.workers.decoding.policy.expansion import BranchExpansion, ExpansionPolicy
from hetero.workers.decoding.policy.tuning import RANKS
from hetero.workers.decoding.protocol import Inform
from hetero.workers.decoding.target_sequence import PrefixProgress, sampler_of
from hetero.workers.wire.messages import MAX_NODES, Draft, Features, Hint, Open


class DraftSequence:
    """One sequence of one verifier. ``id`` names it in the engine; ``growth`` is None until its prefix is evaluated.
    Where the drafter's context is the smaller one, it leaves out the first ``skipped`` tokens; so does a head, which
    drafts from the target's ``features`` of the token before, those without."""

    def __init__(self, id: int, verifier: bytes, opening: Open, context: int, drafts_from: int = 0) -> None:
        """``verifier``: the socket it came from; ``context``: tokens the engine holds of a sequence; ``drafts_from``:
        how many features it drafts from (0: none)."""
        self.id = id
        self.verifier = verifier
        self.opening = opening
        self.tokens = [*opening.prompt, *opening.committed]
        self.limit = len(opening.prompt) + opening.max_tokens
        self.sampler = sampler_of(opening)
        for token in opening.committed:
            self.sampler.processor.commit(token)
        self.prefix = PrefixProgress(self.tokens)  # what is committed meanwhile belongs to it
        self.growth: Growth | None = None
        self.skipped = 0
        self.features = FeatureRun(drafts_from) if drafts_from else None
        self._informed = False  # whether the engine has been told those of its first tokens
        self._context = context
        if self.full:
            self.slide()
        self.failures = 0
        self.told_at: float | None = None  # when the last commit came
        self.due_at = -inf  # when the next one should come

    @property
    def sampled(self) -> bool:
        """Whether its tokens are drawn, not the likeliest ones."""
        return self.opening.sampling.temperature > 0

    @property
    def full(self) -> bool:
        """Whether its tokens fill the engine's context."""
        return len(self.tokens) - self.skipped >= self._context

    @property
    def ready(self) -> bool:
        """Whether its prefix can be evaluated: a head's where the features of all but the newest token have come."""
        run = self.features
        return run is None or run.first + 1 < len(self.tokens) <= run.end + 1

    def inform(self) -> Inform | None:
        """What a head must know before it begins; it leaves out what it has no features for."""
        run = self.features
        if run is None or self._informed:
            return None
        self._informed = True
        self.skipped = self.prefix.evaluated = max(self.skipped, run.first + 1)
        run.forget(self.skipped - 1)
        return Inform(self.id, 0, run.since(self.skipped - 1))

    def hear(self, message: Features) -> Inform | None:
        """Features came; what a head that has begun must know."""
        run = self.features
        if run is None or (new := run.add(message)) is None:
            return None
        run.forget(len(self.tokens) - self._context)  # it never begins again further back
        place = run.end - len(new) + 1 - self.skipped
        return Inform(self.id, place, new) if self._informed and place >= 0 else None

    def slide(self) -> None:
        """Begin again from the latest tokens, half a context of them; the engine's state is freed by the caller."""
        self.skipped = len(self.tokens) - max(1, self._context // 2)
        self.restart()

    def restart(self) -> None:
        """Begin again from the tokens; the engine's state is freed by the caller."""
        self.prefix.restart()
        self.prefix.evaluated = self.skipped
        self._informed = False
        self.growth = None

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
            if self.growth is not None:
                self.growth.expansion.committing(token)
                self.growth.cursor.commit(token)
        if self.growth is not None:
            self.growth.expansion.committed()
        return True

    def draft(self, new: list[int], step: float) -> Draft:
        """The subtree of new nodes and of all nodes on the way to them; a draft step takes ``step`` seconds."""
        assert self.growth is not None
        tree = self.growth.cursor.tree
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
class Growth:
    """How a sequence grows once its prefix is evaluated: its tree with the engine's place in it, and what to expand."""

    cursor: KvCursor
    expansion: ExpansionPolicy

    def take_hint(self, hint: Hint, calibration: Calibration, vocabulary: int) -> None:
        """Root branches at what the target's early exit expects."""
        if not isinstance(self.expansion, BranchExpansion):
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


@dataclass(frozen=True, slots=True)
class LeavesInFlight:
    """One sequence's part of the forward in flight: its leaves, and all its nodes -> row of the outcome."""

    sequence: DraftSequence
    growth: Growth
    leaves: list[int]
    rows: dict[int, int]
