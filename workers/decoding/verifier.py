"""The verifier: owns the truth of every sequence. Messages, clock and outcomes in, actions out.

Its loop: take in messages -> choose windows -> one engine forward -> walk each tree from its root by the one
rule -> commit, tell the drafter, emit tokens.
"""

from __future__ import annotations

from collections import deque
from math import inf

from hetero.workers.decoding.acceptance import Walk, walk
from hetero.workers.decoding.gateways import Gateways, Remembered
from hetero.workers.decoding.partner import Partner
from hetero.workers.decoding.policy.speculation_switch import SpeculationSwitch
from hetero.workers.decoding.policy.speeds import Speeds
from hetero.workers.decoding.policy.strategy import Strategy
from hetero.workers.decoding.policy.window import Window, WindowPolicy, hint_of, report
from hetero.workers.decoding.prefix_cache import PrefixCache
from hetero.workers.decoding.protocol import Extend, Free, Job, Operation, Prefill, Step
from hetero.workers.decoding.target_sequence import TargetSequence, objection
from hetero.workers.decoding.trace import Trace
from hetero.workers.engines.base import EngineLimits, Outcome, Row
from hetero.workers.errors import EngineError, GrammarError, NotFinite
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.wire.messages import Cancel, Draft, Message, Open, Ping, Pong, Resume, Round


