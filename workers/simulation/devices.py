"""Devices of given speed, for simulated workers: a toy engine that computes, and one whose outcomes are drawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hetero.placement.agreement import RANKS, Agreement
from hetero.workers.decoding.protocol import Extend, Job, Prefill
from hetero.workers.engines.base import EngineLimits, Outcome, Row
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


TOKENS = RANKS + 2  # of a pair without models: 0.. are the drafter's candidates in order; RANKS is none of them


class DrawnDevice:
    """No model at all: the drafter's candidates are always 0, 1, 2, ...; an ``Agreement`` has which the target takes.

    ``seconds(rows)``: of a forward; ``look``: seconds of each row that is looked at, paid with the next forward;
    ``prompt``: seconds of a chunk of a prompt; ``calibrate``: of a forward of committed tokens, where those are
    evaluated apart from the others.
    """

    def __init__(
        self,
        limits: EngineLimits,
        seconds: Callable[[int], float],
        agreement: Agreement,
        prompt: float = 1e-3,
        look: float = 0.0,
        calibrate: Callable[[int], float] | None = None,
    ) -> None:
        self.limits = limits
        self.busy = 0.0  # seconds so far
        self._seconds, self._agreement, self._prompt, self._look = seconds, agreement, prompt, look
        self._calibrate = calibrate
        self._looked = 0

    def run(self, job: Job) -> Ran:
        match job.forward:
            case Extend(rows, hint):
                seconds = self._forward(rows) + self._looked * self._look
                self._looked = 0
            case Prefill():
                seconds, hint = self._prompt, False
            case None:
                return Ran(0.0, None)
        self.busy += seconds
        return Ran(seconds, _Drawn(self), _Exit(self) if hint else None)

    def _forward(self, rows: Sequence[Row]) -> float:
        committed = sum(row.committed for row in rows) if self._calibrate is not None else 0
        guessed = len(rows) - committed
        seconds = self._seconds(guessed) if guessed else 0.0
        return seconds + self._calibrate(committed) if committed and self._calibrate is not None else seconds

    def at(self, sampler: Sampler, position: int) -> tuple[int, tuple[float, ...]]:
        """What was drawn for a position: alike for both roles, another for each seed."""
        self._looked += 1
        place, found = position + 7919 * sampler.spec.seed, self._agreement
        return found.ranks[place % len(found.ranks)], found.confidences[place % len(found.confidences)]


class _Drawn(Outcome):
    def __init__(self, device: DrawnDevice) -> None:
        self._device = device

    def logits(self, row: int) -> Logits:
        raise NotImplementedError("drawn outcomes have no logits")

    def sample(self, row: int, sampler: Sampler, position: int) -> int:
        return self._device.at(sampler, position)[0]

    def candidates(self, row: int, sampler: Sampler, position: int, count: int) -> Candidates:
        told = self._device.at(sampler, position)[1][:count]
        return Candidates(list(range(len(told))), list(told))


class _Exit(_Drawn):
    """An early exit that has the target's token among its likeliest, the more often first."""

    def candidates(self, row: int, sampler: Sampler, position: int, count: int) -> Candidates:
        own, taken = random.Random(position), self.sample(row, sampler, position)
        tokens = [t for t in range(RANKS) if t != taken][: count - 1]
        tokens.insert(0 if own.random() < 0.6 else min(1, len(tokens)), taken)
        if own.random() < 0.1:
            tokens.remove(taken)
        return Candidates(tokens[:count], [1.0] * len(tokens[:count]))
