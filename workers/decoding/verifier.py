"""The verifier: owns the truth of every sequence. Messages, clock and outcomes in, actions out.

Its loop: take in messages -> choose windows -> one engine forward -> walk each tree from its root by the one
rule -> commit, tell the drafters, emit tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from hetero.workers.decoding.acceptance import Walk, walk
from hetero.workers.decoding.early_exit import hint_of
from hetero.workers.decoding.feature_run import FeatureRun
from hetero.workers.decoding.peers import Drafters, Gateways
from hetero.workers.decoding.policy import tuning
from hetero.workers.decoding.policy.choice import Record
from hetero.workers.decoding.policy.speculation_switch import SpeculationSwitch
from hetero.workers.decoding.policy.speeds import Speeds
from hetero.workers.decoding.policy.strategy import Strategy
from hetero.workers.decoding.policy.window import Window, WindowPolicy
from hetero.workers.decoding.prefix_cache import PrefixCache
from hetero.workers.decoding.proposers.past import Past
from hetero.workers.decoding.protocol import Sends, Step
from hetero.workers.decoding.roster import Roster
from hetero.workers.decoding.scheduler import Flight, Scheduler
from hetero.workers.decoding.target_sequence import TargetSequence, objection
from hetero.workers.decoding.trace import Trace
from hetero.workers.engines.base import EngineLimits, Outcome
from hetero.workers.errors import EngineError, GrammarError, NotFinite
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.wire.messages import Cancel, Draft, Message, Open, Ping, Pong, Resume, Round


class Verifier:
    """State machine (``protocol.Machine``) of the target's worker."""

    def __init__(
        self,
        epoch: int,
        limits: EngineLimits,
        vocabulary: Vocabulary,
        strategy: Strategy,
        tree_nodes: int = 2048,
        trace: Trace | None = None,
        cached: int = 0,
        past: Past | None = None,
    ) -> None:
        """``tree_nodes``: most draft tokens of a sequence; ``cached``: tokens of finished sequences to keep for the
        prompts of later ones; ``past``: proposes what stood in a text before (None: nobody does)."""
        self.epoch = epoch
        self.dropped = 0  # messages that made no sense: unknown kind, stale draft
        self.speeds = Speeds()
        self.record = Record()
        self.drafters = Drafters(epoch)
        self.prefixes = PrefixCache(cached if limits.prefixes else 0, limits.chunk if limits.exact else 1)
        self._past = past
        self._limits = limits
        self._vocabulary = vocabulary
        self._strategy = strategy
        self._tree_nodes = tree_nodes
        self._trace = trace
        self._gateways = Gateways(epoch)
        self._roster = Roster(limits.sequences)
        self._scheduler = Scheduler(limits, strategy, self._roster, self._windows(), self.prefixes)
        self._sends: Sends = []  # leave with the next step

    def follow(self, strategy: Strategy) -> None:
        """Go on by another strategy; no token changes by it."""
        self._strategy = strategy
        self._scheduler.follow(strategy, self._windows())
        for sequence in self._roster:
            sequence.switch = self._switch(sequence.switch.plain)
            if not strategy.drafts:
                self._sends += self.drafters.close(sequence)
        for drafter in self.drafters if not strategy.drafts else ():
            self.drafters.forget(drafter, self._roster)

    def _switch(self, plain: int = 0) -> SpeculationSwitch:
        return SpeculationSwitch(self._strategy.adapts and not self.speeds.plain, plain)

    def _windows(self) -> WindowPolicy:
        return WindowPolicy(self._strategy, self._limits, self._vocabulary.ends, self.speeds, self.drafters)

    # Events

    def receive(self, peer: bytes, message: Message, now: float) -> None:
        match message:
            case Open() if self._roster.ended(message.seq):  # a frame seen before
                self.dropped += 1
            case Open():
                self._open(peer, message, now)
            case Resume():
                self._resume(peer, message.opening, now)
            case Cancel():
                self._drop(message.seq)
            case Draft():
                self._draft(peer, message, now)
            case Ping():
                self._ping(peer, message, now)
            case _:
                self.dropped += 1

    def lost(self, peer: bytes, now: float) -> None:
        if (drafter := self.drafters.at(peer)) is not None:
            self.drafters.forget(drafter, self._roster)
            return
        self._gateways.forget(peer)
        for sequence in [sequence for sequence in self._roster if sequence.gateway == peer]:
            self._drop(sequence.seq)

    def completed(self, outcome: Outcome | EngineError | None, elapsed: float, now: float) -> None:
        flight = self._scheduler.landed()
        if isinstance(outcome, EngineError):
            culprit = self._scheduler.failed(flight)
            if culprit is not None:
                self._fail(culprit, "engine_error", str(outcome))
            return
        if outcome is None:
            return
        if flight.chunk is None:
            self._measure(flight.windows, elapsed)
        else:
            self._weigh_prompt(flight.chunk, flight.first, outcome)
            self._hand_out(flight.chunk, flight.first, range(flight.chunk.prompt.evaluated - flight.first), outcome)
            if self._trace is not None:
                self._trace.span("verifier", "prompt", now - elapsed, now, seq=flight.chunk.seq)
        tokens = 0
        for window in flight.windows:
            if self._roster.active.get(window.sequence.seq) is window.sequence:
                tokens += self._decided(window, flight, outcome, elapsed, now)
        if flight.windows and flight.chunk is None:
            self.speeds.rate.add(tokens, elapsed + max(window.waited for window in flight.windows))

    def early_exit(self, early: Outcome, now: float) -> None:
        """The forward in flight handed out its early exit: pass on what it thinks comes next (Mirror-SD)."""
        for window in self._windows_in_flight:
            sequence = window.sequence
            if not window.root or not sequence.drafters:
                continue
            try:
                hint = hint_of(window, early, self.epoch)
            except EngineError:  # no matter: the walk will meet it where it counts
                continue
            self._sends += self.drafters.send(sequence, hint)
            if self._trace is not None:
                self._trace.mark("verifier", "hint", now, seq=sequence.seq, rows=len(hint.tokens))

    def prepare(self) -> None:
        for window in self._windows_in_flight:
            position = window.sequence.cursor.tree.position
            for ahead in range(len(window.rows)):
                window.sequence.sampler.prepare(position + 1 + ahead, self._limits.vocabulary)

    def step(self, now: float) -> Step:
        self._expire(now)
        self._admit(now)
        job, wake = None, inf
        if self._scheduler.flight is None:
            job, wake = self._scheduler.next_job(len(self.drafters) > 0, now)
        self._tell(job is not None, now)
        sends, self._sends = self._sends, []
        return Step(sends, job, min(wake, now + 1.0))

    @property
    def _windows_in_flight(self) -> list[Window]:
        flight = self._scheduler.flight
        return flight.windows if flight is not None else []

    @property
    def counts(self) -> tuple[int, int]:
        """Sequences (in the engine, waiting), for health and tests."""
        return self._roster.counts

    @property
    def idle(self) -> bool:
        """No sequence is left and the engine has been told so."""
        return self.counts == (0, 0) and self._scheduler.idle

    # Requests

    def _open(self, peer: bytes, opening: Open, now: float) -> None:
        """Admit a sequence. Its prompt and output so far may come from outside: check them here."""
        self._gateways.alive(peer, now)
        if self._roster.find(opening.seq) is not None:
            self.dropped += 1
            return
        wrong = objection(opening, self._limits.context, len(self._vocabulary))
        if wrong is not None:
            self._sends += self._gateways.failed(peer, opening.seq, "invalid_request", wrong)
            return
        limit = min(opening.max_tokens, self._limits.context - len(opening.prompt))
        try:
            sequence = TargetSequence(opening, peer, self._vocabulary, limit, now, self._switch(), self._past)
        except GrammarError as error:
            self._sends += self._gateways.failed(peer, opening.seq, "invalid_request", str(error))
            return
        if self._limits.features:  # also of one without drafts: it may become the beginning of another
            sequence.features = FeatureRun(self._limits.features)
        if sequence.output.reason is not None:  # a resumed sequence that had all its tokens
            self._emit(sequence, len(opening.prompt) + len(opening.committed), now)
            return
        self._roster.enqueue(sequence)

    def _resume(self, peer: bytes, opening: Open, now: float) -> None:
        self._gateways.alive(peer, now)
        sequence = self._roster.find(opening.seq)
        if sequence is None:
            self._open(peer, opening, now)
            return
        sequence.gateway = peer
        self._sends += self._gateways.tokens(sequence, len(opening.prompt) + len(opening.committed))

    def _drop(self, seq: int, save: bool = True) -> None:
        """Free all a sequence holds; also in the drafters. ``save``: it may be kept as a prefix."""
        sequence = self._roster.end(seq)
        if sequence is None:
            return
        if save and self._past is not None and not sequence.opening.plain:
            self._past.learn(sequence.opening.owner, sequence.output.committed)
        self._scheduler.free(sequence, save)
        self.record.learn(frozenset(sequence.drafters), sequence.switch.seconds, sequence.switch.alone)
        self._sends += self.drafters.close(sequence)

    def _admit(self, now: float) -> None:
        for sequence in self._roster.admit():
            sequence.costs.admitted(now)
            if self._strategy.adapts and self.drafters and not sequence.opening.plain:
                choice = self.record.choose(peer.index for peer in self.drafters)
                sequence.chosen = choice.drafters
                if choice.rests:
                    sequence.switch.rest()
            self._sends += self.drafters.offer(sequence, now)

    def _expire(self, now: float) -> None:
        for drafter in self.drafters.silent(now):
            self.drafters.forget(drafter, self._roster)
        for peer in self._gateways.deserted(now):
            self.lost(peer, now)

    # Drafters

    def _ping(self, peer: bytes, ping: Ping, now: float) -> None:
        self._sends.append((peer, Pong(self.epoch)))
        active = self._roster.active
        if ping.role != "drafter":
            self._gateways.alive(peer, now)
            self._sends += self._gateways.mend(peer, ping, active, self._roster.waiting)
        elif self._strategy.drafts:
            self._sends += self.drafters.pinged(peer, ping, active, now)

    def _draft(self, peer: bytes, draft: Draft, now: float) -> None:
        sequence, drafter = self._roster.active.get(draft.seq), self.drafters.at(peer)
        if sequence is None or drafter is None or draft.epoch != self.epoch:
            self.dropped += 1
            return
        drafter.heard = now
        view = sequence.drafters.get(drafter.index)
        if view is None:  # not known to be open there: the next ping tells
            return
        fresh = sequence.graft(draft, self._tree_nodes, drafter.index)
        view.length = max(view.length, min(draft.base, sequence.length))
        if fresh:
            drafter.drafted += fresh
            drafter.speeds.drafted(draft.seconds)
            if view.drafted_at < view.told_at and draft.base == sequence.length:
                drafter.speeds.answered(now - view.told_at)
            view.drafted_at = now
            view.vain = False

    def _tell(self, started: bool, now: float) -> None:
        """Tell the drafters what was committed and, when windows start, how long they should take."""
        flight = self._scheduler.flight
        windows = flight.windows if started and flight is not None and flight.chunk is None else []
        due = self.speeds.forward(sum(len(window.rows) for window in windows))
        drafted = [window.sequence for window in windows if window.drafted] if self._strategy.adapts else []
        checked = {sequence.seq for sequence in drafted if not sequence.switch.resting}
        for sequence in self._roster.active.values():
            self._sends += self.drafters.tell(sequence, now, due, sequence.seq in checked)

    # What a forward brought

    def _measure(self, windows: list[Window], elapsed: float) -> None:
        """Learn from a forward of windows."""
        rows = sum(len(window.rows) for window in windows)
        self.speeds.forward.add(rows, elapsed)
        undisturbed = not self.drafters or all(window.sequence.switch.resting for window in windows)
        if rows == len(windows) and undisturbed:
            self.speeds.plain.add(rows, elapsed)

    def _decided(self, window: Window, flight: Flight, outcome: Outcome, elapsed: float, now: float) -> int:
        """Commit what a window decided and publish it; returns the tokens it committed."""
        sequence = window.sequence
        self._scheduler.decided(sequence)
        sequence.costs.started(now)
        sequence.cursor.evaluated(node for node in window.rows if node)
        due = sequence.cursor.pending  # they come first among the rows, and end with the root
        rows = [window.rows[node] for node in due if node in window.rows] if flight.chunk is None else []
        base = sequence.length - len(due)
        if not window.root:
            self._hand_out(sequence, base, rows, outcome)
            return 0
        walked = walk(sequence.cursor, window.rows, outcome, sequence.sampler, sequence.take)
        if rows:
            self._hand_out(sequence, base, [*rows[:-1], *walked.rows], outcome)
        if missed := self._missed(sequence, walked):
            self._sends += self.drafters.correct(sequence, missed, outcome)
        sequence.costs.checked(window.sources, walked.sources, window.waited)
        if not self.drafters and not window.drafted:
            sequence.costs.alone += walked.tokens
        for drafter in self.drafters:
            drafter.accepted += walked.drafters[drafter.index]
        if flight.chunk is None:
            self._account(window, walked, flight.windows, elapsed, now)
        if not walked.ended:
            sequence.propose(self._tree_nodes)
        self._publish(window, walked, elapsed, now)
        return walked.tokens

    def _missed(self, sequence: TargetSequence, walked: Walk) -> list[tuple[int, int]]:
        """Where drafters that learn are corrected; while they rest, at some of all places."""
        if not sequence.switch.resting:
            return walked.missed
        first = sequence.length - walked.tokens
        places = [(row, first + at) for at, row in enumerate(walked.rows[: walked.tokens])]
        return [(row, place) for row, place in places if place % tuning.TAUGHT == 0]

    def _hand_out(self, sequence: TargetSequence, base: int, rows: Sequence[int], outcome: Outcome) -> None:
        """Keep the features of committed tokens, those of ``rows``, from position ``base`` on, and tell heads."""
        run = sequence.features
        if run is None or not rows:
            return
        run.put(base, outcome.features(rows))
        if self._roster.active.get(sequence.seq) is sequence and sequence.output.reason is None:
            self._sends += self.drafters.features(sequence, max(run.first, sequence.features_told))
            sequence.features_told = run.end

    def _weigh_prompt(self, sequence: TargetSequence, first: int, outcome: Outcome) -> None:
        """Tell what the model thinks of a prompt's tokens behind those of a chunk, where that is asked for."""
        if self._roster.active.get(sequence.seq) is not sequence:
            return
        try:
            self._sends += self._gateways.prompt(sequence, first, outcome)
        except NotFinite as error:
            self._fail(sequence, "not_finite", str(error))

    def _account(self, window: Window, walked: Walk, shared: list[Window], elapsed: float, now: float) -> None:
        """What a window cost and brought, which shared its forward with others."""
        sequence = window.sequence
        self.speeds.checked(walked)
        if self._strategy.adapts and self.drafters and not sequence.opening.plain:
            alone = self.speeds.alone(len(shared), sum(other.found for other in shared))
            rows = sum(len(other.rows) for other in shared)
            others = sum(other.drafted - other.found for other in shared if other is not window)
            own = elapsed * self.speeds.share(rows - others, rows)  # what others' drafts cost is not its affair
            sequence.switch.round(walked.tokens, walked.accepted - walked.found, own + window.waited, alone)
        if self._trace is None:
            return
        began = now - elapsed
        if window.waited > 0:
            self._trace.span("wait", "wait", began - window.waited, began, seq=sequence.seq)
        name = f"window of {window.drafted}, {walked.accepted} accepted"
        facts = {"rows": len(window.rows), "drafted": window.drafted, "accepted": walked.accepted}
        self._trace.span("verifier", name, began, now, seq=sequence.seq, **facts)
        self._trace.mark("verifier", "commit", now, seq=sequence.seq, length=sequence.length)

    def _publish(self, window: Window, walked: Walk, elapsed: float, now: float) -> None:
        """Send what a walk committed, to the gateway and to the drafters."""
        sequence = window.sequence
        spent, sequence.draft_s = sequence.draft_s, 0.0
        round_ = Round(window.drafted, walked.accepted, 1e3 * elapsed, 1e3 * window.waited, 1e3 * spent)
        self._emit(sequence, sequence.length - walked.tokens, now, round_)
        if walked.failure is not None:
            codes = {NotFinite: "not_finite", GrammarError: "invalid_request"}
            self._fail(sequence, codes.get(type(walked.failure), "engine_error"), str(walked.failure))
        elif not walked.ended and not sequence.switch.resting:
            for view in sequence.drafters.values():
                view.news = True

    def _emit(self, sequence: TargetSequence, base: int, now: float, round_: Round | None = None) -> None:
        """Send what was committed from position ``base`` on, and the end if this was it."""
        self._sends += self._gateways.tokens(sequence, base, round_)
        if sequence.output.reason is not None:
            self._sends += self._gateways.finished(sequence, sequence.stats(self.speeds.plain(1), now))
            self._drop(sequence.seq)

    def _fail(self, sequence: TargetSequence, code: str, why: str) -> None:
        if sequence.seq in self._roster.active:
            self._sends += self._gateways.failed(sequence.gateway, sequence.seq, code, why)
            self._drop(sequence.seq, save=False)
