"""Verifier, drafter and a client on the simulator, over table engines and links that misbehave."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from msgspec import structs

from hetero.workers.decoding.drafter import Drafter
from hetero.workers.decoding.policy.strategy import strategy
from hetero.workers.decoding.verifier import Verifier
from hetero.workers.engines.table import TableEngine, TableSpec, drafter_spec
from hetero.workers.errors import EngineError
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.simulation.clock import Node, Simulation
from hetero.workers.wire.codec import decode, encode
from hetero.workers.wire.messages import (
    Cancel,
    Close,
    Commit,
    Draft,
    Failed,
    Finished,
    Hint,
    Open,
    Ping,
    Resume,
    Sampling,
    Tokens,
)

VOCABULARY = 48
END = 47
PIECES = Vocabulary([bytes([97 + token % 26]) for token in range(VOCABULARY)], frozenset({END}))
TARGET = TableSpec(vocabulary=VOCABULARY, context=400, seed=7, sharpness=2.0, chunk=16, rows=64, sequences=3, early=0.7)


@dataclass(frozen=True)
class Faults:
    """How the world misbehaves. Probabilities are per message or per forward."""

    lose: float = 0.0
    repeat: float = 0.0
    delay: float = 0.0005
    jitter: float = 0.0
    engine: float = 0.0  # a drafter forward raises
    drafter_crash: float | None = None  # mean seconds between crashes
    verifier_crash: float | None = None
    adversary: bool = False  # drafts are overwritten with nonsense


@dataclass
class Story:
    """What a client saw of one sequence."""

    opening: Open
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    end: Finished | Failed | None = None


class World:
    """One schedule: a pure function of its arguments."""

    def __init__(
        self,
        seed: int,
        plan: str,
        gamma: int = 4,
        agreement: float | None = 0.8,
        faults: Faults | None = None,
        target_s: float = 0.02,
        draft_s: float = 0.003,
        target: TableSpec = TARGET,
        cached: int = 0,
    ) -> None:
        self.random = random.Random(seed)
        self.faults = faults or Faults()
        self.simulation = Simulation()
        self.stories: dict[int, Story] = {}
        self.drafted = 0
        self.errors: list[str] = []  # of engines
        self._strategy = strategy(plan, gamma)
        self._target = target
        self._agreement = agreement
        self._cached = cached
        self._seconds = {b"verifier": target_s, b"drafter": draft_s}
        self.engines: dict[bytes, TableEngine] = {}
        self.nodes: dict[bytes, Node] = {}
        self._epoch = 0
        self._boot(b"verifier")
        if agreement is not None:
            self._boot(b"drafter")
        self._client()
        self._crashes(b"verifier", self.faults.verifier_crash)
        if agreement is not None:
            self._crashes(b"drafter", self.faults.drafter_crash)

    def ask(
        self,
        prompt: list[int],
        max_tokens: int = 40,
        temperature: float = 0.8,
        seed: int = 1,
        at: float = 0.0,
        stop: tuple[str, ...] = (),
        grammar: str = "",
        plain: bool = False,
        **more: object,
    ) -> Story:
        sampling = Sampling(**{"temperature": temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "choice": 0,
                               "seed": seed, **more})  # fmt: skip
        opening = Open(len(self.stories) + 1, 0, prompt, [], sampling, max_tokens, list(stop), grammar, plain)
        story = Story(opening)
        self.stories[opening.seq] = story
        self.simulation.at(at, lambda: self._to(b"verifier", b"client", opening, reliable=True))
        return story

    def cancel(self, story: Story, at: float) -> None:
        def cut() -> None:
            if story.end is None:
                story.end = Failed(story.opening.seq, 0, "cancelled", "")
            self._to(b"verifier", b"client", Cancel(story.opening.seq), reliable=True)

        self.simulation.at(at, cut)

    def play(self, until: float = 600.0) -> None:
        done = self.simulation.run(lambda: all(s.end is not None for s in self.stories.values()), until)
        assert done, f"unfinished: {[s for s in self.stories.values() if s.end is None]}"

    def settle(self) -> None:
        """Let closes arrive and be carried out."""
        self.simulation.run(lambda: False, self.simulation.now + 3.0)

    # Inside

    def _boot(self, name: bytes) -> None:
        self._epoch += 1
        old = self.nodes.get(name)
        if old is not None:
            old.alive = False
        if name == b"verifier":
            engine = TableEngine(self._target)
            machine = Verifier(self._epoch, engine.limits, PIECES, self._strategy, 64, cached=self._cached)
        else:
            spec = drafter_spec(self._target, self._agreement or 0.0)
            spec = TableSpec(**{**spec.__dict__, "fault": self._drafter_fault})
            engine = TableEngine(spec)
            machine = Drafter(self._epoch, engine.limits, PIECES.ends, self._strategy, cached=self._cached)
            machine.linked(b"verifier")
        self.engines[name] = engine

        def execute(job):
            seconds = self._seconds[name] * self.random.uniform(0.5, 1.5)

            def hinted(early) -> None:
                if name == b"verifier":
                    number = machine.epoch
                    self.simulation.after(seconds / 2, lambda: self._hinted(number, early))

            try:
                return seconds, job.execute(engine, hinted)
            except EngineError as error:
                self.errors.append(f"{name.decode()}: {error}")
                return seconds, error

        node = Node(self.simulation, machine, execute, lambda to, message: self._to(to, name, message))
        self.nodes[name] = node
        self.simulation.after(0.0, node.poke)

    def _hinted(self, epoch: int, early) -> None:
        node = self.nodes[b"verifier"]
        if node.alive and node.machine.epoch == epoch:
            node.machine.hinted(early, self.simulation.now)
            node.poke()

    def _drafter_fault(self, number: int, tokens: list[int]) -> str | None:
        if self.random.random() < self.faults.engine:
            if self.random.random() < 0.5:
                return "nan"
            raise EngineError("scripted")
        return None

    def _crashes(self, name: bytes, mean: float | None) -> None:
        if mean is None:
            return

        def crash() -> None:
            self.nodes[name].alive = False
            self.simulation.after(0.2, reborn)

        def reborn() -> None:
            self._boot(name)
            if name == b"verifier":
                for story in self.stories.values():
                    if story.end is None:
                        self._resume(story)
                if b"drafter" in self.nodes:
                    self.nodes[b"drafter"].machine.linked(b"verifier")
            self.simulation.after(self.random.expovariate(1 / mean), crash)

        self.simulation.after(self.random.expovariate(1 / mean), crash)

    def _resume(self, story: Story) -> None:
        again = structs.replace(story.opening, committed=list(story.tokens))
        self._to(b"verifier", b"client", Resume(again), reliable=True)

    def _to(self, to: bytes, sender: bytes, message, reliable: bool = False) -> None:
        message = decode(encode(message))
        if isinstance(message, Draft):
            self.drafted += len(message.tokens)
            if self.faults.adversary:
                message = self._twist(message)
        exposed = not reliable and isinstance(message, Draft | Commit | Hint | Open | Close)
        copies = 1
        if exposed and self.random.random() < self.faults.lose:
            copies = 0
        if exposed and self.random.random() < self.faults.repeat:
            copies += 1
        for _ in range(copies):
            delay = self.faults.delay + (
                self.random.expovariate(1 / self.faults.jitter) if exposed and self.faults.jitter else 0.0
            )
            self.simulation.after(delay, lambda: self._arrive(to, sender, message))

    def _arrive(self, to: bytes, sender: bytes, message) -> None:
        if to == b"client":
            self._client_receives(message)
        elif to in self.nodes:
            self.nodes[to].receive(sender, message)

    def _twist(self, draft: Draft) -> Draft:
        kind = self.random.randrange(5)
        noise = [self.random.randrange(60) for _ in range(self.random.randrange(1, 9))]
        chain = list(range(-1, len(noise) - 1))
        if kind == 0:
            return Draft(draft.seq, draft.epoch, draft.base, [-1] * len(noise), noise, [1.0] * len(noise), 0.0)
        if kind == 1:
            base = max(0, draft.base - self.random.randrange(9))
            return Draft(draft.seq, draft.epoch, base, chain, noise, [1.0] * len(noise), 3000.0)
        if kind == 2:
            parents = [self.random.randrange(-1, 9) for _ in noise]
            return Draft(draft.seq, draft.epoch, draft.base, parents, noise, [0.0] * len(noise), 1e-3)
        if kind == 3:
            return Draft(draft.seq, draft.epoch + 1, draft.base + 3, [-1], [2], [1.0], 1e-3)
        return draft

    def _client(self) -> None:
        def ping() -> None:
            self._to(b"verifier", b"client", Ping("gateway", 1, []), reliable=True)
            self.simulation.after(1.0, ping)

        ping()

    def _client_receives(self, message) -> None:
        if not isinstance(message, Tokens | Finished | Failed):
            return
        story = self.stories[message.seq]
        if story.end is not None:
            return
        if message.epoch != self.nodes[b"verifier"].machine.epoch:
            return
        if isinstance(message, Tokens):
            have = len(story.opening.prompt) + len(story.tokens)
            assert message.base == have, (message, have)
            story.tokens += message.tokens
            story.text += message.text
            return
        story.end = message
        if isinstance(message, Finished):
            story.text += message.text


def reference(opening: Open, target: TableSpec = TARGET) -> list[int]:
    """The output by definition: sample the target token after token, no draft, no window, no machine."""
    from hetero.workers.decoding.target_sequence import sampler_of
    from hetero.workers.engines.base import Row

    engine = TableEngine(target)
    sampler = sampler_of(opening, PIECES.grammars.start(opening.grammar) if opening.grammar else None)
    outcome = None
    for first in range(0, len(opening.prompt), engine.limits.chunk):
        outcome = engine.prefill(1, opening.prompt[first : first + engine.limits.chunk])
    output: list[int] = []
    while True:
        position = len(opening.prompt) + len(output)
        output.append(outcome.sample(0, sampler, position).token)
        sampler.processor.commit(output[-1])
        ended = output[-1] in PIECES.ends or sampler.processor.complete
        if ended or len(output) == min(opening.max_tokens, target.context - len(opening.prompt)):
            return output
        outcome = engine.extend([Row(1, len(output), len(output) - 1, output[-1])])
        engine.commit(1, len(output))


def prompts(seed: int, count: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, END, size=rng.integers(1, 50)).tolist() for _ in range(count)]