class Verifier:
    """State machine (``hetero.workers.decoding.protocol.Machine``) of the target's worker."""

    def __init__(
        self,
        epoch: int,
        limits: EngineLimits,
        vocabulary: Vocabulary,
        strategy: Strategy,
        tree_nodes: int = 2048,
        trace: Trace | None = None,
        cached: int = 0,
    ) -> None:
        """``cached``: tokens of finished sequences to keep for the prompts of later ones."""
        self.epoch = epoch
        self.dropped = 0  # messages that made no sense: unknown kind, stale draft
        self._limits = limits
        self._vocabulary = vocabulary
        self._strategy = strategy
        self._tree_nodes = tree_nodes
        self._trace = trace
        self.speeds = Speeds()
        self._windows = WindowPolicy(strategy, limits, vocabulary.ends, self.speeds)
        self._active: dict[int, TargetSequence] = {}  # in order of least recent service
        self._queue: deque[TargetSequence] = deque()  # admitted, waiting for a place in the engine
        self._sends: list[tuple[bytes, Message]] = []
        self._gateways = Gateways(epoch, self._sends)
        self._partner = Partner(epoch, self._sends)
        self._frees: list[Operation] = []
        self.prefixes = PrefixCache(cached, limits.chunk if limits.exact else 1)
        self._flight: list[Window] | None = None  # None: the engine is idle
        self._chunk: TargetSequence | None = None  # whose prefill chunk is in flight
        self._decoded_last = False  # prompt chunks and windows take turns
        self._ended = Remembered()
        self._alone: set[int] = set()  # sequences that were in a failed forward: run one by one

    # Recorder

    def receive(self, peer: bytes, message: Message, now: float) -> None:
        match message:
            case Open() if message.seq in self._ended:  # a frame seen before
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
        if peer == self._partner.peer:
            self._partner.forget(self._active.values())
            return
        self._gateways.forget(peer)
        for sequence in [s for s in (*self._active.values(), *self._queue) if s.peer == peer]:
            self._drop(sequence.seq)

    def completed(self, outcome: Outcome | EngineError | None, elapsed: float, now: float) -> None:
        flight, self._flight = self._flight or [], None
        chunk, self._chunk = self._chunk, None
        if isinstance(outcome, EngineError):
            self._failed(flight, chunk, outcome)
            return
        if outcome is None:
            return
        if chunk is None:
            self._measure(flight, elapsed)
        began = now - elapsed
        if self._trace is not None and chunk is not None:
            self._trace.span("verifier", "prompt", began, now, seq=chunk.seq)
        tokens = 0
        for window in flight:
            if self._active.get(window.sequence.seq) is window.sequence:
                walked = self._walk(window, outcome, now)
                if not window.root:
                    continue
                tokens += walked.tokens
                window.sequence.checked(window.drafted, walked.accepted, window.waited)
                if chunk is None:
                    self._account(window, walked, len(flight), elapsed, now)
                self._publish(window, walked, elapsed, now)
        if flight and chunk is None:
            self.speeds.rate.add(tokens, elapsed + max(window.waited for window in flight))

    def hinted(self, early: Outcome, now: float) -> None:
        """The forward in flight handed out its early exit: pass on what it thinks comes next (Mirror-SD)."""
        for window in self._flight or []:
            sequence = window.sequence
            if not window.root or sequence.drafter_length is None:
                continue
            try:
                hint = hint_of(window, early, self.epoch)
            except EngineError:  # no matter: the walk will meet it where it counts
                continue
            self._partner.send(hint)
            if self._trace is not None:
                self._trace.mark("verifier", "hint", now, seq=sequence.seq, rows=len(hint.tokens))

    def prepare(self) -> None:
        for window in self._flight or []:
            position = window.sequence.cursor.tree.position
            for ahead in range(len(window.rows)):
                window.sequence.sampler.prepare(position + 1 + ahead, self._limits.vocabulary)

    def step(self, now: float) -> Step:
        self._expire(now)
        self._admit(now)
        run, wake = None, inf
        if self._flight is None:
            run, wake = self._choose(now)
        self._tell(run is not None, now)
        step = Step(list(self._sends), run, min(wake, now + 1.0))
        self._sends.clear()
        return step

    @property
    def load(self) -> tuple[int, int]:
        """Sequences (in the engine, waiting), for health and tests."""
        return len(self._active), len(self._queue)

    @property
    def idle(self) -> bool:
        """No sequence is left and the engine has been told so."""
        return not self._active and not self._queue and not self._frees and self._flight is None

    # Requests

    def _open(self, peer: bytes, opening: Open, now: float) -> None:
        """Admit a sequence. Its prompt and output so far may come from outside: check them here."""
        self._gateways.alive(peer, now)
        if opening.seq in self._active or any(s.seq == opening.seq for s in self._queue):
            self.dropped += 1
            return
        wrong = objection(opening, self._limits.context, len(self._vocabulary))
        if wrong is not None:
            self._gateways.failed(peer, opening.seq, "invalid_request", wrong)
            return
        limit = min(opening.max_tokens, self._limits.context - len(opening.prompt))
        switch = SpeculationSwitch(probe=self._strategy.adapts and not self.speeds.plain)
        try:
            sequence = TargetSequence(opening, peer, self._vocabulary, limit, now, switch)
        except GrammarError as error:
            self._gateways.failed(peer, opening.seq, "invalid_request", str(error))
            return
        if sequence.reason is not None:  # a resumed sequence that had all its tokens
            self._emit(sequence, len(opening.prompt) + len(opening.committed), now)
            return
        self._queue.append(sequence)

    def _resume(self, peer: bytes, opening: Open, now: float) -> None:
        self._gateways.alive(peer, now)
        sequence = self._active.get(opening.seq) or next((s for s in self._queue if s.seq == opening.seq), None)
        if sequence is None:
            self._open(peer, opening, now)
            return
        sequence.peer = peer
        self._gateways.tokens(sequence, len(opening.prompt) + len(opening.committed))

    def _drop(self, seq: int, save: bool = True) -> None:
        """Free all a sequence holds; also in the drafter. ``save``: it may be kept as a prefix."""
        self._alone.discard(seq)
        self._ended.add(seq)
        sequence = self._active.pop(seq, None)
        if sequence is None:
            self._queue = deque(s for s in self._queue if s.seq != seq)
            return
        if save and not sequence.prefilling and sequence is not self._chunk:
            # In exact mode only chunks of a prompt are as they would be in the next one.
            output = [] if self._limits.exact else sequence.committed
            self._frees += self.prefixes.retire(sequence.cursor, [*sequence.opening.prompt, *output])
        self._frees.append(Free(seq))
        self._partner.close(sequence)

    def _admit(self, now: float) -> None:
        while self._queue and len(self._active) < self._limits.sequences:
            sequence = self._queue.popleft()
            self._active[sequence.seq] = sequence
            sequence.admitted(now)
            self._partner.offer(sequence)

    def _expire(self, now: float) -> None:
        if self._partner.silent(now):
            self._partner.forget(self._active.values())
        for peer in self._gateways.deserted(now):
            self.lost(peer, now)

    # The drafter

    def _ping(self, peer: bytes, ping: Ping, now: float) -> None:
        self._sends.append((peer, Pong(self.epoch)))
        if ping.role != "drafter":
            self._gateways.alive(peer, now)
            self._gateways.mend(peer, ping, self._active, {sequence.seq for sequence in self._queue})
        elif self._strategy.drafts:
            self._partner.pinged(peer, ping, self._active, now)

    def _draft(self, peer: bytes, draft: Draft, now: float) -> None:
        sequence = self._active.get(draft.seq)
        if sequence is None or draft.epoch != self.epoch or peer != self._partner.peer:
            self.dropped += 1
            return
        self._partner.alive(now)
        fresh = sequence.graft(draft, self._tree_nodes)
        sequence.drafter_length = max(sequence.drafter_length or 0, min(draft.base, sequence.length))
        if fresh:
            self.speeds.drafted(draft.seconds)
            if sequence.drafted_at < sequence.told_at and draft.base == sequence.length:
                self.speeds.answered(now - sequence.told_at)
            sequence.stalled = False
            sequence.drafted_at = now

    def _tell(self, started: bool, now: float) -> None:
        """Tell the drafter what was committed and, when windows start, how long they should take."""
        flying = self._flight if started and self._chunk is None and self._flight else []
        due = self.speeds.forward(sum(len(window.rows) for window in flying))
        checked = {window.sequence.seq for window in flying if window.drafted}
        for sequence in self._active.values():
            begins = sequence.seq in checked and self._strategy.adapts
            if sequence.news or begins:
                self._partner.tell(sequence, now, due if begins else 0.0)

    # WindowPolicy

    def _choose(self, now: float) -> tuple[Job | None, float]:
        """A job for the idle engine, or when to look again."""
        before = list(self._frees)
        self._frees = []
        ready, wake = self._ready(now)
        prefilling = next((s for s in self._active.values() if s.prefilling), None)
        if prefilling is not None and (not ready or self._decoded_last):
            self._decoded_last = False
            return Job(before, self._prefill(prefilling, before)), inf
        if not ready:
            return (Job(before, None) if self._busy(before) else None), wake
        if self._limits.exact or self._alone:
            ready = [next((s for s in ready if s.seq in self._alone), ready[0])]
        self._decoded_last = True
        rows: list[Row] = []
        self._flight = []
        for sequence in ready:
            room = self._limits.rows - len(rows)
            if room <= 0:
                break
            keep = sequence.cursor.keep(drafts=False)
            if keep is not None:
                before.append(keep)
            window, own = self._windows.window(sequence, room, len(rows), now)
            rows.extend(own)
            self._flight.append(window)
            self._serve(sequence)
        hint = self._strategy.hints and self._limits.early_exit and self._partner.peer is not None
        return Job(before, Extend(rows, hint)), inf

    def _busy(self, before: list[Operation]) -> bool:
        """Occupy the engine with cache operations alone, if there are any."""
        if before:
            self._flight = []
        return bool(before)

    def _serve(self, sequence: TargetSequence) -> None:
        """Move to the end of the order of service."""
        self._active[sequence.seq] = self._active.pop(sequence.seq)

    def _ready(self, now: float) -> tuple[list[TargetSequence], float]:
        """Sequences whose window should start now, and with them those that may join; else when the first wait ends."""
        ready, held, wake = [], [], inf
        for sequence in self._active.values():
            if sequence.prefilling:
                continue
            end = self._windows.waits(sequence, now)
            if now < end:
                if sequence.waiting_since is None:
                    sequence.waiting_since = now
                wake = min(wake, end)
                held.append(sequence)
                continue
            sequence.stalled = end > -inf  # the wait brought nothing
            ready.append(sequence)
        if self._strategy.shares and ready:
            ready += held
        return ready, wake

    def _measure(self, flight: list[Window], elapsed: float) -> None:
        """Learn from a forward of windows."""
        rows = sum(len(window.rows) for window in flight)
        self.speeds.forward.add(rows, elapsed)
        undisturbed = self._partner.peer is None or all(window.sequence.switch.resting for window in flight)
        if rows == len(flight) and undisturbed:
            self.speeds.plain.add(rows, elapsed)

    def _prefill(self, sequence: TargetSequence, before: list[Operation]) -> Prefill:
        """The next chunk of a prompt; ``before`` may get what loads its beginning."""
        if not sequence.prefilled and (load := self.prefixes.load(sequence.seq, sequence.opening.prompt)) is not None:
            before.append(load)
            sequence.prefilled = sequence.cached = load.length
            sequence.prefix = load.key
        chunk = sequence.opening.prompt[sequence.prefilled : sequence.prefilled + self._limits.chunk]
        sequence.prefilled += len(chunk)
        done = not sequence.prefilling
        first = done and not sequence.committed
        rows = {0: 0} if first else {}
        self._flight = [Window(sequence, rows, 0, first)] if done else []
        self._chunk = sequence
        return Prefill(sequence.seq, chunk)

    def _walk(self, window: Window, outcome: Outcome, now: float) -> Walk:
        """Commit what a window decided."""
        sequence = window.sequence
        self._alone.discard(sequence.seq)
        sequence.started(now)
        sequence.cursor.evaluated(node for node in window.rows if node)
        if not window.root:
            return Walk()
        return walk(sequence.cursor, window.rows, outcome, sequence.sampler, sequence.take)

    def _account(self, window: Window, walked: Walk, beside: int, elapsed: float, now: float) -> None:
        """What a window cost and brought; ``beside`` windows shared its forward."""
        sequence = window.sequence
        self.speeds.checked(walked)
        if self._strategy.adapts and not sequence.opening.plain:
            sequence.switch.round(walked.tokens, elapsed + window.waited, self.speeds.plain(beside))
        if self._trace is not None:
            report(self._trace, window, walked.accepted, elapsed, now)

    def _publish(self, window: Window, walked: Walk, elapsed: float, now: float) -> None:
        """Send what a walk committed, to the gateway and to the drafter."""
        sequence = window.sequence
        spent, sequence.drafting_s = sequence.drafting_s, 0.0
        round_ = Round(window.drafted, walked.accepted, 1e3 * elapsed, 1e3 * window.waited, 1e3 * spent)
        self._emit(sequence, sequence.length - walked.tokens, now, round_)
        if walked.failure is not None:
            code = "not_finite" if isinstance(walked.failure, NotFinite) else "engine_error"
            self._fail(sequence, code, str(walked.failure))
        elif not walked.ended and not sequence.switch.resting:
            sequence.news = True

    def _emit(self, sequence: TargetSequence, base: int, now: float, round_: Round | None = None) -> None:
        """Send what was committed from position ``base`` on, and the end if this was it."""
        self._gateways.tokens(sequence, base, round_)
        if sequence.reason is not None:
            self._gateways.finished(sequence, sequence.stats(now, self.speeds.plain(1)))
            self._drop(sequence.seq)

    def _failed(self, flight: list[Window], chunk: TargetSequence | None, error: EngineError) -> None:
        """A forward failed: one sequence is at fault at most, so try each alone before giving one up."""
        involved = [chunk] if chunk is not None else [window.sequence for window in flight]
        if chunk is not None and chunk.prefix:  # it may be at fault: once more without
            self._frees += [Free(chunk.seq), self.prefixes.forget(chunk.prefix)]
            chunk.prefix = chunk.prefilled = chunk.cached = 0
        elif len(involved) == 1:
            self._fail(involved[0], "engine_error", str(error))
        else:
            self._alone.update(sequence.seq for sequence in involved)

    def _fail(self, sequence: TargetSequence, code: str, why: str) -> None:
        if sequence.seq in self._active:
            self._gateways.failed(sequence.peer, sequence.seq, code, why)
            self._drop(sequence.seq, save=False)
