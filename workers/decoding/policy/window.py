"""WindowPolicy: which rows the target checks next, and when to stop waiting for more draft."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from math import inf

from hetero.placement.cost import rows_worth, waiting_pays
from hetero.workers.decoding.policy.calibration import RANKS
from hetero.workers.decoding.policy.speeds import Speeds
from hetero.workers.decoding.policy.strategy import Growth, Start, Strategy
from hetero.workers.decoding.target_sequence import TargetSequence
from hetero.workers.decoding.trace import Trace
from hetero.workers.decoding.tree import DraftNode, DraftTree
from hetero.workers.engines.base import EngineLimits, Outcome, Row
from hetero.workers.wire.messages import Hint

# A second of waiting counts as so many: while a window is checked the drafter prepares the next one, while the
# verifier waits it does not. In simulated pairs 1 to 1.6 are equally fast; the larger keeps the verifier busier.
_IMPATIENCE = 1.6
_KAPPA = 4  # likeliest next tokens of an early exit that a hint carries, per row (Mirror-SD's top-kappa)


@dataclass(frozen=True, slots=True)
class Window:
    """A sequence's part of the forward in flight: node -> row of the outcome, and how many are draft tokens.

    ``root``: whether the newest committed token is among the rows; ``waited``: seconds it was held back.
    """

    sequence: TargetSequence
    rows: dict[int, int]
    drafted: int
    root: bool
    waited: float = 0.0


def hint_of(window: Window, early: Outcome, epoch: int) -> Hint:
    """What the target's early exit expects below each row of a window: its likeliest samples. Raises EngineError."""
    sequence = window.sequence
    tree = sequence.cursor.tree
    nodes = [node for node in window.rows if node in tree]
    index = {node: at for at, node in enumerate(nodes)}
    likely = []
    for node in nodes:
        sampler = sequence.sampler.below(tree.tokens(node))
        likely.append(early.candidates(window.rows[node], sampler, tree[node].position + 1, _KAPPA).tokens)
    parents = [index.get(tree[node].parent, -1) for node in nodes]
    return Hint(sequence.seq, epoch, sequence.length, parents, [tree[node].token for node in nodes], likely)


def report(trace: Trace, window: Window, accepted: int, elapsed: float, now: float) -> None:
    """Trace a window that took ``elapsed`` until ``now``, the wait before it and its commit."""
    seq, began = window.sequence.seq, now - elapsed
    if window.waited > 0:
        trace.span("wait", "wait", began - window.waited, began, seq=seq)
    facts = {"seq": seq, "rows": len(window.rows), "drafted": window.drafted, "accepted": accepted}
    trace.span("verifier", f"window of {window.drafted}, {accepted} accepted", began, now, **facts)
    trace.mark("verifier", "commit", now, seq=seq, length=window.sequence.length)


class WindowPolicy:
    """The verifier's policy."""

    def __init__(self, strategy: Strategy, limits: EngineLimits, ends: frozenset[int], speeds: Speeds) -> None:
        self._strategy = strategy
        self._rows = min(strategy.rows, limits.rows)
        self._limits = limits
        self._ends = ends
        self._speeds = speeds
        self._tree = strategy.growth is Growth.TREE and not limits.exact

    def waits(self, sequence: TargetSequence, now: float) -> float:
        """Until when to hold a sequence back at most; -inf: it should start now."""
        if sequence.drafter_length is None or sequence.stalled or sequence.switch.resting:
            return -inf
        if len(sequence.cursor.pending) >= self._limits.rows:  # a replay: there is enough to do
            return -inf
        match self._strategy.start:
            case Start.AT_ONCE:
                return -inf
            case Start.WITH_GAMMA:
                most = min(self._strategy.gamma, sequence.remaining - 1, self._limits.rows - 1)
                if sum(1 for _ in islice(sequence.cursor.tree.chain(), most)) >= most:
                    return -inf
            case Start.GOODPUT:
                if not self._pays(sequence, now):
                    return -inf
        since = sequence.waiting_since if sequence.waiting_since is not None else now
        return max(since, sequence.drafted_at) + self._speeds.patience

    def window(self, sequence: TargetSequence, room: int, first: int, now: float) -> tuple[Window, list[Row]]:
        """The window of a sequence: its rows, at most ``room``, are rows ``first``.. of the forward."""
        cursor = sequence.cursor
        due = len(cursor.pending)
        drafts = [] if sequence.switch.resting else self._drafts(sequence, room - due)
        if self._strategy.adapts:
            rate = self._speeds.rate()
            reaches = [cursor.tree.reach(node.id) for node in drafts]
            drafts = drafts[: rows_worth(reaches, self._speeds.forward, rate, first + due)]
        rows = cursor.rows([node.id for node in drafts], room)
        index = {row.node: first + at for at, row in enumerate(rows)}
        waited = now - sequence.waiting_since if sequence.waiting_since is not None else 0.0
        sequence.waiting_since = None
        root = cursor.tree.root in index
        return Window(sequence, index, len(drafts) if root else 0, root, waited), rows

    def _drafts(self, sequence: TargetSequence, room: int) -> list[DraftNode]:
        """The draft tokens that could be checked now, likeliest first."""
        most = max(0, min(self._rows - 1, sequence.remaining - 1, room))
        if self._strategy.start is Start.WITH_GAMMA:
            most = min(most, self._strategy.gamma)
        elif self._strategy.growth is Growth.CHAIN:  # PEARL: as many as are drafted while a window is checked
            most = min(most, max(1, round(self._speeds.forward(1 + self._strategy.gamma) / self._speeds.step)))
        return self._likeliest(sequence.cursor.tree, most)

    def _likeliest(self, tree: DraftTree, most: int) -> list[DraftNode]:
        return tree.best(most) if self._tree else list(islice(tree.chain(), most))

    def _pays(self, sequence: TargetSequence, now: float) -> bool:
        """Whether more draft is worth the wait."""
        speeds, tree = self._speeds, sequence.cursor.tree
        rate = speeds.rate()
        most = min(self._rows - 1, sequence.remaining - 1)
        drafts = self._likeliest(tree, most)
        # The likeliest node without draft tokens below is what the drafter expands next.
        open_ = next((n for n in (tree[tree.root], *drafts) if not n.children and n.token not in self._ends), None)
        if open_ is None or rate <= 0.0:
            return rate <= 0.0 and not drafts and most > 0
        full = [speeds.alpha**n for n in range(1, most + 1)]
        pending = len(sequence.cursor.pending)
        room = rows_worth(full, speeds.forward, rate, pending)
        row = (speeds.forward(pending + room) - speeds.forward(pending)) / max(room, 1)
        told = sequence.told_at
        due = sequence.drafted_at + speeds.step if sequence.drafted_at >= told else told + speeds.delay
        reaches = [tree.reach(node.id) for node in drafts[:room]]
        beta = speeds.beta if self._tree else speeds.alpha
        wait = max(due - now, 0.0)
        leaf, worth = tree.reach(open_.id), _IMPATIENCE * rate
        return waiting_pays(reaches, leaf, speeds.alpha, beta, wait, speeds.step, row, room, worth, RANKS)
