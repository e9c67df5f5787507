"""What a request does to the logits before they are sampled: bias, penalties, a grammar's mask.

Counts and grammar follow the committed tokens, so that every token is decided by the text before it and by nothing
a drafter did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hetero.workers.sampling.grammar import Grammar

Logits: TypeAlias = NDArray[np.float32]


class LogitsProcessor:
    """The changes to one sequence's logits, at the end of what is committed."""

    def __init__(
        self, presence: float, frequency: float, bias: Sequence[tuple[int, float]], grammar: Grammar | None = None
    ) -> None:
        """Penalties are OpenAI's: of tokens in the output so far, ``presence`` once and ``frequency`` each time."""
        self._presence, self._frequency = presence, frequency
        self._biased = np.array([token for token, _ in bias], np.intp)
        self._bias = np.array([value for _, value in bias], np.float32)
        self._counts: Counter[int] = Counter()
        self._grammar = grammar

    @property
    def complete(self) -> bool:
        """Whether the grammar allows nothing more."""
        return self._grammar is not None and self._grammar.complete

    def commit(self, token: int) -> None:
        """A token was decided."""
        if self._presence or self._frequency:
            self._counts[token] += 1
        if self._grammar is not None:
            self._grammar.commit(token)

    def below(self, tokens: Sequence[int]) -> LogitsProcessor:
        """The penalties as with these tokens committed, without a grammar; the same object where nothing differs."""
        penalties = bool(self._presence or self._frequency)
        if not (tokens and (penalties or self._grammar is not None)):
            return self
        found = LogitsProcessor(self._presence, self._frequency, ())
        found._biased, found._bias = self._biased, self._bias
        if penalties:
            found._counts = self._counts + Counter(tokens)
        return found

    def __call__(self, logits: Logits) -> Logits:
        """The logits a sample is taken from, shape [vocabulary]; the array itself where nothing was asked for.

        Raises GrammarError.
        """
        if not (len(self._biased) or self._counts or self._grammar):
            return logits
        shaped = logits.copy()
        # A drafter's vocabulary may be padded to another size than its target's.
        if len(self._biased):
            known = self._biased < len(shaped)
            shaped[self._biased[known]] += self._bias[known]
        if self._counts:
            said = {token: count for token, count in self._counts.items() if token < len(shaped)}
            counts = np.fromiter(said.values(), np.float32, len(said))
            tokens = np.fromiter(said, np.intp, len(said))
            shaped[tokens] -= np.float32(self._presence) + np.float32(self._frequency) * counts
        if self._grammar is not None:
            shaped[~self._grammar.allowed(len(shaped))] = -np.inf
        return shaped
