"""A simulated client: asks verifiers for sequences and keeps what it is told of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

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
Route: TypeAlias = Callable[[Sequence[int], Mapping[int, int]], int]


@dataclass
class Story:
    """What a client saw of one sequence."""

    opening: Open
    verifier: bytes
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    prompt: dict[int, Logprob] = field(default_factory=dict)  # by position
    end: Finished | Failed | None = None
    begun: bool = False
    times: list[float] = field(default_factory=list)  # when new tokens came


class SimulatedClient:
    """``send(to, message)`` reaches the verifiers; nothing between them and their clients is lost.

    ``route``: which verifier, by its place among ``alive()``, a sequence of these tokens goes to, given how many each
    has (None: where it was asked to go, for good).
    """

    def __init__(
        self,
        clock: VirtualClock,
        send: Callable[[bytes, Message], None],
        route: Route | None = None,
        alive: Callable[[], list[bytes]] = list,
    ) -> None:
        self.stories: dict[int, Story] = {}
        self.times: list[tuple[float, int]] = []  # when how many tokens came
        self._clock = clock
        self._send = send
        self._route, self._alive = route, alive

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

        def begin() -> None:
            story.begun = True
            self._place(story)
            self._send(story.verifier, opening)

        self._clock.at(at, begin)
        return story

    def lost(self, verifier: bytes) -> None:
        """A verifier is gone: what it was at goes on at others, where it is routed."""
        for story in self._of(verifier) if self._route is not None else ():
            self._place(story)
            if story.verifier != verifier:
                self._resume(story)

    def cancel(self, story: Story, at: float) -> None:
        """Hang up on a sequence at a time."""

        def cut() -> None:
            if story.end is None:
                story.end = Failed(story.opening.seq, 0, "cancelled", "")
            self._send(story.verifier, Cancel(story.opening.seq))

        self._clock.at(at, cut)

    def resume(self, verifier: bytes) -> None:
        """A verifier came back: go on with what it was at."""
        for story in self._of(verifier):
            self._resume(story)

    def keep_alive(self, verifier: bytes, seconds: float) -> None:
        """Ping a verifier, again and again, and tell it how far its sequences have come."""
        own = [(story.opening.seq, len(story.opening.prompt) + len(story.tokens)) for story in self._of(verifier)]
        self._send(verifier, Ping("gateway", 1, own))
        self._clock.after(seconds, lambda: self.keep_alive(verifier, seconds))

    def receive(self, sender: bytes, message: Message, epoch: int) -> None:
        """Take what a verifier says, whose present incarnation is ``epoch``."""
        if not isinstance(message, Tokens | PromptLogprobs | Finished | Failed) or message.epoch != epoch:
            return
        story = self.stories[message.seq]
        if story.end is not None or story.verifier != sender:
            return
        if isinstance(message, Failed) and message.code == "unknown":  # it thought us gone
            self._resume(story)
            return
        if isinstance(message, PromptLogprobs):
            story.prompt.update(enumerate(message.logprobs, message.base))
            return
        if isinstance(message, Tokens):
            have = len(story.opening.prompt) + len(story.tokens)
            if message.base < have:  # said again, since our ping was older
                known = story.tokens[message.base - len(story.opening.prompt) :]
                assert known[: len(message.tokens)] == message.tokens, (message, known)
                return
            assert message.base == have, (message, have)
            story.tokens += message.tokens
            story.text += message.text
            self.times.append((self._clock.now, len(message.tokens)))
            story.times.append(self._clock.now)
            return
        story.end = message
        if isinstance(message, Finished):
            story.text += message.text

    @property
    def _open(self) -> list[Story]:
        return [story for story in self.stories.values() if story.begun and story.end is None]

    def _of(self, verifier: bytes) -> list[Story]:
        """The sequences that a verifier is at."""
        return [
            story for story in self.stories.values() if story.begun and story.end is None and story.verifier == verifier
        ]

    def _place(self, story: Story) -> None:
        """Choose the verifier of a sequence, among those alive."""
        if self._route is None or not (names := self._alive()):
            return
        load = Counter(other.verifier for other in self._open if other is not story)
        tokens = [*story.opening.prompt, *story.tokens]
        story.verifier = names[self._route(tokens, {n: load[name] for n, name in enumerate(names)})]

    def _resume(self, story: Story) -> None:
        self._send(story.verifier, Resume(structs.replace(story.opening, committed=list(story.tokens))))
