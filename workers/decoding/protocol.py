"""The contract between a sans-IO state machine (verifier, drafter) and whatever drives it.

Events go in (``receive``, ``completed``, ``lost``), ``step`` says what to do now. The actor shell drives machines
with sockets and threads, the simulator with a virtual clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Protocol, TypeAlias

from hetero.workers.engines.base import Engine, Features, Head, Learner, Lesson, OnEarlyExit, Outcome, Row
from hetero.workers.errors import EngineError
from hetero.workers.wire.messages import Message


@dataclass(frozen=True, slots=True)
class Keep:
    """Commit a sequence's engine state at a node; see ``Engine.commit``."""

    seq: int
    node: int
    keep: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Free:
    """Close a sequence in the engine."""

    seq: int


@dataclass(frozen=True, slots=True)
class SavePrefix:
    """Keep the first ``length`` tokens of a sequence under ``key``; it is closed next. See ``Engine.save_prefix``."""

    seq: int
    key: int
    length: int


@dataclass(frozen=True, slots=True)
class LoadPrefix:
    """Begin a sequence with the first ``length`` tokens kept under ``key``."""

    seq: int
    key: int
    length: int


@dataclass(frozen=True, slots=True)
class DropPrefix:
    """Forget what is kept under ``key``."""

    key: int


@dataclass(frozen=True, slots=True)
class Inform:
    """Tell a head the target's features; see ``Head.inform``."""

    seq: int
    first: int
    features: Features


Operation: TypeAlias = Keep | Free | SavePrefix | LoadPrefix | DropPrefix | Inform


@dataclass(frozen=True, slots=True)
class Prefill:
    """One chunk of a prefix; logits of its last token, or of ``every`` one."""

    seq: int
    tokens: Sequence[int]
    every: bool = False


@dataclass(frozen=True, slots=True)
class Extend:
    """One forward over rows of one or several sequences; with ``hint`` the engine's early exit is wanted."""

    rows: Sequence[Row]
    hint: bool = False


@dataclass(frozen=True, slots=True)
class Study:
    """A step of learning; see ``Learner.study``."""

    lessons: Sequence[Lesson]


@dataclass(frozen=True, slots=True)
class Job:
    """A job for the engine: cache operations in order, then at most one forward, or a step of learning."""

    before: Sequence[Operation]
    forward: Prefill | Extend | Study | None

    @property
    def rows(self) -> int:
        """How many its forward has."""
        match self.forward:
            case Prefill(_, tokens):
                return len(tokens)
            case Extend(rows):
                return len(rows)
            case Study(lessons):
                return sum(len(lesson.tokens) for lesson in lessons)
        return 0

    def execute(self, engine: Engine, on_early_exit: OnEarlyExit | None = None) -> Outcome | None:
        """Do the job; ``on_early_exit`` gets the early exit where the forward asks for it.

        Raises EngineError; the cache operations have then been done.
        """
        for operation in self.before:
            match operation:
                case Keep(seq, node, keep):
                    engine.commit(seq, node, keep)
                case Free(seq):
                    engine.close(seq)
                case SavePrefix(seq, key, length):
                    # A copy that fails is only missed later; what follows frees the sequence and must be done.
                    with suppress(EngineError, MemoryError, RuntimeError):
                        engine.save_prefix(seq, key, length)
                case LoadPrefix(seq, key, length):
                    engine.load_prefix(seq, key, length)
                case DropPrefix(key):
                    engine.drop_prefix(key)
                case Inform(seq, first, features) if isinstance(engine, Head):
                    engine.inform(seq, first, features)
        match self.forward:
            case Prefill(seq, tokens, every):
                return engine.prefill(seq, tokens, every)
            case Extend(rows, hint):
                return engine.extend(rows, on_early_exit if hint else None)
            case Study(lessons) if isinstance(engine, Learner):
                engine.study(lessons)
        return None


Sends: TypeAlias = list[tuple[bytes, Message]]  # (peer, message), in the order in which they must leave


@dataclass(slots=True)
class Step:
    """What to do now: messages to send, a job for the engine if it is idle, and when to ask again."""

    sends: Sends = field(default_factory=list)
    job: Job | None = None
    wake: float = inf


class Machine(Protocol):
    """A verifier or a drafter. Times are seconds of one monotonic clock; a peer is its socket's identity.

    Events only change what the machine knows; what follows from them comes out of the next ``step``.
    """

    def receive(self, peer: bytes, message: Message, now: float) -> None:
        """A message came from a peer."""

    def completed(self, outcome: Outcome | EngineError | None, elapsed: float, now: float) -> None:
        """The job ended after ``elapsed`` seconds; its outcome is valid until the next job starts."""

    def lost(self, peer: bytes, now: float) -> None:
        """A peer cannot be reached any more."""

    def step(self, now: float) -> Step:
        """Decide. Called after events and at the ``wake`` time of the last step."""

    def prepare(self) -> None:
        """Work that can be done while the engine is busy."""
