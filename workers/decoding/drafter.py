"""The drafter: drafts ahead of the target. Messages, clock and outcomes in, actions out.

Its loop: take in messages -> pick the most valuable unexpanded nodes -> one engine forward -> send the new nodes.
A commit re-roots the tree; what survives is kept, tokens and KV.
"""

from __future__ import annotations

from math import inf

from hetero.placement.cost import Average, Curve, batch_worth
from hetero.workers.decoding.draft_sequence import DraftSequence, LeavesInFlight
from hetero.workers.decoding.kv_cursor import KvCursor
from hetero.workers.decoding.policy.calibration import Calibration
from hetero.workers.decoding.policy.expansion import BranchExpansion, ChainExpansion, make_expansion
from hetero.workers.decoding.policy.strategy import Growth, Strategy
from hetero.workers.decoding.prefix_cache import PrefixCache
from hetero.workers.decoding.protocol import Extend, Free, Job, Operation, Prefill, Step
from hetero.workers.decoding.trace import Trace
from hetero.workers.engines.base import EngineLimits, Outcome, Row
from hetero.workers.errors import EngineError
from hetero.workers.wire.messages import Close, Commit, Hint, Message, Open, Ping, Pong

HEARTBEAT = 0.5  # seconds between pings
_BATCH = 16  # most leaves expanded in one forward
_TRIES = 3  # failed forwards in a row after which a sequence is left alone


