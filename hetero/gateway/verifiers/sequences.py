"""Sequences as the gateway sees them: what is asked for, what comes, and how far each has got."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from hetero.errors import SequenceFailed
from hetero.workers.wire.messages import Logprob, Open, Resume, Round, Sampling, Stats

_STALLS = 2


@dataclass(frozen=True)
class Delta:
    """New tokens and the text they release, or what is thought of the ``prompt``'s. The last delta has ``reason``,
    ``stats``, and the ``stop`` string that ended it, if one did."""

    tokens: list[int]
    text: str
    reason: str | None = None
    stats: Stats | None = None
    logprobs: list[Logprob] = field(default_factory=list)
    round: Round | None = None
    prompt: list[Logprob] = field(default_factory=list)
    stop: str = ""
    at: float = field(default_factory=time.monotonic)  # when it came


SILENCE = Delta([], "")  # nothing came for a while


def ask(prompt: list[int], sampling: Sampling, max_tokens: int, stop: list[str] | None = None, **more: Any) -> Open:
    """What is wanted of one sequence; ``more`` are fields of ``Open``."""
    return Open(secrets.randbits(62), 0, prompt, [], sampling, max_tokens, stop or [], **more)


@dataclass
class Live:
    """A sequence under way, at one verifier or waiting for one."""

    opening: Open
    deltas: asyncio.Queue[Delta | SequenceFailed] = field(default_factory=asyncio.Queue)
    tokens: list[int] = field(default_factory=list)
    known: int = 1  # tokens of the prompt that need no logprobs any more
    resumed: int | None = None  # how many tokens it had when a verifier last took it up; None: none has
    stalls: int = 0  # verifiers in a row that ended without bringing it any further

    @property
    def seq(self) -> int:
        return self.opening.seq

    @property
    def length(self) -> int:
        """Tokens of prompt and output."""
        return len(self.opening.prompt) + len(self.tokens)

    def asked(self) -> Open | Resume:
        """What to tell the verifier that takes it up now."""
        first, self.resumed = self.resumed is None, len(self.tokens)
        return self.opening if first else self.so_far()

    def so_far(self) -> Resume:
        """What there is of it, for a verifier that lacks something."""
        return Resume(structs.replace(self.opening, committed=list(self.tokens)))

    def bereft(self, was_there: bool) -> bool:
        """Its verifier ended; ``was_there``: while it had a place in the engine. False: it may be what ends them, and
        must not end them all."""
        if not was_there:
            return True
        self.stalls = self.stalls + 1 if self.resumed == len(self.tokens) else 0
        if self.stalls <= _STALLS:
            return True
        self.fail("engine_error", f"the verifier ended {self.stalls} times at this request")
        return False

    def fail(self, code: str, why: str) -> None:
        """It cannot go on."""
        self.deltas.put_nowait(SequenceFailed(code, why))
