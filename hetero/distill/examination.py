"""How often a student says what the target says: on texts kept apart, by the rule and the noise that serve."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch

from hetero.distill.lessons import given, spelt
from hetero.distill.students.student import Student
from hetero.errors import ModelError
from hetero.workers.engines.base import Engine, Row
from hetero.workers.sampling.gumbel import prompt_digest
from hetero.workers.sampling.sampler import Sampler
from hetero.workers.wire.messages import Sampling

TEMPERATURES = (0.0, 0.8)


class Answer(msgspec.Struct, frozen=True):
    """What the target says to a prompt at a temperature and a seed."""

    prompt: list[int]
    said: list[int]
    temperature: float
    seed: int


@dataclass(frozen=True)
class Marks:
    """Shares of positions at which student and target agree, by temperature, and how many positions those are.
    ``later``: at both, of the second token of a draft, the third, ... where those are guessed from less."""

    agreement: dict[float, float]
    positions: int
    later: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Over temperatures and tokens of a draft."""
        first = sum(self.agreement.values()) / max(1, len(self.agreement))
        return (first + sum(self.later)) / (1 + len(self.later))

    def __str__(self) -> str:
        found = ", ".join(f"{share:.3f} at temperature {t:g}" for t, share in sorted(self.agreement.items()))
        return found + "".join(f", {share:.3f} of token {n}" for n, share in enumerate(self.later, 2))


def answers(engine: Engine, ends: frozenset[int], prompts: Sequence[Sequence[int]], most: int) -> list[Answer]:
    """The target's own, of at most ``most`` tokens."""
    asked = [(list(prompt), t, seed) for t in TEMPERATURES for seed, prompt in enumerate(prompts)]
    found: list[Answer] = []
    size = engine.limits.sequences
    for first in range(0, len(asked), size):
        found += _together(engine, ends, asked[first : first + size], most)
    return found


def _together(
    engine: Engine, ends: frozenset[int], asked: Sequence[tuple[list[int], float, int]], most: int
) -> list[Answer]:
    samplers = [Sampler(Sampling(t, seed=seed), prompt_digest(prompt)) for prompt, t, seed in asked]
    said: list[list[int]] = []
    for n, (prompt, _, _) in enumerate(asked):
        for at in range(0, len(prompt), engine.limits.chunk):
            outcome = engine.prefill(n + 1, prompt[at : at + engine.limits.chunk])
        said.append([outcome.sample(0, samplers[n], len(prompt))])
    open_ = [n for n in range(len(asked)) if said[n][-1] not in ends]
    while open_:
        outcome = engine.extend([Row(n + 1, len(said[n]), len(said[n]) - 1, said[n][-1]) for n in open_])
        for row, n in enumerate(open_):
            token = outcome.sample(row, samplers[n], len(asked[n][0]) + len(said[n]))
            engine.commit(n + 1, len(said[n]))
            said[n].append(token)
        open_ = [n for n in open_ if said[n][-1] not in ends and len(said[n]) < most]
    for n in range(len(asked)):
        engine.close(n + 1)
    return [Answer(prompt, said[n], t, seed) for n, (prompt, t, seed) in enumerate(asked)]


def turn(line: str) -> str:
    """What the user says first, in a line of ``data/prompts.jsonl``."""
    return str(msgspec.json.decode(line)["turns"][0])


def keep(found: Sequence[Answer], file: Path) -> None:
    """Write answers."""
    part = file.with_suffix(".part")
    part.write_bytes(msgspec.json.encode(list(found)))
    part.rename(file)


def kept(file: Path) -> list[Answer]:
    """Those that were written. Raises ModelError."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[Answer])
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(f"{file}: damaged ({error}): delete it") from None


class Examination:
    """The target's answers, ready to be put to students."""

    def __init__(self, answers: Sequence[Answer], student: Student, longest: int) -> None:
        """``longest``: tokens, of a longer text the end."""
        self._student = student
        self._asked = []
        for answer in answers:
            own, last = spelt([*answer.prompt, *answer.said][:-1], student.words)
            cut = max(0, len(own) - longest)
            tokens = np.array(own[cut:], np.int64)
            states = None if student.source is None else student.source.states(tokens)
            self._asked.append((answer, given([tokens], [states]), [place - cut for place in last]))

    def marks(self) -> Marks:
        """Have the student say what follows each of the target's tokens."""
        model, words = self._student.model, self._student.words
        device = next(model.parameters()).device
        hits: dict[tuple[int, float], int] = defaultdict(int)
        counts: dict[float, int] = defaultdict(int)
        was, _ = model.training, model.eval()
        for answer, begin, last in self._asked:
            said, before = [*answer.prompt, *answer.said], len(answer.prompt)
            with torch.no_grad():
                steps = self._student.say(model, {name: tensor.to(device) for name, tensor in begin.items()})
            sampler = Sampler(Sampling(answer.temperature, seed=answer.seed), prompt_digest(answer.prompt))
            for step, logits in enumerate(steps.float().cpu().numpy()):
                for position in range(before, len(said)):
                    row = words.logits(logits[last[position - 1]])
                    hits[step, answer.temperature] += sampler.sample(row, position) == said[position]
            counts[answer.temperature] += len(answer.said)
        model.train(was)
        whole = sum(counts.values())
        deep = max((step for step, _ in hits), default=0)
        later = tuple(sum(hits[step, t] for t in counts) / whole for step in range(1, deep + 1))
        return Marks({t: hits[0, t] / counts[t] for t in counts}, whole, later)
