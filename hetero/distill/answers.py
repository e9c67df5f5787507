"""The target writes, many texts at once, and tells of every token what it thought of the others.

A drafter meets the target's own samples and nothing else: what it proposed counts only where it is the target's sample,
too. So it is distilled on texts of the target's own (DistillSpec, Zhou et al. 2024, on the target's side).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from hetero.distill.corpus import TOP, Text
from hetero.workers.engines.base import Engine, Features, Outcome, Row


@dataclass(frozen=True)
class Prompt:
    """``tokens`` that a text begins with, at least two. ``turns``: what stands between one part of the target's and the
    next (a prompt that it asks itself has one: the beginning of its answer); ``temperatures`` of the parts; ``most``
    tokens of each."""

    tokens: list[int]
    turns: tuple[tuple[int, ...], ...] = ()
    temperatures: tuple[float, ...] = (1.0,)
    most: int = 256


@dataclass(eq=False)
class _Open:
    """A text that is being written. ``given``: tokens that come next whatever the target says."""

    prompt: Prompt
    seq: int
    tokens: list[int]
    node: int = 0
    part: int = 0
    said: int = 0
    given: list[int] = field(default_factory=list)
    ids: list[NDArray[np.int32]] = field(default_factory=list)
    logprobs: list[NDArray[np.float16]] = field(default_factory=list)
    states: list[Features] = field(default_factory=list)

    def text(self) -> Text:
        first = len(self.tokens) - len(self.ids)
        states = np.concatenate(self.states) if self.states else None
        return Text(np.array(self.tokens, np.int32), first, np.stack(self.ids), np.stack(self.logprobs), states)


class Author:
    """A target's engine that writes."""

    def __init__(self, engine: Engine, ends: frozenset[int], seed: int) -> None:
        self._engine, self._ends = engine, ends
        self._chance = torch.Generator().manual_seed(seed)
        self._seq = 0
        self._prefixes: dict[tuple[int, ...], tuple[int, list[Features]]] = {}  # their keys, and states

    def write(self, prompts: Iterator[Prompt], over: Callable[[], bool]) -> Iterator[Text]:
        """Texts as they end, and once it is ``over`` those that are begun, as far as they are."""
        texts: list[_Open] = []
        try:
            while not over():
                while len(texts) < self._engine.limits.sequences and (prompt := next(prompts, None)) is not None:
                    texts.append(self._begin(prompt))
                if not texts:
                    return
                for text in self._step(texts):
                    texts.remove(text)
                    self._engine.close(text.seq)
                    yield text.text()
            yield from (text.text() for text in texts if text.ids)
        finally:
            for text in texts:
                self._engine.close(text.seq)

    def _begin(self, prompt: Prompt) -> _Open:
        """Its last token is evaluated with the others' next."""
        self._seq += 1
        known, states = tuple(prompt.tokens[:-1]), list[Features]()
        if known in self._prefixes:
            key, states = self._prefixes[known]
            self._engine.load_prefix(self._seq, key, len(known))
        else:
            for first in range(0, len(known), self._engine.limits.chunk):
                part = known[first : first + self._engine.limits.chunk]
                states += self._seen(self._engine.prefill(self._seq, part), len(part))
            if prompt.turns and self._engine.limits.prefixes:  # every such prompt begins alike
                self._prefixes[known] = key, _ = len(self._prefixes) + 1, states
                self._engine.save_prefix(self._seq, key, len(known))
                self._engine.close(self._seq)
                self._engine.load_prefix(self._seq, key, len(known))
        return _Open(prompt, self._seq, list(known), given=list(prompt.tokens[-1:]), states=list(states))

    def _seen(self, outcome: Outcome, rows: int) -> list[Features]:
        """States of the tokens of an outcome, where the engine hands them out."""
        return [outcome.features(range(rows)).copy()] if self._engine.limits.features else []

    def _step(self, texts: list[_Open]) -> list[_Open]:
        """One more token of each; those that are over."""
        rows = []
        for text in texts:
            text.tokens.append(text.given.pop(0))
            rows.append(Row(text.seq, text.node + 1, text.node, text.tokens[-1]))
        outcome = self._engine.extend(rows)
        states = self._seen(outcome, len(rows))
        logits = torch.from_numpy(np.stack([outcome.logits(n) for n in range(len(rows))]))
        values, ids = logits.topk(min(TOP, logits.shape[1]))
        logprobs = (values - logits.logsumexp(-1, keepdim=True)).to(torch.float16).numpy()
        temperatures = torch.tensor([text.prompt.temperatures[text.part] for text in texts])
        chosen = drawn(logits, values, ids, temperatures, self._chance)
        done = []
        longest = self._engine.limits.context - 1
        for n, text in enumerate(texts):
            text.node += 1
            self._engine.commit(text.seq, text.node)
            text.states += [each[n : n + 1] for each in states]
            text.ids.append(ids[n].numpy().astype(np.int32))
            text.logprobs.append(logprobs[n])
            if not text.given:
                text.given.append(chosen[n])
                text.said += 1
                ended = chosen[n] in self._ends
                if ended and text.part < len(text.prompt.turns) and text.said > 1:
                    text.given += text.prompt.turns[text.part]
                    text.part, text.said = text.part + 1, 0
                elif ended or text.said >= text.prompt.most:
                    done.append(text)
            if len(text.tokens) >= longest and text not in done:
                done.append(text)
        return done


def drawn(
    logits: torch.Tensor, values: torch.Tensor, ids: torch.Tensor, temperatures: torch.Tensor, chance: torch.Generator
) -> list[int]:
    """A token of each row [rows, vocabulary] at its temperature (0: the likeliest); ``values``, ``ids``: its top.
    Nearly all are among the top, so only the others cost a walk through the vocabulary."""
    warm = temperatures.clamp(min=1e-4)[:, None]
    shares = ((values - values[:, :1]) / warm).exp()
    whole = ((logits - values[:, :1]) / warm).exp().sum(-1, keepdim=True)
    points = torch.rand(len(logits), 1, generator=chance) * whole
    points[temperatures == 0] = 0.0
    places = (shares.cumsum(-1) < points).sum(-1)
    found = []
    for n, place in enumerate(places.tolist()):
        if place < ids.shape[1]:
            found.append(int(ids[n, place]))
        else:
            rest = (logits[n] - values[n, 0]).div(warm[n]).exp()
            rest[ids[n]] = 0.0
            found.append(int(torch.multinomial(rest, 1, generator=chance)))
    return found
