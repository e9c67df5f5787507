"""Devices of given speed, for simulated workers: a toy engine that computes, and one whose outcomes are drawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hetero.workers.decoding.protocol import Extend, Job, Prefill
from hetero.workers.engines.base import EngineLimits, Outcome
from hetero.workers.engines.table import TableEngine
from hetero.workers.errors import EngineError
from hetero.workers.sampling.logits_processors import Logits
from hetero.workers.sampling.sampler import Candidates, Sampler


@dataclass(frozen=True, slots=True)
class Ran:
    """A job that was run: its virtual seconds, what comes of it, and its early exit, which shows at half time."""

    seconds: float
    outcome: Outcome | EngineError | None
    early: Outcome | None = None


class Device(Protocol):
    """Where a simulated worker's engine is."""

    limits: EngineLimits

    def run(self, job: Job) -> Ran:
        """Run a job."""


class TableDevice:
    """Runs jobs on a ``table`` engine; ``seconds()`` says how long each takes."""

    def __init__(self, engine: TableEngine, seconds: Callable[[], float]) -> None:
        self.engine = engine
        self.limits = engine.limits
        self.errors: list[EngineError] = []
        self._seconds = seconds

    def run(self, job: Job) -> Ran:
        seconds, early = self._seconds(), list[Outcome]()
        try:
            outcome: Outcome | EngineError | None = job.execute(self.engine, early.append)
        except EngineError as error:
            self.errors.append(error)
            outcome = error
        return Ran(seconds, outcome, early[0] if early else None)


# Acceptance of a drawn pair: the chance that the target takes the drafter's n-th choice.
CHANCES = (0.80, 0.10, 0.04, 0.02, 0.01, 0.01)
DRAWN_VOCABULARY = 8  # tokens 0 to 5 are the drafter's choices in order; 6 is none of them


class DrawnDevice:
    """No model at all: the drafter's choices are always 0, 1, 2, ..., the target's tokens were drawn beforehand.

    ``seconds(rows)``: of a forward; ``prompt``: of a chunk of a prompt; ``draws``: the target's token at each position,
    by sequence.
    """

    def __init__(
        self,
        limits: EngineLimits,
        seconds: Callable[[int], float],
        draws: Mapping[int, Sequence[int]],
        prompt: float = 1e-3,
    ) -> None:
        self.limits = limits
        self.busy = 0.0
        self._seconds, self._draws, self._prompt = seconds, draws, prompt

    def run(self, job: Job) -> Ran:
        match job.forward:
            case Extend(rows, hint):
                seqs, seconds = [row.seq for row in rows], self._seconds(len(rows))
            case Prefill(seq):
                seqs, seconds, hint = [seq], self._prompt, False
            case None:
                return Ran(0.0, None)
        draws = [self._draws.get(seq, ()) for seq in seqs]
        self.busy += seconds
        return Ran(seconds, _Drawn(draws), _Exit(draws) if hint else None)


class _Drawn(Outcome):
    """``draws``: for each row those of its sequence."""

    def __init__(self, draws: Sequence[Sequence[int]]) -> None:
        self._draws = draws

    def logits(self, row: int) -> Logits:
        raise NotImplementedError("drawn outcomes have no logits")

    def sample(self, row: int, sampler: Sampler, position: int) -> int:
        return self._draws[row][position]

    def candidates(self, row: int, sampler: Sampler, position: int, count: int) -> Candidates:
        count = min(count, len(CHANCES))
        return Candidates(list(range(count)), [1.0] * count)


class _Exit(_Drawn):
    """An early exit that has the target's token among its likeliest, the more often first."""

    def candidates(self, row: int, sampler: Sampler, position: int, count: int) -> Candidates:
        own, taken = random.Random(position), self._draws[row][position]
        tokens = [t for t in range(len(CHANCES)) if t != taken][: count - 1]
        tokens.insert(0 if own.random() < 0.6 else min(1, len(tokens)), taken)
        if own.random() < 0.1:
            tokens.remove(taken)
        return Candidates(tokens[:count], [1.0] * len(tokens[:count]))
