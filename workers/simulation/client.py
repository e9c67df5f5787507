"""A simulated client: asks verifiers for sequences and keeps what it is told of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec import structs

from hetero.workers.simulation.clock import VirtualClock
from hetero.workers.wire.messages import (
    Cancel,
    Failed,
    Finished,
    Logprob,
    Message,
    Open,
    Ping,
    PromptLogprobs,
    Resume,
    Tokens,
)

CLIENT = b"client"


@dataclass
class Story:
    """What a client saw of one sequence."""

    opening: Open
    verifier: bytes
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    prompt: dict[int, Logprob] = field(default_factory=dict)  # by position
    end: Finished | Failed | None = None


class SimulatedClient:
    """``send(to, message)`` reaches the verifiers; nothing between them and their clients is lost."""

    def __init__(self, clock: VirtualClock, send: Callable[[bytes, Message], None]) -> None:
        self.stories: dict[int, Story] = {}
        self.times: list[tuple[float, int]] = []  # when how many tokens came
        self._clock = clock
        self._send = send

    @property
    def done(self) -> bool:
        """Whether every sequence has ended."""
        return all(story.end is not None for story in self.stories.values())

    @property
    def finished(self) -> list[Finished]:
        """The ends of those that came to theirs, in the order they were asked for."""
        return [story.end for story in self.stories.values() if isinstance(story.end, Finished)]

    def ask(self, opening: Open, verifier: bytes, at: float = 0.0) -> Story:
        """Ask for a sequence at a time."""
        story = self.stories[opening.seq] = Story(opening, verifier)
        self._clock.at(at, lambda: self._send(verifier, opening))
        return story

    def cancel(self, story: Story, at: float) -> None:
        """Hang up on a sequence at a time."""

        def cut() -> None:
            if story.end is None:
                story.end = Failed(story.opening.seq, 0, "cancelled", "")
            self._send(story.verifier, Cancel(story.opening.seq))

        self._clock.at(at, cut)

    def resume(self, verifier: bytes) -> None:
        """A verifier came back: go on with what it was at."""
        for story in self.stories.values():
            if story.end is None and story.verifier == verifier:
                again = structs.replace(story.opening, committed=list(story.tokens))
                self._send(verifier, Resume(again))

    def keep_alive(self, verifier: bytes, seconds: float) -> None:
        """Ping a verifier, again and again."""
        self._send(verifier, Ping("gateway", 1, []))
        self._clock.after(seconds, lambda: self.keep_alive(verifier, seconds))

    def receive(self, message: Message, epoch: int) -> None:
        """Take what a verifier says, whose present incarnation is ``epoch``."""
        if not isinstance(message, Tokens | PromptLogprobs | Finished | Failed) or message.epoch != epoch:
            return
        story = self.stories[message.seq]
        if story.end is not None:
            return
        if isinstance(message, PromptLogprobs):
            story.prompt.update(enumerate(message.logprobs, message.base))
            return
        if isinstance(message, Tokens):
            have = len(story.opening.prompt) + len(story.tokens)
            assert message.base == have, (message, have)
            story.tokens += message.tokens
            story.text += message.text
            self.times.append((self._clock.now, len(message.tokens)))
            return
        story.end = message
        if isinstance(message, Finished):
            story.text += message.text
