"""The drafter: guesses ahead of the target. Messages, clock and outcomes in, actions out.

Its loop: take in messages -> pick the most valuable unexpanded nodes -> one engine forward -> send the new nodes.
A commit re-roots the tree; what survives is kept, tokens and KV.
"""

from __future__ import annotations

from math import inf

from placement.calibration import Calibration
from placement.cost import Average, Curve, batch_worth
from workers.draftee import Draftee, Expansion
from workers.engines.base import Limits, Outcome, Row
from workers.errors import EngineError
from workers.growth import BranchGrower, ChainGrower, make_grower
from workers.machine import Extend, Free, Operation, Prefill, Run, Step
from workers.prefixes import Prefixes
from workers.strategy import Growth, Strategy
from workers.trace import Trace
from workers.track import Track
from workers.wire.messages import Close, Commit, Hint, Message, Open, Ping, Pong

HEARTBEAT = 0.5  # seconds between pings
_BATCH = 16  # most leaves expanded in one forward
_TRIES = 3  # failed forwards in a row after which a sequence is left alone


class Drafter:
    """State machine (``workers.machine.Machine``) of the drafter's worker."""

    def __init__(
        self,
        epoch: int,
        limits: Limits,
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
        self._draftees: dict[int, Draftee] = {}
        self._sends: list[tuple[bytes, Message]] = []
        self._before: list[Operation] = []
        self.prefixes = Prefixes(cached)
        self._busy = False
        self._growing: list[Expansion] = []
        self._chunk: tuple[Draftee, int] | None = None  # a prefill in flight, and the tokens it adds
        self._next_ping = -inf
        self._held_until = inf

    # Events

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
            self._failed([chunk[0]] if chunk else [expansion.draftee for expansion in growing])
            return
        if outcome is None:
            return
        if chunk is not None:
            self._prefilled(*chunk, outcome)
        for expansion in growing:
            expansion.draftee.failures = 0
            expansion.track.evaluated(expansion.rows)
            self._grown(expansion, outcome)
        if self._trace is not None:
            name = "prompt" if chunk else f"draft {sum(len(expansion.leaves) for expansion in growing)}"
            self._trace.span("drafter", name, now - elapsed, now)

    def prepare(self) -> None:
        for expansion in self._growing:
            for leaf in expansion.leaves:
                if leaf in expansion.track.tree:
                    position = expansion.track.tree[leaf].position
                    expansion.draftee.sampler.prepare(position + 1, self._limits.vocabulary)

    def step(self, now: float) -> Step:
        if self._verifier is not None and now >= self._next_ping:
            self._next_ping = now + HEARTBEAT
            lengths = [(seq, len(draftee.tokens)) for seq, draftee in self._draftees.items()]
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
        return len(self._draftees), 0

    @property
    def idle(self) -> bool:
        """No sequence is left and the engine has been told so."""
        return not self._draftees and not self._before and not self._busy

    # Sequences

    def _follow_epoch(self, epoch: int) -> None:
        """Another incarnation of the verifier knows nothing of the sequences of the one before."""
        if epoch != self._verifier_epoch:
            for seq in list(self._draftees):
                self._drop(seq)
            self._verifier_epoch = epoch

    def _open(self, peer: bytes, opening: Open) -> None:
        known = self._draftees.get(opening.seq)
        tokens = [*opening.prompt, *opening.committed]
        if known is not None:
            if len(tokens) >= len(known.tokens) and known.learn(0, tokens):
                return
            self._drop(opening.seq)
        if max(tokens) < self._limits.vocabulary and len(tokens) < self._limits.context:
            self._draftees[opening.seq] = Draftee(opening, peer)
        else:
            self.dropped += 1

    def _commit(self, commit: Commit, now: float) -> None:
        draftee = self._draftees.get(commit.seq)
        if draftee is None or commit.epoch != self._verifier_epoch:
            self.dropped += 1
        elif not draftee.learn(commit.base, commit.tokens):
            # Lost or damaged: forget the sequence; the next ping has it opened again.
            self._drop(commit.seq)
            self.dropped += 1
        else:
            self._pace(draftee, commit, now)

    def _pace(self, draftee: Draftee, commit: Commit, now: float) -> None:
        """When to expect the next commit; and PEARL's draft length: what is drafted while a window is checked, one
        window beyond the one in flight."""
        draftee.due_at = now + commit.due if commit.due > 0 else -inf
        if not commit.tokens:
            return
        grower = draftee.grower
        if isinstance(grower, BranchGrower) and draftee.track is not None:
            self._landed(grower, draftee.track.tree.root in grower.hinted, now)
        if draftee.told_at is not None:
            self._interval.add(now - draftee.told_at)
        draftee.told_at = now
        if self._strategy.growth is Growth.CHAIN and isinstance(grower, ChainGrower) and self._speed:
            gamma = round(self._interval(0.0) / max(self._speed(1), 1e-6))
            grower.lead = 2 * max(1, min(self._strategy.rows - 1, gamma))

    def _landed(self, grower: BranchGrower, hinted: bool, now: float) -> None:
        """Count how well Mirror-SD's branches were prepared for a commit."""
        kind = grower.landing()
        self.landings[kind] += 1
        self.landings["hinted"] += hinted and kind != "missed"
        if self._trace is not None:
            self._trace.mark("drafter", kind, now, hinted=hinted)

    def _hint(self, hint: Hint) -> None:
        """Root branches at what the target's early exit expects."""
        draftee = self._draftees.get(hint.seq)
        stale = draftee is None or hint.epoch != self._verifier_epoch or hint.base != len(draftee.tokens)
        if stale or draftee is None or draftee.track is None or not isinstance(draftee.grower, BranchGrower):
            return
        if not len(hint.parents) == len(hint.tokens) == len(hint.likely):
            self.dropped += 1
            return
        draftee.hinted(hint, self._hint_calibration, self._limits.vocabulary)

    def _drop(self, seq: int) -> None:
        draftee = self._draftees.pop(seq, None)
        if draftee is None:
            return
        if draftee.track is not None and not draftee.failures:
            self._before += self.prefixes.retire(draftee.track, draftee.tokens)
        self._before.append(Free(seq))

    # Growing

    def _choose(self, now: float) -> Run | None:
        before, self._before = self._before, []
        for draftee in self._draftees.values():
            if draftee.track is None and draftee.failures < _TRIES and self._worth(draftee, len(draftee.tokens)):
                load = self.prefixes.load(draftee.opening.seq, draftee.tokens) if not draftee.prefilled else None
                if load is not None:
                    before.append(load)
                    draftee.prefilled, draftee.prefix = load.length, load.key
                chunk = draftee.tokens[draftee.prefilled : draftee.prefilled + self._limits.chunk]
                self._chunk = draftee, len(chunk)
                self._busy = True
                return Run(before, Prefill(draftee.opening.seq, chunk))
        rows: list[Row] = []
        for draftee, leaves in self._leaves(now):
            assert draftee.track is not None
            self._expand(draftee, draftee.track, leaves, before, rows)
        if rows:
            self._time(len(rows), now)
        if rows or before:
            self._busy = True
            return Run(before, Extend(rows) if rows else None)
        return None

    def _time(self, rows: int, now: float) -> None:
        """Measure a draft step from one forward's start to the next one's: what happens between counts too."""
        began, last = self._began
        if now - self._ended < 0.5 * (self._ended - began):  # else it was idle between
            self._speed.add(last, now - began)
        elif not self._speed and self._ended > began:
            self._speed.add(last, self._ended - began)
        self._began = now, rows

    def _leaves(self, now: float) -> list[tuple[Draftee, list[int]]]:
        """The leaves to expand in the next forward: the most valuable ones, as many as pay together."""
        found: list[tuple[float, int, Draftee]] = []
        for draftee in self._draftees.values():
            if draftee.grower is None or draftee.failures >= _TRIES:
                continue
            if draftee.failures and found:  # it may be the one at fault: alone, it fails alone
                continue
            found += [(value, leaf, draftee) for value, leaf in draftee.grower.leaves(self._batch)]
            if draftee.failures:
                break
        if not found:
            return []
        found.sort(key=lambda entry: -entry[0])
        most = min(len(found), self._batch)
        count = batch_worth([value for value, _, _ in found[:most]], self._speed)
        count = self._in_time(found[:count], now)
        if self._holds(found[:count], now):
            count = 0
        chosen: dict[int, tuple[Draftee, list[int]]] = {}
        for at, (_, leaf, draftee) in enumerate(found):
            assert draftee.grower is not None and draftee.track is not None
            if at < count and self._worth(draftee, draftee.track.tree[leaf].position + 1):
                chosen.setdefault(draftee.opening.seq, (draftee, []))[1].append(leaf)
            else:
                draftee.grower.put_back(leaf)
        return list(chosen.values())

    def _in_time(self, found: list[tuple[float, int, Draftee]], now: float) -> int:
        """How many leaves to expand so that the forward does not outlast the check in flight by more than it must: the
        commit may ask for something else, and would wait for it."""
        due = max(draftee.due_at for _, _, draftee in found)
        count = len(found)
        if now < due + self._speed(count):
            most = max(due - now, self._speed(1))
            while count > 1 and self._speed(count) > most:
                count -= 1
        return count

    def _holds(self, found: list[tuple[float, int, Draftee]], now: float) -> bool:
        """Whether to wait for a commit that is due, instead of starting a forward it would make half useless.

        With q the chance that the target takes one of the leaves: starting now is a whole forward late with chance
        1 - q, waiting delays all by the time until the commit.
        """
        due = max(draftee.due_at for _, _, draftee in found)
        if len({draftee.opening.seq for _, _, draftee in found}) > 1 or not now < due:
            return False
        chance = min(1.0, sum(value for value, _, _ in found))
        step = self._speed(len(found))
        if due - now >= step * (1.0 - chance):
            return False
        self._held_until = due + 0.1 * step
        return True

    def _expand(
        self, draftee: Draftee, track: Track, leaves: list[int], before: list[Operation], rows: list[Row]
    ) -> None:
        """Add the rows that leaves of one sequence need."""
        assert draftee.grower is not None
        keep = track.keep(guesses=True)
        if keep is not None:
            before.append(keep)
        room = self._limits.rows - len(rows) - len(track.pending)
        cells = self._limits.guesses - track.held()
        branches = self._room(track)
        path: dict[int, None] = {}
        fit: list[int] = []
        for leaf in leaves:
            more = [node for node in track.unevaluated(leaf) if node not in path]
            if len(path) + len(more) <= min(room, cells) and (len(fit) < branches or leaf == track.tree.root):
                path.update(dict.fromkeys(more))
                fit.append(leaf)
            else:
                draftee.grower.put_back(leaf)
        own = track.rows(sorted(path), self._limits.rows - len(rows))
        shown = {row.node for row in own}
        for leaf in [leaf for leaf in fit if leaf not in shown]:
            draftee.grower.put_back(leaf)
        if own:
            index = {row.node: len(rows) + at for at, row in enumerate(own)}
            rows.extend(own)
            self._growing.append(Expansion(draftee, track, [leaf for leaf in fit if leaf in shown], index))

    def _room(self, track: Track) -> int:
        """Branches that a sequence may still begin."""
        limits = self._limits
        if limits.branches >= limits.guesses * limits.sequences:  # every guess could be one
            return limits.guesses
        return limits.branches // limits.sequences - track.branches()

    def _worth(self, draftee: Draftee, position: int) -> bool:
        """Whether a guess at ``position`` could ever be used."""
        return position < min(draftee.limit, self._limits.context)

    def _prefilled(self, draftee: Draftee, count: int, outcome: Outcome) -> None:
        draftee.prefilled += count
        if draftee.prefilled < len(draftee.tokens):  # more was committed meanwhile
            return
        track = Track(draftee.opening.seq, draftee.prefilled - 1, draftee.tokens[-1])
        calibration = self._calibrations[draftee.opening.sampling.temperature > 0]
        draftee.begin(track, make_grower(self._strategy, track.tree, calibration, self._ends))
        self._grown(Expansion(draftee, track, [0], {0: 0}), outcome)

    def _grown(self, expansion: Expansion, outcome: Outcome) -> None:
        """Guess the tokens below evaluated leaves and send them."""
        draftee, track = expansion.draftee, expansion.track
        grower = draftee.grower
        alive = self._draftees.get(draftee.opening.seq) is draftee and draftee.track is track
        if not alive or grower is None:  # closed meanwhile
            return
        tree = track.tree
        new: list[int] = []
        for leaf in expansion.leaves:
            if leaf not in tree:  # a commit went elsewhere meanwhile
                continue
            try:
                sampler = draftee.sampler.below(tree.tokens(leaf))
                found = outcome.candidates(expansion.rows[leaf], sampler, tree[leaf].position + 1, grower.width)
            except EngineError:
                draftee.failures = _TRIES
                return
            new += grower.grown(leaf, found)
        if new:
            self._sends.append((draftee.peer, draftee.draft(new, self._speed(len(expansion.rows)))))

    def _failed(self, draftees: list[Draftee]) -> None:
        """Rebuild what was in a failed forward; a sequence that fails again and again is left alone."""
        for draftee in draftees:
            if draftee.prefix and draftee.track is None:  # the prefix may be at fault
                self._before.append(self.prefixes.forget(draftee.prefix))
            draftee.failures += 1
            draftee.restart()
            if self._draftees.get(draftee.opening.seq) is draftee:
                self._before.append(Free(draftee.opening.seq))
