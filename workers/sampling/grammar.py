"""Which tokens a grammar allows next: llguidance over a model's vocabulary.

Masks apply to the target's logits as it samples, token by token along the path that is committed; a draft that
breaks the grammar is simply not what the target samples.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import psutil
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from hetero.workers.errors import GrammarError

_KEPT = 128 << 20  # bytes of compiled grammars, as they were seen to take
_LEAST = 2 << 20  # bytes one counts for at least: what it took may have lain free before


@dataclass(frozen=True)
class Compiled:
    """A grammar at its beginning; ``size``: bytes it was seen to take."""

    matcher: LLMatcher
    size: int


class Grammars:
    """What grammars need of a vocabulary; made when the first one is asked for."""

    def __init__(
        self, pieces: Sequence[bytes], ends: frozenset[int], encode: Callable[[str], list[int]] | None = None
    ) -> None:
        """``encode``: the model's own tokens of a text, without special ones; forced text is then written in them."""
        self._pieces, self._ends, self._encode = pieces, ends, encode
        self._kept: OrderedDict[str, Compiled] = OrderedDict()

    def objection(self, grammar: str) -> str | None:
        """Why a grammar cannot be used, in one line."""
        if not self._ends:
            return "the model has no token that ends a text"
        wrong: str = LLMatcher.validate_grammar(grammar, self._tokenizer)
        return None if not wrong or wrong.startswith("WARNING") else " ".join(wrong.split())[:300]

    def start(self, grammar: str) -> Grammar:
        """A grammar at its beginning. Raises GrammarError."""
        if not self._ends:
            raise GrammarError("the model has no token that ends a text")
        if grammar in self._kept:  # the choices of one request have one grammar
            self._kept.move_to_end(grammar)
        else:
            self.keep(grammar, self.compile(grammar))
        return Grammar(self._kept[grammar].matcher.deep_copy())

    def knows(self, grammar: str) -> bool:
        """Whether it can be begun at once."""
        return grammar in self._kept

    def compile(self, grammar: str) -> Compiled:
        """What takes a moment, up to seconds, of beginning a grammar; may be called from any thread."""
        if not self._ends:
            raise GrammarError("the model has no token that ends a text")
        memory = psutil.Process().memory_info
        before = memory().rss
        found = LLMatcher(self._tokenizer, grammar, log_level=0)
        return Compiled(found, max(_LEAST, len(grammar), memory().rss - before))

    def keep(self, grammar: str, compiled: Compiled) -> None:
        """Have it at hand for ``start``; the latest stay."""
        self._kept[grammar] = compiled
        while len(self._kept) > 1 and sum(kept.size for kept in self._kept.values()) > _KEPT:
            self._kept.popitem(last=False)

    def warm(self) -> None:
        """Prepare the vocabulary, which takes a moment, before it is needed."""
        _ = self._tokenizer

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return LLTokenizer(
            TokenizerWrapper(_GuidanceTokens(self)), n_vocab=len(self._pieces), eos_token=sorted(self._ends)
        )

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {piece: token for token, piece in reversed(list(enumerate(self._pieces))) if piece}

    def encode(self, text: bytes | str) -> list[int]:
        """Tokens of a text: the model's own, or the longest that fit."""
        if self._encode is not None:
            return self._encode(text if isinstance(text, str) else text.decode())
        data, found = text if isinstance(text, bytes) else text.encode(), []
        longest = max(map(len, self._ids))
        while data:
            size = next((n for n in range(min(longest, len(data)), 0, -1) if data[:n] in self._ids), 0)
            if size == 0:
                break
            found.append(self._ids[data[:size]])
            data = data[size:]
        return found


class _GuidanceTokens:
    """A vocabulary as llguidance wants to see it: tokens without bytes are special ones, marked by 0xFF."""

    bos_token_id = None

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        pieces = grammars._pieces
        self.eos_token_id = min(grammars._ends)
        self.tokens = [piece or b"\xff<%d>" % token for token, piece in enumerate(pieces)]
        self.special_token_ids = [token for token, piece in enumerate(pieces) if not piece]

    def __call__(self, text: str) -> list[int]:
        return self._grammars.encode(text)


class Grammar:
    """One grammar on its way through one output."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._check()

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def allowed(self, vocabulary: int) -> NDArray[np.bool_]:
        """Which tokens may come next, shape [vocabulary]. Raises GrammarError."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        found = np.zeros(vocabulary, np.bool_)
        bits = np.unpackbits(packed, bitorder="little")[:vocabulary].astype(np.bool_)
        found[: len(bits)] = bits
        return found

    def commit(self, token: int) -> None:
        """A token was decided. A token the grammar forbids (of another verifier's text) raises GrammarError later."""
        self._matcher.consume_token(token)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"the grammar failed: {' '.join(self._matcher.get_error().split())[:300]}")
