"""What is decided of one text, and what of it may be shown."""

from __future__ import annotations

from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.sampling.sampler import Sampler
from hetero.workers.sampling.stop_strings import StopMatcher
from hetero.workers.wire.messages import Logprob, Open


class Output:
    """The committed tokens of one sequence, the text they release, and whether it is over.

    ``reason`` is "stop" or "length" once it has ended, and ``last_text`` what the end released.
    """

    def __init__(self, opening: Open, limit: int, sampler: Sampler, vocabulary: Vocabulary) -> None:
        """``limit``: tokens it may have."""
        self.committed: list[int] = []
        self.reason: str | None = None
        self.last_text = ""
        self._prompt, self._limit = len(opening.prompt), limit
        self._sampler, self._vocabulary = sampler, vocabulary
        self._ends = vocabulary.ends | set(opening.stop_ids)
        self._special, self._shown = opening.special, frozenset(opening.shown)
        self._matcher = StopMatcher(opening.stop)
        self._texts: list[str] = []  # released by each committed token, to answer a Resume
        self._logprobs: list[Logprob | None] = []

    @property
    def length(self) -> int:
        """Tokens of prompt and output."""
        return self._prompt + len(self.committed)

    @property
    def remaining(self) -> int:
        """Tokens still allowed."""
        return self._limit - len(self.committed)

    def take(self, token: int, logprob: Logprob | None = None) -> bool:
        """Append a committed token; True when the text ends with it."""
        self.committed.append(token)
        self._logprobs.append(logprob)
        self._sampler.processor.commit(token)
        if token in self._ends:
            self._texts.append("")
            return self._end("stop")
        known = self._vocabulary
        piece = known.named(token) if self._special or token in self._shown else known.pieces[token]
        self._texts.append(self._matcher.feed(piece))
        if self._matcher.stopped or self._sampler.processor.complete:
            return self._end("stop")
        return self.remaining <= 0 and self._end("length")

    @property
    def stop(self) -> str:
        """The stop string that ended it; "" for none."""
        return self._matcher.matched

    def since(self, length: int) -> tuple[list[int], str, list[Logprob]]:
        """Tokens from a length of prompt and output on, their text, and their logprobs where asked for."""
        first = max(0, length - self._prompt)
        logprobs = [found for found in self._logprobs[first:] if found is not None]
        return self.committed[first:], "".join(self._texts[first:]), logprobs

    def _end(self, reason: str) -> bool:
        self.reason = reason
        self.last_text = self._matcher.flush()
        return True
