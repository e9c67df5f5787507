"""A simulated pair over table engines in a world that misbehaves, and what its texts must be by definition."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from msgspec import structs

from helpers.table_heads import HeadTable, TellingTable
from hetero.workers.decoding.policy.strategy import NAMES, strategy
from hetero.workers.decoding.target_sequence import sampler_of
from hetero.workers.engines.base import Row
from hetero.workers.engines.table import TableEngine, TableSpec, drafter_spec
from hetero.workers.errors import EngineError
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.simulation.client import Route, Story
from hetero.workers.simulation.devices import TableDevice
from hetero.workers.simulation.links import Link
from hetero.workers.simulation.pair import Setting, SimulatedPair
from hetero.workers.simulation.worker import SimulatedWorker
from hetero.workers.wire.messages import Draft, Open, Sampling

VOCABULARY = 48
END = 47
PIECES = Vocabulary([bytes([97 + token % 26]) for token in range(VOCABULARY)], frozenset({END}))
TARGET = TableSpec(vocabulary=VOCABULARY, context=400, seed=7, sharpness=2.0, chunk=16, rows=64, sequences=3, early=0.7)


@dataclass(frozen=True)
class Faults:
    """How the world misbehaves. Probabilities are per message or per forward; crashes have mean seconds between."""

    lose: float = 0.0
    repeat: float = 0.0
    delay: float = 0.0005
    jitter: float = 0.0
    engine: float = 0.0  # a drafter forward raises, or spoils its logits
    drafter_crash: float | None = None
    verifier_crash: float | None = None
    adversary: bool = False  # drafts are overwritten with nonsense
    guesses: bool = False  # the drafter's draft tokens are only good until the next commit
    hang: float | None = None  # mean seconds between times when some worker stands still for up to four seconds
    partition: float | None = None  # between those when a drafter and a verifier do not hear of each other, likewise
    jump: float | None = None  # between those when some worker's clock is up to a minute later all at once
    revised: float | None = None  # mean seconds between other strategies that all are told to follow


class World:
    """One schedule: a pure function of its arguments. ``agreement``: of the drafter, of several, or None: there is
    none; ``heads``: drafters draft from the target's features."""

    def __init__(
        self,
        seed: int,
        name: str,
        gamma: int = 4,
        agreement: float | tuple[float, ...] | None = 0.8,
        faults: Faults | None = None,
        target_s: float = 0.02,
        draft_s: float = 0.003,
        target: TableSpec = TARGET,
        cached: int = 0,
        verifiers: int = 1,
        draft_context: int = 4096,
        past: int | None = None,
        heads: bool = False,
        route: Route | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.faults = faults or Faults()
        agreements = () if agreement is None else agreement if isinstance(agreement, tuple) else (agreement,)
        link = Link(self.faults.delay, self.faults.jitter, self.faults.lose, self.faults.repeat)
        self._target = target
        self._draft_context = draft_context
        self._kinds = (TellingTable, HeadTable) if heads else (TableEngine, TableEngine)
        self._devices: list[TableDevice] = []
        self.pair = SimulatedPair(
            Setting(
                strategy=strategy(name, gamma),
                vocabulary=PIECES,
                verifiers=[lambda: self._device(target, target_s)] * verifiers,
                drafters=[lambda share=share: self._device(self._drafter(share), draft_s, 1) for share in agreements],
                link=link,
                client_link=Link(self.faults.delay),
                seed=seed,
                tree_nodes=64,
                cached=cached,
                past=past,
                twist=self._twist if self.faults.adversary else None,
                route=route,
            )
        )
        for worker in list(self.pair.workers):
            mean = self.faults.verifier_crash if worker.startswith(b"verifier") else self.faults.drafter_crash
            if mean is not None:
                self._crash_after(worker, mean)

        if self.faults.revised is not None:
            self._revise(gamma)
        verifiers = [name for name in self.pair.workers if name.startswith(b"verifier")]
        drafters = [name for name in self.pair.workers if name.startswith(b"drafter")]
        some = self.random.choice
        self._now_and_then(self.faults.hang, lambda: self._some().freeze(self.random.uniform(0.1, 4)))
        self._now_and_then(self.faults.jump, lambda: self._some().jump(self.random.uniform(0.1, 60)))
        if drafters:
            self._now_and_then(
                self.faults.partition,
                lambda: self.pair.cut(some(verifiers), some(drafters), self.random.uniform(0.1, 4)),
            )

    @property
    def stories(self) -> list[Story]:
        return list(self.pair.client.stories.values())

    @property
    def now(self) -> float:
        return self.pair.clock.now

    @property
    def errors(self) -> list[str]:
        """What engines complained of."""
        return [str(error) for device in self._devices for error in device.errors]

    def engine(self, name: bytes) -> TableEngine:
        device = self.pair[name].device
        assert isinstance(device, TableDevice)
        return device.engine

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
        verifier: int = 0,
        asked: dict[str, object] | None = None,
        **more: object,
    ) -> Story:
        """``asked``: more fields of Open, ``more``: of Sampling."""
        sampling = Sampling(temperature, seed=seed, **more)
        own = Open(len(self.stories) + 1, 0, prompt, [], sampling, max_tokens, list(stop), grammar, plain)
        opening = structs.replace(own, **(asked or {}))
        return self.pair.client.ask(opening, b"verifier-%d" % verifier, at)

    def cancel(self, story: Story, at: float) -> None:
        self.pair.client.cancel(story, at)

    def play(self, until: float = 600.0) -> None:
        assert self.pair.play(until), f"unfinished: {[story for story in self.stories if story.end is None]}"

    def settle(self) -> None:
        self.pair.settle()

    # Inside

    def _device(self, spec: TableSpec, seconds: float, role: int = 0) -> TableDevice:
        device = TableDevice(self._kinds[role](spec), lambda: seconds * self.random.uniform(0.5, 1.5))
        self._devices.append(device)
        return device

    def _drafter(self, agreement: float) -> TableSpec:
        return replace(
            drafter_spec(self._target, agreement),
            fault=self._fault,
            context=self._draft_context,
            lasting=not self.faults.guesses,
        )

    def _fault(self, number: int, tokens: list[int]) -> str | None:
        if self.random.random() < self.faults.engine:
            if self.random.random() < 0.5:
                return "nan"
            raise EngineError("scripted")
        return None

    def _some(self) -> SimulatedWorker:
        return self.random.choice(list(self.pair.workers.values()))

    def _now_and_then(self, mean: float | None, befall: Callable[[], None]) -> None:
        """Let it befall them, every ``mean`` seconds."""
        if mean is None:
            return

        def again() -> None:
            befall()
            self._now_and_then(mean, befall)

        self.pair.clock.after(self.random.expovariate(1 / mean), again)

    def _crash_after(self, name: bytes, mean: float) -> None:
        def crash() -> None:
            self.pair.kill(name, 0.2)
            self.pair.clock.after(0.2 + self.random.expovariate(1 / mean), crash)

        self.pair.clock.after(self.random.expovariate(1 / mean), crash)

    def _revise(self, gamma: int) -> None:
        def revise() -> None:
            chosen = strategy(self.random.choice(NAMES), gamma)
            for worker in self.pair.workers.values():  # now and then one is not told, as it was away
                if self.random.random() < 0.9:
                    worker.machine.follow(chosen)
                    worker.poke()
            self._revise(gamma)

        assert self.faults.revised is not None
        self.pair.clock.after(self.random.expovariate(1 / self.faults.revised), revise)

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


def reference(opening: Open, target: TableSpec = TARGET) -> list[int]:
    """The output by definition: sample the target token after token, no draft, no window, no machine."""
    engine = TableEngine(target)
    sampler = sampler_of(opening, PIECES)
    outcome = None
    for first in range(0, len(opening.prompt), engine.limits.chunk):
        outcome = engine.prefill(1, opening.prompt[first : first + engine.limits.chunk])
    output: list[int] = []
    while True:
        position = len(opening.prompt) + len(output)
        output.append(outcome.sample(0, sampler, position))
        sampler.processor.commit(output[-1])
        ended = output[-1] in {*PIECES.ends, *opening.stop_ids} or sampler.processor.complete
        if ended or len(output) == min(opening.max_tokens, target.context - len(opening.prompt)):
            return output
        outcome = engine.extend([Row(1, len(output), len(output) - 1, output[-1])])
        engine.commit(1, len(output))


def prompts(seed: int, count: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, END, size=rng.integers(1, 50)).tolist() for _ in range(count)]
