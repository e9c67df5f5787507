"""One choice of an answer as it grows, in no client's words yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hetero.gateway.answers.blocks import Blocks, Change
from hetero.gateway.chat.reader import AnswerReader, Piece
from hetero.gateway.client import Delta
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.wire.messages import Logprob, Round, Stats


@dataclass
class Call:
    """A call of a function, or (in a ``Part``) what is new of it: ``name`` comes at its beginning only."""

    index: int
    id: str
    name: str
    arguments: str = ""


@dataclass
class Part:
    """What a delta adds to choice ``index``; ``reason`` and ``stats`` come with the last. ``tokens`` of output so
    far."""

    index: int
    tokens: int
    text: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)  # the same, as blocks
    reason: str | None = None
    stats: Stats | None = None
    round: Round | None = None
    fresh: int = 0  # tokens the delta brought


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
        self.text = self.reasoning = ""
        self.echo, self.prompt = echo, list(prompt)
        self.calls: list[Call] = []
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
        self.tokens += len(delta.tokens)
        part = Part(self.index, self.tokens, logprobs=delta.logprobs, stats=delta.stats, round=delta.round)
        part.fresh = len(delta.tokens)
        self._read(delta, part)
        self.prompt_logprobs += delta.prompt
        self.text += part.text
        self.reasoning += part.reasoning
        self.logprobs += delta.logprobs
        if part.reasoning and not (part.text or part.calls):
            self.reasoning_tokens += len(delta.tokens)
        if delta.reason is not None:
            whole = bool(self.calls) and delta.reason == "stop"
            part.reason = self.reason = "tool_calls" if whole else delta.reason
            self.stats, self.stop = delta.stats, delta.stop
        return part

    @property
    def mean_logprob(self) -> float:
        """Natural log of the probability of its tokens, on average; what ``best_of`` goes by."""
        return sum(found.value for found in self.logprobs) / max(1, len(self.logprobs))

    def _read(self, delta: Delta, part: Part) -> None:
        pieces = [Piece("text", delta.text)] if delta.text else []
        if self.reader is not None:
            pieces = self.reader.feed(delta.text)
            if delta.reason is not None:
                pieces += self.reader.finish()
        part.changes = list(self.blocks.take(pieces, delta.reason is not None))
        for piece in pieces:
            match piece.kind:
                case "text":
                    part.text += piece.text
                case "reasoning":
                    part.reasoning += piece.text
                case "call":
                    self.calls.append(Call(piece.call, piece.id, piece.text))
                    part.calls.append(Call(piece.call, piece.id, piece.text))
                case "arguments":
                    self.calls[piece.call].arguments += piece.text
                    if not part.calls or part.calls[-1].index != piece.call:
                        part.calls.append(Call(piece.call, self.calls[piece.call].id, ""))
                    part.calls[-1].arguments += piece.text
