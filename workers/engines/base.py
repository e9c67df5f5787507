"""The one interface of all engines, for target and drafter alike.

The owner of a sequence's tree chooses node ids: never reused, a child's above its parent's; node 0 is the end of
the prefilled prefix. A row's parent is node 0, an evaluated node, or an earlier row of the same call.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hetero.workers.errors import Unsupported
from hetero.workers.sampling.logits_processors import Logits
from hetero.workers.sampling.sampler import Candidates, Sampler

Features: TypeAlias = NDArray[np.float16]  # of tokens, [..., numbers of each]


_MOST = float(np.finfo(np.float16).max)


def as_features(states: NDArray[np.float32]) -> Features:
    """Hidden states as they travel: what float16 cannot hold becomes the most it can."""
    return np.clip(states, -_MOST, _MOST).astype(np.float16)


@dataclass(frozen=True, slots=True)
class Row:
    """One token to evaluate: ``node`` of sequence ``seq`` below ``parent``; ``committed``: it is no guess, so that an
    engine whose guesses are not exact evaluates it exactly."""

    seq: int
    node: int
    parent: int
    token: int
    committed: bool = False


@dataclass(frozen=True, slots=True)
class Lesson:
    """``tokens`` of a text; behind each of the ``places`` the target found tokens ``ids`` the likeliest, with natural
    ``logprobs`` at temperature 1."""

    tokens: list[int]
    places: list[int]
    ids: list[list[int]]
    logprobs: list[list[float]]


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine can hold, known before any call.

    ``context``: tokens a sequence may reach; ``rows``: rows of one ``extend``; ``chunk``: tokens of one
    ``prefill``; ``sequences``: open at once; ``exact``: whether it runs in exact mode (chains of one sequence
    a forward); ``draft_nodes``: evaluated nodes a sequence may hold below its committed ones; ``branches``: how many of
    them may be leaves, over all sequences; ``early_exit``: whether ``extend`` hands out an early exit; ``prefixes``:
    whether it can keep those of sequences; ``lasting``: whether what a draft token left in the cache is good once the
    token is committed, and for those below it. Where it is not, it is only good until the next commit: what is
    committed then is evaluated again. ``features``: how many numbers of its hidden states ``Outcome.features`` has of a
    token; ``drafts_from``: how many of another model's a head wants of each (``Head``); 0: none. ``learns``: whether
    it can (``Learner``).
    """

    vocabulary: int
    context: int
    rows: int
    chunk: int
    sequences: int
    exact: bool = False
    draft_nodes: int = 64
    branches: int = 1 << 20
    early_exit: bool = False
    prefixes: bool = True
    lasting: bool = True
    features: int = 0
    drafts_from: int = 0
    learns: bool = False


class Outcome(Protocol):
    """The results of one forward. Rows are sampled lazily, and only until the engine's next call."""

    @abstractmethod
    def logits(self, row: int) -> Logits:
        """Logits of a row (index in the call; most prefills have the single row 0), shape [vocabulary], float32."""

    def features(self, rows: Sequence[int]) -> Features:
        """Hidden states of rows' tokens (of a prefill: of each token), shape [rows, limits.features]."""
        raise Unsupported("this engine hands out no features")

    def sample(self, row: int, sampler: Sampler, position: int) -> int:
        """The token at ``position``, the one after the row's token, by the one rule. Raises NotFinite."""
        return sampler.sample(self.logits(row), position)

    def candidates(self, row: int, sampler: Sampler, position: int, count: int) -> Candidates:
        """The ``count`` likeliest samples at ``position``: what a drafter proposes. Raises NotFinite."""
        return sampler.candidates(self.logits(row), position, count)


# Receives the early exit of a forward in flight, on the engine's thread; valid until the engine's next call.
OnEarlyExit: TypeAlias = Callable[[Outcome], None]


class Engine(Protocol):
    """A loaded model. Calls come from one thread at a time, except ``abort``."""

    limits: EngineLimits

    def prefill(self, seq: int, tokens: Sequence[int], every: bool = False) -> Outcome:
        """Append a chunk to a sequence's prefix, opening it if need be; logits of the last token only, in row 0, or of
        ``every`` token. (The same row's logits may differ in their last bits between the two.)

        Raises EngineError (KvFull, TooManyLeaves, Aborted, ...); the sequence is then as before the call.
        """

    def extend(self, rows: Sequence[Row], on_early_exit: OnEarlyExit | None = None) -> Outcome:
        """Evaluate rows of one or several sequences. All or nothing: a failure leaves the state before it.

        Where ``limits.early_exit`` holds, ``on_early_exit`` gets what the LM head makes of a middle layer, before the
        forward ends (Mirror-SD); elsewhere it is not called.
        """

    def commit(self, seq: int, node: int, keep: Collection[int] = ()) -> None:
        """Keep the path to ``node`` and, below it, the nodes ``keep``; drop the rest."""

    def close(self, seq: int) -> None:
        """Free a sequence; closing an unknown one does nothing."""

    def save_prefix(self, seq: int, key: int, length: int) -> None:
        """Copy the first ``length`` tokens of a sequence aside, under ``key``; it may only be closed after."""

    def load_prefix(self, seq: int, key: int, length: int) -> None:
        """Open a sequence with the first ``length`` tokens saved under ``key``, as if they had been prefilled.

        Raises UnknownNode for a key that was not saved, KvFull, TooManyLeaves.
        """

    def drop_prefix(self, key: int) -> None:
        """Forget what was saved under ``key``; an unknown one does nothing."""

    def abort(self) -> None:
        """Make the forward in flight, if any, fail with Aborted. Callable from any thread."""

    def shutdown(self) -> None:
        """Free the model."""

    @property
    def used_cells(self) -> int:
        """KV cells held, for health and tests of leaks; only to be asked while no forward runs."""


@runtime_checkable
class Head(Engine, Protocol):
    """A model that drafts from the target's hidden states of the token before each (EAGLE, Dovetail's DGF); below the
    committed tokens it goes on from its own."""

    def inform(self, seq: int, first: int, features: Features) -> None:
        """What the tokens from place ``first`` of a sequence on are drafted from: of each the features of the token
        before it, shape [tokens, limits.drafts_from]. The sequence may be opened after."""


@runtime_checkable
class Learner(Engine, Protocol):
    """A model that can be taught while it serves (``limits.learns``)."""

    def study(self, lessons: Sequence[Lesson]) -> None:
        """One step of learning; what sequences hold stays as the model made it before. Raises EngineError."""
