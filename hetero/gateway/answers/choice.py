"""One choice of an answer as it grows, in no client's words yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hetero.gateway.answers.blocks import Blocks, Change, Kind
from hetero.gateway.chat.reader import AnswerReader, Piece
from hetero.gateway.verifiers.sequences import Delta
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.wire.messages import Logprob, Round, Stats


@dataclass
class Part:
    """What a delta adds to choice ``index``; ``reason`` and ``stats`` come with the last. ``tokens`` of output so
    far, of which it brought ``fresh`` ones."""

    index: int
    tokens: int
    fresh: int
    changes: list[Change]
    logprobs: list[Logprob] = field(default_factory=list)
    reason: str | None = None
    stats: Stats | None = None
    round: Round | None = None

    def text(self, kind: Kind) -> str:
        """What it adds to blocks of a kind."""
        return "".join(change.text for change in self.changes if change.block.kind == kind)


class Choice:
    """All of it so far."""

    def __init__(
        self,
        index: int,
        vocabulary: Vocabulary,
        reader: AnswerReader | None = None,
        echo: str = "",
        prompt: Sequence[int] = (),
        like: Choice | None = None,
    ) -> None:
        """``reader`` of a chat's answer; ``echo``: text to begin with, which ``prompt`` is the tokens of; ``like``:
        another choice of the same prompt, which is told what is thought of it."""
        self.index = index
        self.echo, self.prompt = echo, list(prompt)
        self.logprobs: list[Logprob] = []
        self.prompt_logprobs: list[Logprob] = like.prompt_logprobs if like is not None else []
        self.silent = False  # nothing of it is shown: only its prompt was asked for
        self.reason: str | None = None
        self.stop: str | None = None
        self.stats: Stats | None = None
        self.tokens = self.reasoning_tokens = 0
        self.reader = reader
        self.vocabulary = vocabulary
        self.blocks = Blocks()

    def take(self, delta: Delta) -> Part:
        """More of it came."""
        if self.silent:
            delta = replace(delta, tokens=[], text="", logprobs=[])
        last = delta.reason is not None
        changes = list(self.blocks.take(self._pieces(delta.text, last), last))
        self.tokens += len(delta.tokens)
        self.prompt_logprobs += delta.prompt
        self.logprobs += delta.logprobs
        if changes and all(change.block.kind == "reasoning" for change in changes):
            self.reasoning_tokens += len(delta.tokens)
        if delta.reason is not None:
            whole = bool(self.blocks.of("call")) and delta.reason == "stop"
            self.reason = "length" if self.silent else "tool_calls" if whole else delta.reason
            self.stats, self.stop = delta.stats, delta.stop
        fresh = len(delta.tokens)
        return Part(self.index, self.tokens, fresh, changes, delta.logprobs, self.reason, delta.stats, delta.round)

    def _pieces(self, text: str, last: bool) -> list[Piece]:
        if self.reader is None:
            return [Piece("text", text)] if text else []
        return self.reader.feed(text) + (self.reader.finish() if last else [])

    @property
    def text(self) -> str:
        """What it says, calls and reasoning aside."""
        return self.blocks.text("text")

    @property
    def mean_logprob(self) -> float:
        """Natural log of the probability of its tokens, on average; what ``best_of`` goes by."""
        return sum(found.value for found in self.logprobs) / max(1, len(self.logprobs))
