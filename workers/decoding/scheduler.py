"""What the target's engine does next: cache operations, a chunk of a prompt, or the windows of sequences."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from hetero.workers.decoding.policy.strategy import Strategy
from hetero.workers.decoding.policy.window import Hold, Window, WindowPolicy
from hetero.workers.decoding.prefix_cache import PrefixCache
from hetero.workers.decoding.protocol import Extend, Free, Job, Operation, Prefill
from hetero.workers.decoding.roster import Roster
from hetero.workers.decoding.target_sequence import TargetSequence
from hetero.workers.engines.base import EngineLimits


@dataclass(slots=True)
class Flight:
    """The job the engine is busy with: the ``windows`` it will decide, and whose prompt it is a ``chunk`` of, from
    token ``first`` on."""

    windows: list[Window] = field(default_factory=list)
    chunk: TargetSequence | None = None
    first: int = 0


class Scheduler:
    """Chooses jobs. Prompt chunks and windows take turns; ready sequences share a forward where the engine can."""

    def __init__(
        self, limits: EngineLimits, strategy: Strategy, roster: Roster, windows: WindowPolicy, prefixes: PrefixCache
    ) -> None:
        self.flight: Flight | None = None  # None: the engine is idle
        self._limits = limits
        self._strategy = strategy
        self._roster = roster
        self._windows = windows
        self._prefixes = prefixes
        self._operations: list[Operation] = []  # go before the next forward
        self._decoded_last = False
        self._alone: set[int] = set()  # sequences that were in a failed forward: run one by one

    def follow(self, strategy: Strategy, windows: WindowPolicy) -> None:
        """Choose by another strategy from now on."""
        self._strategy, self._windows = strategy, windows

    @property
    def idle(self) -> bool:
        """Nothing is under way or waits to be done."""
        return self.flight is None and not self._operations

    def next_job(self, hint: bool, now: float) -> tuple[Job | None, float]:
        """A job for the idle engine, or when to look again. ``hint``: somebody would use an early exit."""
        before, self._operations = self._operations, []
        ready, wake = self._ready(now)
        prefilling = next((s for s in self._roster.active.values() if not s.prompt.complete), None)
        if prefilling is not None and (not ready or self._decoded_last):
            self._decoded_last = False
            return Job(before, self._prefill(prefilling, before)), inf
        if not ready:
            if before:  # cache operations alone
                self.flight = Flight()
                return Job(before, None), wake
            return None, wake
        if self._limits.exact or self._alone:
            ready = [next((s for s in ready if s.seq in self._alone), ready[0])]
        self._decoded_last = True
        taken: list[TargetSequence] = []
        room = self._limits.rows
        for sequence in ready:
            if room <= 0:
                break
            keep = sequence.cursor.keep(drafts=False)
            if keep is not None:
                before.append(keep)
            taken.append(sequence)
            room -= len(sequence.cursor.pending)
            self._roster.serve(sequence)
        windows, rows = self._windows.windows(taken, now)
        self.flight = Flight(windows)
        return Job(before, Extend(rows, hint and self._strategy.hints and self._limits.early_exit)), inf

    def landed(self) -> Flight:
        """The job ended; returns what it was."""
        flight, self.flight = self.flight or Flight(), None
        return flight

    def decided(self, sequence: TargetSequence) -> None:
        """A forward with this sequence succeeded."""
        self._alone.discard(sequence.seq)

    def failed(self, flight: Flight) -> TargetSequence | None:
        """A forward failed, of one sequence at most: it is returned where it is known, else each is tried alone."""
        chunk = flight.chunk
        if chunk is not None and chunk.prompt.cache_key:  # the cached prefix may be at fault: once more without
            self._operations += [Free(chunk.seq), self._prefixes.forget(chunk.prompt.cache_key)]
            chunk.prompt.restart()
            chunk.costs.cached = 0
            return None
        involved = [chunk] if chunk is not None else [window.sequence for window in flight.windows]
        if len(involved) == 1:
            return involved[0]
        self._alone.update(sequence.seq for sequence in involved if sequence.seq in self._roster.active)
        return None

    def free(self, sequence: TargetSequence, save: bool) -> None:
        """Free what the engine holds of a sequence that ended. ``save``: it may be kept as a prefix."""
        self._alone.discard(sequence.seq)
        prefilling = self.flight is not None and self.flight.chunk is sequence
        if save and sequence.prompt.complete and not prefilling:
            # In exact mode only chunks of a prompt are as they would be in the next one.
            output = [] if self._limits.exact else sequence.output.committed
            self._operations += self._prefixes.retire(
                sequence.cursor, [*sequence.prompt.tokens, *output], sequence.features
            )
        self._operations.append(Free(sequence.seq))

    def _ready(self, now: float) -> tuple[list[TargetSequence], float]:
        """Sequences whose window should start now, and with them those that may join; else when the first wait ends."""
        ready: list[TargetSequence] = []
        held: list[TargetSequence] = []
        wake = inf
        for sequence in self._roster.active.values():
            if not sequence.prompt.complete:
                continue
            decision = self._windows.decide(sequence, now)
            if isinstance(decision, Hold):
                if sequence.waiting_since is None:
                    sequence.waiting_since = now
                wake = min(wake, decision.until)
                held.append(sequence)
            else:
                ready.append(sequence)
        if self._strategy.shares and ready:
            ready += held
        return ready, wake

    def _prefill(self, sequence: TargetSequence, before: list[Operation]) -> Prefill:
        """The next chunk of a prompt; ``before`` may get what loads its beginning."""
        prompt = sequence.prompt
        every = sequence.opening.prompt_logprobs >= 0 and not sequence.output.committed  # nothing may be left out
        if (
            not prompt.evaluated
            and not every
            and (load := self._prefixes.load(sequence.seq, prompt.tokens)) is not None
        ):
            before.append(load)
            prompt.evaluated = sequence.costs.cached = load.length
            prompt.cache_key = load.key
            if sequence.features is not None and (features := self._prefixes.features(load)) is not None:
                sequence.features.put(0, features)
        begin = prompt.evaluated
        chunk = prompt.tokens[begin : begin + self._limits.chunk]
        prompt.evaluated += len(chunk)
        first = prompt.complete and not sequence.output.committed
        rows = {0: len(chunk) - 1 if every else 0} if first else {}
        self.flight = Flight([Window(sequence, rows, 0, first)] if prompt.complete else [], sequence, begin)
        return Prefill(sequence.seq, chunk, every)
