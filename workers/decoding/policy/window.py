"""Windows: which rows the target checks next, and when to stop waiting for more draft."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from typing import TypeAlias

from hetero.placement.cost import Outlook, rows_worth
from hetero.workers.decoding.peers import DrafterPeer, Drafters
from hetero.workers.decoding.policy import tuning
from hetero.workers.decoding.policy.speeds import Speeds
from hetero.workers.decoding.policy.strategy import GrowthRule, StartRule, Strategy
from hetero.workers.decoding.target_sequence import DrafterView, TargetSequence
from hetero.workers.decoding.tree import DraftNode, DraftTree
from hetero.workers.engines.base import EngineLimits, Row


@dataclass(frozen=True, slots=True)
class Window:
    """A sequence's part of the forward in flight: node -> row of the outcome, and how many are draft tokens.

    ``root``: whether the newest committed token is among the rows; ``waited``: seconds it was held back; ``sources``:
    how many of the draft tokens each proposed; ``found``: how many would be there without model drafters.
    """

    sequence: TargetSequence
    rows: dict[int, int]
    drafted: int
    root: bool
    waited: float = 0.0
    sources: Mapping[int, int] = field(default_factory=dict)
    found: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """The window should start now."""


@dataclass(frozen=True, slots=True)
class Hold:
    """More draft is worth waiting for, ``until`` that time at most."""

    until: float


Hopes: TypeAlias = list[tuple[int, DrafterView]]  # drafters that may still bring something, by index


class WindowPolicy:
    """The verifier's policy."""

    def __init__(
        self, strategy: Strategy, limits: EngineLimits, ends: frozenset[int], speeds: Speeds, drafters: Drafters
    ) -> None:
        self._strategy = strategy
        self._rows = min(strategy.rows, limits.rows)
        self._limits = limits
        self._ends = ends
        self._speeds = speeds
        self._drafters = drafters
        self._tree = strategy.growth is GrowthRule.TREE and not limits.exact

    def decide(self, sequence: TargetSequence, now: float) -> Start | Hold:
        """Whether a sequence's window should start."""
        hopes = [(index, view) for index, view in sequence.drafters.items() if not view.vain]
        if not hopes or sequence.switch.resting or self._enough(sequence, hopes, now):
            return Start()
        since = sequence.waiting_since if sequence.waiting_since is not None else now
        until = -inf
        for index, view in hopes:
            end = max(since, view.drafted_at) + self._drafters[index].speeds.patience
            view.vain = now >= end
            until = max(until, end)
        return Hold(until) if now < until else Start()

    def windows(self, sequences: Sequence[TargetSequence], now: float) -> tuple[list[Window], list[Row]]:
        """The windows of sequences that share a forward, and its rows, as many as the engine takes. The committed
        tokens of all come first; the draft tokens beside them are those worth most, whosever they are."""
        due = sum(len(sequence.cursor.pending) for sequence in sequences)
        room = max(0, self._limits.rows - due)
        probing = len(self._drafters) > 0
        offers = [[] if probing and one.switch.probing else self._drafts(one, room) for one in sequences]
        windows: list[Window] = []
        rows: list[Row] = []
        for sequence, drafts in zip(sequences, self._shared(sequences, offers, due, room), strict=True):
            window, own = self._window(sequence, drafts, len(rows), now)
            windows.append(window)
            rows += own
        return windows, rows

    def _shared(
        self, sequences: Sequence[TargetSequence], offers: list[list[DraftNode]], due: int, room: int
    ) -> list[list[DraftNode]]:
        """Of each sequence's draft tokens, likeliest first, those to check beside ``due`` rows that must be."""
        if self._strategy.adapts:
            reaches = [
                (sequence.cursor.tree.reach(node.id), n)
                for n, (sequence, drafts) in enumerate(zip(sequences, offers, strict=True))
                for node in drafts
            ]
            reaches.sort(key=lambda entry: -entry[0])  # stable: a sequence's own stay in their order
            del reaches[room:]
            count = rows_worth([reach for reach, _ in reaches], self._speeds.forward, self._speeds.rate(), due)
            taken = Counter(n for _, n in reaches[:count])
            return [drafts[: taken[n]] for n, drafts in enumerate(offers)]
        found = []
        for sequence, drafts in zip(sequences, offers, strict=True):
            worth = min(room, len(drafts))
            if any(node.source < 0 for node in drafts[:worth]):
                own = [sequence.cursor.tree.reach(node.id) for node in drafts[:worth]]
                worth = rows_worth(own, self._speeds.forward, self._speeds.rate(), due)
            found.append(drafts[:worth])
            due, room = due + worth, room - worth
        return found

    def _window(
        self, sequence: TargetSequence, drafts: Sequence[DraftNode], first: int, now: float
    ) -> tuple[Window, list[Row]]:
        """The window of a sequence: its rows are rows ``first``.. of the forward."""
        cursor = sequence.cursor
        rows = cursor.rows([node.id for node in drafts], self._limits.rows - first)
        index = {row.node: first + at for at, row in enumerate(rows)}
        waited = now - sequence.waiting_since if sequence.waiting_since is not None else 0.0
        sequence.waiting_since = None
        tree = cursor.tree
        root = tree.root in index
        drafted = [tree[node] for node in index if root and node in tree and node != tree.root]
        sources, found = Counter(node.source for node in drafted), sum(node.found for node in drafted)
        return Window(sequence, index, len(drafts) if root else 0, root, waited, sources, found), rows

    def _enough(self, sequence: TargetSequence, hopes: Hopes, now: float) -> bool:
        """Whether there is enough to check already, or the drafters hoped for bring too little."""
        if len(sequence.cursor.pending) >= self._limits.rows:  # a replay
            return True
        match self._strategy.start:
            case StartRule.AT_ONCE:
                return True
            case StartRule.WITH_GAMMA:
                tree = sequence.cursor.tree
                most = min(self._strategy.gamma, sequence.output.remaining - 1, self._limits.rows - 1)
                if sum(1 for _ in islice(tree.chain(drafted=True), most)) >= most:
                    return True
                # As good as what a drafter would bring is good enough, whoever proposed it.
                others = list(islice(tree.chain(), most))
                return len(others) == most and tree.reach(others[-1].id) >= self._speeds.alpha**most
            case StartRule.GOODPUT:
                return not self._pays(sequence, hopes, now)

    def _drafts(self, sequence: TargetSequence, room: int) -> list[DraftNode]:
        """The draft tokens that could be checked now, likeliest first: those of drafters as many as the strategy has
        it, others as long as they are worth it."""
        most = max(0, min(self._limits.rows - 1, sequence.output.remaining - 1, room))
        bound = 0 if sequence.switch.resting else min(most, self._rows - 1)
        if self._strategy.start is StartRule.WITH_GAMMA:
            bound = min(bound, self._strategy.gamma)
        elif self._strategy.growth is GrowthRule.CHAIN and sequence.drafters:
            # PEARL: as many as are drafted while a window is checked.
            step = min(peer.speeds.step for peer in self._of(sequence))
            bound = min(bound, max(1, round(self._speeds.forward(1 + self._strategy.gamma) / step)))
        if not sequence.proposers:
            return self._likeliest(sequence.cursor.tree, bound)
        found, held = [], {sequence.cursor.tree.root}
        for node in self._likeliest(sequence.cursor.tree, min(most, bound + tuning.LOOKED_UP)):
            if node.parent in held and (node.source < 0 or bound > 0):
                bound -= node.source >= 0
                held.add(node.id)
                found.append(node)
        return found

    def _likeliest(self, tree: DraftTree, most: int) -> list[DraftNode]:
        return tree.best(most) if self._tree else list(islice(tree.chain(), most))

    def _of(self, sequence: TargetSequence) -> Sequence[DrafterPeer]:
        return [self._drafters[index] for index in sequence.drafters]

    def _pays(self, sequence: TargetSequence, hopes: Hopes, now: float) -> bool:
        """Whether more draft is worth the wait: the goodput rule, on what was measured."""
        speeds, tree = self._speeds, sequence.cursor.tree
        rate = speeds.rate()
        most = min(self._rows - 1, sequence.output.remaining - 1)
        drafts = self._likeliest(tree, most)
        # The likeliest node without children is what the drafter expands next.
        open_ = next((n for n in (tree[tree.root], *drafts) if self._grows(tree, n)), None)
        if open_ is None or rate <= 0.0:
            return rate <= 0.0 and not drafts and most > 0
        pending = len(sequence.cursor.pending)
        full = [speeds.alpha**n for n in range(1, most + 1)]
        room = rows_worth(full, speeds.forward, rate, pending)
        due, step = self._next_draft(hopes)
        outlook = Outlook(
            reaches=[tree.reach(node.id) for node in drafts[:room]],
            leaf=tree.reach(open_.id),
            alpha=speeds.alpha,
            beta=speeds.beta if self._tree else speeds.alpha,
            ranks=tuning.RANKS,
            first=max(due - now, 0.0),
            step=step,
            row=(speeds.forward(pending + room) - speeds.forward(pending)) / max(room, 1),
            room=room,
        )
        return outlook.pays(tuning.IMPATIENCE * rate)

    def _grows(self, tree: DraftTree, node: DraftNode) -> bool:
        """Whether a drafter may still expand a node."""
        own = node.drafted or node.id == tree.root
        return own and node.token not in self._ends and tree.likeliest(node.id, drafted=True) is None

    def _next_draft(self, hopes: Hopes) -> tuple[float, float]:
        """When the first of some drafters should bring more, and the seconds of that drafter's step."""
        soonest = inf, 0.0
        for index, view in hopes:
            speeds = self._drafters[index].speeds
            fresh = view.drafted_at >= view.told_at
            due = view.drafted_at + speeds.step if fresh else view.told_at + speeds.answer
            soonest = min(soonest, (due, speeds.step))
        return soonest