class Drafter:
    """State machine (``hetero.workers.decoding.protocol.Machine``) of the drafter's worker."""

    def __init__(
        self,
        epoch: int,
        limits: EngineLimits,
        ends: frozenset[int],
        strategy: Strategy,
        batch: int = _BATCH,
        trace: Trace | None = None,
        cached: int = 0,
    ) -> None:
        """``ends``: tokens below which nothing is worth drafting; ``batch``: most leaves of a forward; ``cached``:
        tokens of closed sequences to keep for the prompts of later ones."""
        self.epoch = epoch
        self.dropped = 0
        self._limits = limits
        self._ends = ends
        self._strategy = strategy
        # Commits that came down on a branch of gamma, a shorter one, none; and on one that a hint started.
        self.landings = {"complete": 0, "partial": 0, "missed": 0, "hinted": 0}
        self._batch = min(batch, limits.rows)
        self._trace = trace
        self._speed = Curve()  # seconds of a draft step by its rows
        self._began = 0.0, 1  # when the last forward started, and its rows
        self._ended = 0.0
        self._interval = Average()  # seconds between commits
        self._calibrations = {True: Calibration(), False: Calibration()}  # sampled, greedy
        self._hint_calibration = Calibration()
        self._verifier: bytes | None = None
        self._verifier_epoch: int | None = None
        self._sequences: dict[int, DraftSequence] = {}
        self._sends: list[tuple[bytes, Message]] = []
        self._before: list[Operation] = []
        self.prefixes = PrefixCache(cached)
        self._busy = False
        self._growing: list[LeavesInFlight] = []
        self._chunk: tuple[DraftSequence, int] | None = None  # a prefill in flight, and the tokens it adds
        self._next_ping = -inf
        self._held_until = inf

    # Recorder

    def linked(self, verifier: bytes) -> None:
        """A verifier is reachable under this socket identity; it may be another incarnation."""
        self._verifier = verifier
        self._next_ping = -inf

    def receive(self, peer: bytes, message: Message, now: float) -> None:
        match message:
            case Open():
                self._follow_epoch(message.epoch)
                self._open(peer, message)
            case Commit():
                self._commit(message, now)
            case Hint():
                self._hint(message)
            case Close():
                self._drop(message.seq)
            case Pong():
                self._follow_epoch(message.epoch)
            case _:
                self.dropped += 1

    def lost(self, peer: bytes, now: float) -> None:
        """Nothing to do: a verifier that comes back pings and opens again."""

    def completed(self, outcome: Outcome | EngineError | None, elapsed: float, now: float) -> None:
        self._busy = False
        self._ended = now
        growing, self._growing = self._growing, []
        chunk, self._chunk = self._chunk, None
        if isinstance(outcome, EngineError):
            self._failed([chunk[0]] if chunk else [flight.sequence for flight in growing])
            return
        if outcome is None:
            return
        if chunk is not None:
            self._prefilled(*chunk, outcome)
        for flight in growing:
            flight.sequence.failures = 0
            flight.cursor.evaluated(flight.rows)
            self._grown(flight, outcome)
        if self._trace is not None:
            name = "prompt" if chunk else f"draft {sum(len(flight.leaves) for flight in growing)}"
            self._trace.span("drafter", name, now - elapsed, now)

    def prepare(self) -> None:
        for flight in self._growing:
            for leaf in flight.leaves:
                if leaf in flight.cursor.tree:
                    position = flight.cursor.tree[leaf].position
                    flight.sequence.sampler.prepare(position + 1, self._limits.vocabulary)

    def step(self, now: float) -> Step:
        if self._verifier is not None and now >= self._next_ping:
            self._next_ping = now + HEARTBEAT
            lengths = [(seq, len(sequence.tokens)) for seq, sequence in self._sequences.items()]
            self._sends.append((self._verifier, Ping("drafter", self.epoch, lengths)))
        self._held_until = inf
        run = None if self._busy else self._choose(now)
        wake = min(self._held_until, self._next_ping if self._verifier is not None else inf)
        step = Step(self._sends, run, wake)
        self._sends = []
        return step

    @property
    def load(self) -> tuple[int, int]:
        """Sequences (open, waiting), for health and tests."""
        return len(self._sequences), 0

    @property
    def idle(self) -> bool:
        """No sequence is left and the engine has been told so."""
        return not self._sequences and not self._before and not self._busy

    # Sequences

    def _follow_epoch(self, epoch: int) -> None:
        """Another incarnation of the verifier knows nothing of the sequences of the one before."""
        if epoch != self._verifier_epoch:
            for seq in list(self._sequences):
                self._drop(seq)
            self._verifier_epoch = epoch

    def _open(self, peer: bytes, opening: Open) -> None:
        known = self._sequences.get(opening.seq)
        tokens = [*opening.prompt, *opening.committed]
        if known is not None:
            if len(tokens) >= len(known.tokens) and known.learn(0, tokens):
                return
            self._drop(opening.seq)
        if max(tokens) < self._limits.vocabulary and len(tokens) < self._limits.context:
            self._sequences[opening.seq] = DraftSequence(opening, peer)
        else:
            self.dropped += 1

    def _commit(self, commit: Commit, now: float) -> None:
        sequence = self._sequences.get(commit.seq)
        if sequence is None or commit.epoch != self._verifier_epoch:
            self.dropped += 1
        elif not sequence.learn(commit.base, commit.tokens):
            # Lost or damaged: forget the sequence; the next ping has it opened again.
            self._drop(commit.seq)
            self.dropped += 1
        else:
            self._speeds(sequence, commit, now)

    def _speeds(self, sequence: DraftSequence, commit: Commit, now: float) -> None:
        """When to expect the next commit; and PEARL's draft length: what is drafted while a window is checked, one
        window beyond the one in flight."""
        sequence.due_at = now + commit.due if commit.due > 0 else -inf
        if not commit.tokens:
            return
        expansion = sequence.expansion
        if isinstance(expansion, BranchExpansion) and sequence.cursor is not None:
            self._landed(expansion, sequence.cursor.tree.root in expansion.hinted, now)
        if sequence.told_at is not None:
            self._interval.add(now - sequence.told_at)
        sequence.told_at = now
        if self._strategy.growth is Growth.CHAIN and isinstance(expansion, ChainExpansion) and self._speed:
            gamma = round(self._interval(0.0) / max(self._speed(1), 1e-6))
            expansion.lead = 2 * max(1, min(self._strategy.rows - 1, gamma))

    def _landed(self, expansion: BranchExpansion, hinted: bool, now: float) -> None:
        """Count how well Mirror-SD's branches were prepared for a commit."""
        kind = expansion.landing()
        self.landings[kind] += 1
        self.landings["hinted"] += hinted and kind != "missed"
        if self._trace is not None:
            self._trace.mark("drafter", kind, now, hinted=hinted)

    def _hint(self, hint: Hint) -> None:
        """Root branches at what the target's early exit expects."""
        sequence = self._sequences.get(hint.seq)
        stale = sequence is None or hint.epoch != self._verifier_epoch or hint.base != len(sequence.tokens)
        if stale or sequence is None or sequence.cursor is None or not isinstance(sequence.expansion, BranchExpansion):
            return
        if not len(hint.parents) == len(hint.tokens) == len(hint.likely):
            self.dropped += 1
            return
        sequence.hinted(hint, self._hint_calibration, self._limits.vocabulary)

    def _drop(self, seq: int) -> None:
        sequence = self._sequences.pop(seq, None)
        if sequence is None:
            return
        if sequence.cursor is not None and not sequence.failures:
            self._before += self.prefixes.retire(sequence.cursor, sequence.tokens)
        self._before.append(Free(seq))

    # Growing

    def _choose(self, now: float) -> Job | None:
        before, self._before = self._before, []
        for sequence in self._sequences.values():
            if sequence.cursor is None and sequence.failures < _TRIES and self._worth(sequence, len(sequence.tokens)):
                load = self.prefixes.load(sequence.opening.seq, sequence.tokens) if not sequence.prefilled else None
                if load is not None:
                    before.append(load)
                    sequence.prefilled, sequence.prefix = load.length, load.key
                chunk = sequence.tokens[sequence.prefilled : sequence.prefilled + self._limits.chunk]
                self._chunk = sequence, len(chunk)
                self._busy = True
                return Job(before, Prefill(sequence.opening.seq, chunk))
        rows: list[Row] = []
        for sequence, leaves in self._leaves(now):
            assert sequence.cursor is not None
            self._expand(sequence, sequence.cursor, leaves, before, rows)
        if rows:
            self._time(len(rows), now)
        if rows or before:
            self._busy = True
            return Job(before, Extend(rows) if rows else None)
        return None

    def _time(self, rows: int, now: float) -> None:
        """Measure a draft step from one forward's start to the next one's: what happens between counts too."""
        began, last = self._began
        if now - self._ended < 0.5 * (self._ended - began):  # else it was idle between
            self._speed.add(last, now - began)
        elif not self._speed and self._ended > began:
            self._speed.add(last, self._ended - began)
        self._began = now, rows

    def _leaves(self, now: float) -> list[tuple[DraftSequence, list[int]]]:
        """The leaves to expand in the next forward: the most valuable ones, as many as pay together."""
        found: list[tuple[float, int, DraftSequence]] = []
        for sequence in self._sequences.values():
            if sequence.expansion is None or sequence.failures >= _TRIES:
                continue
            if sequence.failures and found:  # it may be the one at fault: alone, it fails alone
                continue
            found += [(value, leaf, sequence) for value, leaf in sequence.expansion.leaves(self._batch)]
            if sequence.failures:
                break
        if not found:
            return []
        found.sort(key=lambda entry: -entry[0])
        most = min(len(found), self._batch)
        count = batch_worth([value for value, _, _ in found[:most]], self._speed)
        count = self._in_time(found[:count], now)
        if self._holds(found[:count], now):
            count = 0
        chosen: dict[int, tuple[DraftSequence, list[int]]] = {}
        for at, (_, leaf, sequence) in enumerate(found):
            assert sequence.expansion is not None and sequence.cursor is not None
            if at < count and self._worth(sequence, sequence.cursor.tree[leaf].position + 1):
                chosen.setdefault(sequence.opening.seq, (sequence, []))[1].append(leaf)
            else:
                sequence.expansion.put_back(leaf)
        return list(chosen.values())

    def _in_time(self, found: list[tuple[float, int, DraftSequence]], now: float) -> int:
        """How many leaves to expand so that the forward does not outlast the check in flight by more than it must: the
        commit may ask for something else, and would wait for it."""
        due = max(sequence.due_at for _, _, sequence in found)
        count = len(found)
        if now < due + self._speed(count):
            most = max(due - now, self._speed(1))
            while count > 1 and self._speed(count) > most:
                count -= 1
        return count

    def _holds(self, found: list[tuple[float, int, DraftSequence]], now: float) -> bool:
        """Whether to wait for a commit that is due, instead of starting a forward it would make half useless.

        With q the chance that the target takes one of the leaves: starting now is a whole forward late with chance
        1 - q, waiting delays all by the time until the commit.
        """
        due = max(sequence.due_at for _, _, sequence in found)
        if len({sequence.opening.seq for _, _, sequence in found}) > 1 or not now < due:
            return False
        chance = min(1.0, sum(value for value, _, _ in found))
        step = self._speed(len(found))
        if due - now >= step * (1.0 - chance):
            return False
        self._held_until = due + 0.1 * step
        return True

    def _expand(
        self, sequence: DraftSequence, cursor: KvCursor, leaves: list[int], before: list[Operation], rows: list[Row]
    ) -> None:
        """Add the rows that leaves of one sequence need."""
        assert sequence.expansion is not None
        keep = cursor.keep(drafts=True)
        if keep is not None:
            before.append(keep)
        room = self._limits.rows - len(rows) - len(cursor.pending)
        cells = self._limits.draft_nodes - cursor.held()
        branches = self._room(cursor)
        path: dict[int, None] = {}
        fit: list[int] = []
        for leaf in leaves:
            more = [node for node in cursor.unevaluated(leaf) if node not in path]
            if len(path) + len(more) <= min(room, cells) and (len(fit) < branches or leaf == cursor.tree.root):
                path.update(dict.fromkeys(more))
                fit.append(leaf)
            else:
                sequence.expansion.put_back(leaf)
        own = cursor.rows(sorted(path), self._limits.rows - len(rows))
        shown = {row.node for row in own}
        for leaf in [leaf for leaf in fit if leaf not in shown]:
            sequence.expansion.put_back(leaf)
        if own:
            index = {row.node: len(rows) + at for at, row in enumerate(own)}
            rows.extend(own)
            self._growing.append(LeavesInFlight(sequence, cursor, [leaf for leaf in fit if leaf in shown], index))

    def _room(self, cursor: KvCursor) -> int:
        """Branches that a sequence may still begin."""
        limits = self._limits
        if limits.branches >= limits.draft_nodes * limits.sequences:  # every draft token could be one
            return limits.draft_nodes
        return limits.branches // limits.sequences - cursor.branches()

    def _worth(self, sequence: DraftSequence, position: int) -> bool:
        """Whether a draft token at ``position`` could ever be used."""
        return position < min(sequence.limit, self._limits.context)

    def _prefilled(self, sequence: DraftSequence, count: int, outcome: Outcome) -> None:
        sequence.prefilled += count
        if sequence.prefilled < len(sequence.tokens):  # more was committed meanwhile
            return
        cursor = KvCursor(sequence.opening.seq, sequence.prefilled - 1, sequence.tokens[-1])
        calibration = self._calibrations[sequence.opening.sampling.temperature > 0]
        sequence.begin(cursor, make_expansion(self._strategy, cursor.tree, calibration, self._ends))
        self._grown(LeavesInFlight(sequence, cursor, [0], {0: 0}), outcome)

    def _grown(self, flight: LeavesInFlight, outcome: Outcome) -> None:
        """Guess the tokens below evaluated leaves and send them."""
        sequence, cursor = flight.sequence, flight.cursor
        expansion = sequence.expansion
        alive = self._sequences.get(sequence.opening.seq) is sequence and sequence.cursor is cursor
        if not alive or expansion is None:  # closed meanwhile
            return
        tree = cursor.tree
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
            new += expansion.grown(leaf, found)
        if new:
            self._sends.append((sequence.peer, sequence.draft(new, self._speed(len(flight.rows)))))

    def _failed(self, sequences: list[DraftSequence]) -> None:
        """Rebuild what was in a failed forward; a sequence that fails again and again is left alone."""
        for sequence in sequences:
            if sequence.prefix and sequence.cursor is None:  # the prefix may be at fault
                self._before.append(self.prefixes.forget(sequence.prefix))
            sequence.failures += 1
            sequence.restart()
            if self._sequences.get(sequence.opening.seq) is sequence:
                self._before.append(Free(sequence.opening.seq))
