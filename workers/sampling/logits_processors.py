"""What a request does to the logits before they are sampled: bias, penalties, a grammar's mask, ends that may not come.

Counts, grammar and thinking follow the committed tokens, so that every token is decided by the text before it and by
nothing a drafter did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from copy import copy
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hetero.workers.sampling.grammar import Grammar
from hetero.workers.sampling.repetition import Repetition
from hetero.workers.sampling.thinking import ThinkingState
from hetero.workers.wire.messages import Sampling

Logits: TypeAlias = NDArray[np.float32]


class LogitsProcessor:
    """The changes to one sequence's logits, at the end of what is committed."""

    def __init__(
        self,
        spec: Sampling,
        prompt: Sequence[int] = (),
        grammar: Grammar | None = None,
        thinking: ThinkingState | None = None,
        ends: Collection[int] = (),
        never: Collection[int] = (),
    ) -> None:
        """``ends``: tokens that may not come before ``spec.min_tokens`` are there; ``never``: that may not come at
        all. ``grammar`` counts where ``thinking`` is over."""
        self._spec = spec
        self._biased = np.array([token for token, _ in spec.bias], np.intp)
        self._bias = np.array([value for _, value in spec.bias], np.float32)
        self._counts: Counter[int] = Counter()
        self._penalties = bool(spec.presence or spec.frequency)
        self._repetition = Repetition(spec.repetition, spec.repetition_last, prompt) if spec.repetition != 1.0 else None
        self._grammar, self._thinking = grammar, thinking
        self._never = np.array(sorted(never), np.intp)
        self._early = np.array(sorted({*ends, *never}), np.intp) if spec.min_tokens else self._never
        self._said = 0

    @property
    def complete(self) -> bool:
        """Whether the grammar allows nothing more."""
        return self._grammar is not None and not self._thinks and self._grammar.complete

    def commit(self, token: int) -> None:
        """A token was decided."""
        self._said += 1
        if self._penalties:
            self._counts[token] += 1
        if self._repetition is not None:
            self._repetition.add(token)
        if self._thinking is not None and self._thinking.commit(token):
            return
        if self._grammar is not None:
            self._grammar.commit(token)

    def below(self, tokens: Sequence[int]) -> LogitsProcessor:
        """The penalties as with these tokens committed, without a grammar; the same object where nothing differs."""
        counts = self._penalties or self._repetition is not None or len(self._early) > 0
        if not (tokens and (counts or self._grammar is not None)):
            return self
        found = copy(self)
        found._grammar = found._thinking = None
        found._said = self._said + len(tokens)
        if self._penalties:
            found._counts = self._counts + Counter(tokens)
        if self._repetition is not None:
            found._repetition = self._repetition.below(tokens)
        return found

    def __call__(self, logits: Logits) -> Logits:
        """The logits a sample is taken from, shape [vocabulary]; the array itself where nothing was asked for.

        Raises GrammarError.
        """
        barred = self._early if self._said < self._spec.min_tokens else self._never
        masked = self._grammar is not None or self._thinking is not None
        if not (len(self._biased) or self._counts or self._repetition is not None or masked or len(barred)):
            return logits
        shaped = logits.copy()
        if self._repetition is not None:
            self._repetition.apply(shaped)
        # A drafter's vocabulary may be padded to another size than its target's.
        if len(self._biased):
            known = self._biased < len(shaped)
            shaped[self._biased[known]] += self._bias[known]
        if self._counts:
            said = {token: count for token, count in self._counts.items() if token < len(shaped)}
            counts = np.fromiter(said.values(), np.float32, len(said))
            tokens = np.fromiter(said, np.intp, len(said))
            shaped[tokens] -= np.float32(self._spec.presence) + np.float32(self._spec.frequency) * counts
        if masked:
            self._mask(shaped)
        if len(barred):
            kept = shaped[barred := barred[barred < len(shaped)]]
            shaped[barred] = -np.inf
            if np.isneginf(shaped.max()):  # a grammar that allows nothing else goes first
                shaped[barred] = kept
        return shaped

    @property
    def _thinks(self) -> bool:
        return self._thinking is not None and self._thinking.within

    def _mask(self, shaped: Logits) -> None:
        """Leave what thinking and grammar allow."""
        thinking = self._thinking
        if thinking is not None and thinking.forced is not None:
            shaped[:] = np.where(np.arange(len(shaped)) == thinking.forced, np.float32(0), -np.inf)
        elif self._grammar is not None and not self._thinks:
            allowed = self._grammar.allowed(len(shaped))
            if thinking is not None and thinking.begin is not None:
                allowed[thinking.begin] = True
            shaped[~allowed] = -np.inf
