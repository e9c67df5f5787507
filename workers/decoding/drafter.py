"""The drafter: drafts ahead of the target. Messages, clock and outcomes in, actions out.

Its loop: take in messages -> pick the most valuable unexpanded nodes -> one engine forward -> send the new nodes.
A commit re-roots the tree; what survives is kept, tokens and KV.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import inf

from hetero.placement.cost import Average
from hetero.workers.decoding.draft_sequence import DraftSequence, Growth, LeavesInFlight
from hetero.workers.decoding.kv_cursor import KvCursor
from hetero.workers.decoding.landings import Landings
from hetero.workers.decoding.notebook import Notebook
from hetero.workers.decoding.policy import tuning
from hetero.workers.decoding.policy.calibration import Calibration
from hetero.workers.decoding.policy.expansion import ChainExpansion, make_expansion
from hetero.workers.decoding.policy.leaves import LeafPolicy
from hetero.workers.decoding.policy.strategy import GrowthRule, Strategy
from hetero.workers.decoding.prefix_cache import PrefixCache
from hetero.workers.decoding.protocol import Extend, Free, Job, Operation, Prefill, Sends, Step, Study
from hetero.workers.decoding.trace import Trace
from hetero.workers.engines.base import EngineLimits, Outcome, Row
from hetero.workers.errors import EngineError
from hetero.workers.wire.messages import Close, Commit, Correction, Features, Hint, Message, Open, Ping, Pong

HEARTBEAT = 0.5  # seconds between pings
_TRIES = 3  # failed forwards in a row after which a sequence is left alone


@dataclass(slots=True)
class _VerifierPeer:
    """One verifier behind a socket: its epoch, None until it was heard, and when to ping it next."""

    epoch: int | None = None
    next_ping: float = -inf


class Drafter:
    """State machine (``protocol.Machine``) of the drafter's worker; it may serve several verifiers."""

    def __init__(
        self,
        epoch: int,
        limits: EngineLimits,
        ends: frozenset[int],
        strategy: Strategy,
        batch: int = tuning.MOST_LEAVES,
        trace: Trace | None = None,
        cached: int = 0,
        index: int = 0,
    ) -> None:
        """``ends``: tokens below which nothing is worth drafting; ``batch``: most leaves of a forward; ``cached``:
        tokens of closed sequences to keep for the prompts of later ones; ``index``: which of several drafters it is."""
        self.epoch = epoch
        self.index = index
        self.dropped, self.landings = 0, Landings()
        self.notebook = Notebook(limits.vocabulary if limits.learns else 0)
        self.prefixes = PrefixCache(cached if limits.prefixes else 0)
        self._limits = limits
        self._ends = ends
        self._strategy = strategy
        self._policy = LeafPolicy(min(batch, limits.rows))
        self._trace = trace
        self._interval = Average(tuning.FORWARD_WEIGHT)  # seconds between commits
        self._calibrations = {True: Calibration(), False: Calibration()}  # sampled, greedy
        self._hint_calibration = Calibration()
        self._verifiers: dict[bytes, _VerifierPeer] = {}
        self._sequences: dict[tuple[bytes, int], DraftSequence] = {}  # by verifier and its name there
        self._ids = itertools.count(1)
        self._sends: Sends = []  # leave with the next step
        self._operations: list[Operation] = []  # go before the next forward
        self._busy = False
        self._growing: list[LeavesInFlight] = []
        self._chunk: tuple[DraftSequence, int] | None = None  # a prefill in flight, and the tokens it adds

    def follow(self, strategy: Strategy) -> None:
        """Go on by another strategy; sequences are forgotten, the verifiers open them again as trees of its kind."""
        self._strategy = strategy
        for peer, seq in list(self._sequences):
            self._drop(peer, seq)
        for verifier in self._verifiers.values():
            verifier.next_ping = -inf

    # Events

    def linked(self, verifier: bytes) -> None:
        """A verifier is reachable behind this socket; it may be another incarnation of one that was."""
        self._verifiers.setdefault(verifier, _VerifierPeer()).next_ping = -inf

    def receive(self, peer: bytes, message: Message, now: float) -> None:
        match message:
            case Open():
                self._follow_epoch(peer, message.epoch)
                self._open(peer, message)
            case Commit():
                self._commit(peer, message, now)
            case Features():
                self._features(peer, message)
            case Correction():
                self._corrected(peer, message)
            case Hint():
                self._hint(peer, message)
            case Close():
                self._drop(peer, message.seq)
            case Pong():
                self._follow_epoch(peer, message.epoch)
            case _:
                self.dropped += 1

    def lost(self, peer: bytes, now: float) -> None:
        """Nothing to do: a verifier that comes back pings and opens again."""

    def completed(self, outcome: Outcome | EngineError | None, elapsed: float, now: float) -> None:
        growing, chunk = self._growing, self._chunk
        self._busy, self._growing, self._chunk = False, [], None
        self.notebook.ended(not isinstance(outcome, EngineError))
        if growing:
            self._policy.ended(now)
        if isinstance(outcome, EngineError):
            self._failed([chunk[0]] if chunk else [flight.sequence for flight in growing])
            return
        if outcome is None:
            return
        if chunk is not None:
            self._prefilled(*chunk, outcome)
        for flight in growing:
            flight.sequence.failures = 0
            flight.growth.cursor.evaluated(flight.rows)
            self._expanded(flight, outcome)
        if self._trace is not None:
            name = "prompt" if chunk else f"draft {sum(len(flight.leaves) for flight in growing)}"
            self._trace.span("drafter", name, now - elapsed, now)

    def prepare(self) -> None:
        for flight in self._growing:
            tree = flight.growth.cursor.tree
            for leaf in flight.leaves:
                if leaf in tree:
                    flight.sequence.sampler.prepare(tree[leaf].position + 1, self._limits.vocabulary)

    def step(self, now: float) -> Step:
        for socket, verifier in self._verifiers.items():
            if now >= verifier.next_ping:
                verifier.next_ping = now + HEARTBEAT
                own = [(seq, len(held.tokens)) for (of, seq), held in self._sequences.items() if of == socket]
                self._sends.append(
                    (
                        socket,
                        Ping("drafter", self.epoch, own, self.index, self._limits.drafts_from, self._limits.learns),
                    )
                )
        self._policy.held_until = inf
        job = None if self._busy else self._choose(now)
        wake = min([self._policy.held_until, *(verifier.next_ping for verifier in self._verifiers.values())])
        sends, self._sends = self._sends, []
        return Step(sends, job, wake)

    @property
    def counts(self) -> tuple[int, int]:
        """Sequences (open, waiting)."""
        return len(self._sequences), 0

    @property
    def idle(self) -> bool:
        """No sequence is left and the engine has been told so."""
        return not self._sequences and not self._operations and not self._busy

    # Sequences

    def _follow_epoch(self, peer: bytes, epoch: int) -> None:
        """Another incarnation of a verifier knows nothing of the sequences of the one before."""
        verifier = self._verifiers.setdefault(peer, _VerifierPeer())
        if epoch != verifier.epoch:
            for of, seq in list(self._sequences):
                if of == peer:
                    self._drop(of, seq)
            verifier.epoch = epoch

    def _known(self, peer: bytes, message: Commit | Features | Correction | Hint) -> DraftSequence | None:
        """The open sequence that a message is about."""
        current = peer in self._verifiers and self._verifiers[peer].epoch == message.epoch
        return self._sequences.get((peer, message.seq)) if current else None

    def _open(self, peer: bytes, opening: Open) -> None:
        if not self._strategy.drafts:  # it was told to rest, the verifier will hear of it
            return
        known = self._sequences.get((peer, opening.seq))
        tokens = [*opening.prompt, *opening.committed]
        if known is not None:
            if len(tokens) >= len(known.tokens) and known.learn(0, tokens):
                return
            self._drop(peer, opening.seq)
        if max(tokens) < self._limits.vocabulary:
            limits = self._limits
            found = DraftSequence(next(self._ids), peer, opening, limits.context, limits.drafts_from)
            self._sequences[peer, opening.seq] = found
        else:
            self.dropped += 1

    def _commit(self, peer: bytes, commit: Commit, now: float) -> None:
        if (sequence := self._known(peer, commit)) is None:
            self.dropped += 1
        elif not sequence.learn(commit.base, commit.tokens):
            # Lost or damaged: forget the sequence; the next ping has it opened again.
            self._drop(peer, commit.seq)
            self.dropped += 1
        else:
            beginning = self._chunk is not None and self._chunk[0] is sequence  # then it sees to it itself
            if sequence.full and not beginning:
                sequence.slide()
                self._operations.append(Free(sequence.id))
            self._pace(sequence, commit, now)

    def _features(self, peer: bytes, message: Features) -> None:
        """What a head drafts from."""
        if (sequence := self._known(peer, message)) is None:
            self.dropped += 1
        elif (inform := sequence.hear(message)) is not None and sequence.failures < _TRIES:
            self._operations.append(inform)

    def _corrected(self, peer: bytes, correction: Correction) -> None:
        """Something to learn."""
        known = self._known(peer, correction) is not None
        self.dropped += not (known and self.notebook.note((peer, correction.seq), correction))

    def _pace(self, sequence: DraftSequence, commit: Commit, now: float) -> None:
        """When to expect the next commit; and PEARL's draft length: what is drafted while a window is checked, one
        window beyond the one in flight."""
        sequence.due_at = now + commit.due if commit.due > 0 else -inf
        if not commit.tokens:
            return
        growth = sequence.growth
        self.landings.add(growth, now, self._trace)
        if sequence.told_at is not None:
            self._interval.add(now - sequence.told_at)
        sequence.told_at = now
        chain = self._strategy.growth is GrowthRule.CHAIN
        if chain and growth is not None and isinstance(growth.expansion, ChainExpansion) and self._policy.speed:
            gamma = round(self._interval(0.0) / max(self._policy.speed(1), 1e-6))
            growth.expansion.lead = 2 * max(1, min(self._strategy.rows - 1, gamma))

    def _hint(self, peer: bytes, hint: Hint) -> None:
        """Root branches at what the target's early exit expects."""
        sequence = self._known(peer, hint)
        if sequence is None or sequence.growth is None:
            return
        if not len(hint.parents) == len(hint.tokens) == len(hint.likely):
            self.dropped += 1
        elif hint.base == len(sequence.tokens):  # else it is stale
            sequence.growth.take_hint(hint, self._hint_calibration, self._limits.vocabulary)

    def _drop(self, peer: bytes, seq: int) -> None:
        sequence = self._sequences.pop((peer, seq), None)
        if sequence is None:
            return
        self.notebook.close((peer, seq), sequence.tokens)
        if sequence.growth is not None and not sequence.failures and not sequence.skipped:
            self._operations += self.prefixes.retire(sequence.growth.cursor, sequence.tokens)
        self._operations.append(Free(sequence.id))

    # Growing

    def _choose(self, now: float) -> Job | None:
        before, self._operations = self._operations, []
        held = sum(
            sequence.growth is not None or sequence.prefix.evaluated > sequence.skipped
            for sequence in self._sequences.values()
        )
        for sequence in self._sequences.values():
            waits = sequence.growth is None and sequence.failures < _TRIES and sequence.ready
            # Several verifiers together may ask for more sequences than this engine holds: the others wait.
            fits = sequence.prefix.evaluated > sequence.skipped or held < self._limits.sequences
            if waits and fits and self._worth(sequence, len(sequence.tokens)):
                self._busy = True
                return Job(before, self._prefill(sequence, before))
        rows: list[Row] = []
        alive = [sequence for sequence in self._sequences.values() if sequence.failures < _TRIES]
        for sequence, growth, leaves in self._policy.choose(alive, self._worth, now):
            if rows and self._limits.exact:  # such an engine has one sequence a forward: the others' turn comes
                for leaf in leaves:
                    growth.expansion.put_back(leaf)
            else:
                self._expand(sequence, growth, leaves, before, rows)
        if rows:
            self._policy.started(len(rows), now)
        free = not (rows or before or self._sequences)
        lessons = self.notebook.step() if free else []
        if not (rows or before or lessons):
            return None
        self._busy = True
        return Job(before, Extend(rows) if rows else Study(lessons) if lessons else None)

    def _prefill(self, sequence: DraftSequence, before: list[Operation]) -> Prefill:
        """The next chunk of a prefix; ``before`` may get what loads its beginning."""
        prefix = sequence.prefix
        if (inform := sequence.inform()) is not None:
            before.append(inform)
        load = self.prefixes.load(sequence.id, sequence.tokens) if not prefix.evaluated else None
        if load is not None:
            before.append(load)
            prefix.evaluated, prefix.cache_key = load.length, load.key
        chunk = sequence.tokens[prefix.evaluated : prefix.evaluated + self._limits.chunk]
        self._chunk = sequence, len(chunk)
        return Prefill(sequence.id, chunk)

    def _expand(
        self, sequence: DraftSequence, growth: Growth, leaves: list[int], before: list[Operation], rows: list[Row]
    ) -> None:
        """Add the rows that leaves of one sequence need."""
        cursor = growth.cursor
        keep = cursor.keep(drafts=True)
        if keep is not None:
            before.append(keep)
        room = self._limits.rows - len(rows) - len(cursor.pending)
        cells = self._limits.draft_nodes - cursor.held()
        ends = cursor.ends()
        branches = self._room(len(ends))
        path: dict[int, None] = {}
        fit: list[int] = []
        for leaf in leaves:
            more = [node for node in cursor.unevaluated(leaf) if node not in path]
            above = cursor.tree[more[0]].parent if more else leaf
            goes_on = above in ends or leaf == cursor.tree.root
            if len(path) + len(more) <= min(room, cells) and (goes_on or branches > 0):
                branches -= not goes_on
                ends = ends - {above} | {leaf}
                path.update(dict.fromkeys(more))
                fit.append(leaf)
            else:
                growth.expansion.put_back(leaf)
        own = cursor.rows(sorted(path), self._limits.rows - len(rows))
        shown = {row.node for row in own}
        for leaf in [leaf for leaf in fit if leaf not in shown]:
            growth.expansion.put_back(leaf)
        if own:
            index = {row.node: len(rows) + at for at, row in enumerate(own)}
            rows.extend(own)
            self._growing.append(LeavesInFlight(sequence, growth, [leaf for leaf in fit if leaf in shown], index))

    def _room(self, branches: int) -> int:
        """Branches that a sequence may still begin which has so many."""
        limits = self._limits
        if limits.branches >= limits.draft_nodes * limits.sequences:  # every draft token could be one
            return limits.draft_nodes
        return limits.branches // limits.sequences - branches

    def _worth(self, sequence: DraftSequence, position: int) -> bool:
        """Whether a draft token at ``position`` could ever be used."""
        return position < min(sequence.limit, sequence.skipped + self._limits.context)

    def _prefilled(self, sequence: DraftSequence, count: int, outcome: Outcome) -> None:
        sequence.prefix.evaluated += count
        if sequence.full:  # much was committed meanwhile
            sequence.slide()
            self._operations.append(Free(sequence.id))
            return
        if not sequence.prefix.complete:  # more was committed meanwhile
            return
        cursor = KvCursor(sequence.id, sequence.prefix.evaluated - 1, sequence.tokens[-1], self._limits.lasting)
        calibration = self._calibrations[sequence.sampled]
        growth = Growth(cursor, make_expansion(self._strategy, cursor.tree, calibration, self._ends))
        sequence.growth = growth
        self._expanded(LeavesInFlight(sequence, growth, [0], {0: 0}), outcome)

    def _expanded(self, flight: LeavesInFlight, outcome: Outcome) -> None:
        """Propose the tokens below evaluated leaves and send them."""
        sequence, growth = flight.sequence, flight.growth
        alive = self._sequences.get((sequence.verifier, sequence.opening.seq)) is sequence
        if not alive or sequence.growth is not growth:  # closed meanwhile
            return
        tree, expansion = growth.cursor.tree, growth.expansion
        new: list[int] = []
        for leaf in flight.leaves:
            if leaf not in tree:  # a commit went elsewhere meanwhile
                continue
            try:
                sampler = sequence.sampler.below(tree.tokens(leaf))
                found = outcome.candidates(flight.rows[leaf], sampler, tree[leaf].position + 1, expansion.width)
            except EngineError:
                sequence.failures = _TRIES
                return
            new += expansion.expanded(leaf, found)
        if new:
            self._sends.append((sequence.verifier, sequence.draft(new, self._policy.speed(len(flight.rows)))))

    def _failed(self, sequences: list[DraftSequence]) -> None:
        """Rebuild what was in a failed forward; a sequence that fails again and again is left alone."""
        for sequence in sequences:
            if sequence.prefix.cache_key and sequence.growth is None:  # the cached prefix may be at fault
                self._operations.append(self.prefixes.forget(sequence.prefix.cache_key))
            sequence.failures += 1
            if sequence.full:
                sequence.slide()
            sequence.restart()
            if self._sequences.get((sequence.verifier, sequence.opening.seq)) is sequence:
                self._operations.append(Free(sequence.id))
