"""Texts in a student's own tokens, as training has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hetero.distill.corpus import Text
from hetero.distill.students.student import Words


@dataclass(frozen=True)
class Lesson:
    """``tokens`` [n] of the student's; at ``places`` [m] it is told ``ids`` [m, top], own tokens (-1: it has not), and
    their ``shares`` [m, top] in what the target would say. ``states`` [n, width]: what the target makes of them, where
    it goes on from that."""

    tokens: NDArray[np.int64]
    places: NDArray[np.int64]
    ids: NDArray[np.int64]
    shares: NDArray[np.float32]
    states: NDArray[np.float16] | None = None


def spelt(tokens: Iterable[int], words: Words) -> tuple[list[int], list[int]]:
    """Own tokens of a text's, and where the last of each lies."""
    own: list[int] = []
    last: list[int] = []
    for token in tokens:
        own += words.spelt(token)
        last.append(len(own) - 1)
    return own, last


def lesson(text: Text, words: Words, longest: int) -> Lesson:
    """A text, of at most ``longest`` own tokens: of a longer one where the target begins to speak, with a quarter of it
    before that. What the student cannot say at all counts for nothing. (A text with states is read as it is.)"""
    own, last = spelt(text.tokens.tolist(), words)
    places = np.array(last[text.first :], np.int64)
    ids = words.same[text.ids.astype(np.int64)]
    shares = np.exp(text.logprobs.astype(np.float32))
    lost = np.where(ids < 0, shares, 0.0).sum(-1, keepdims=True)
    shares = np.where(ids < 0, 0.0, shares / np.maximum(1e-3, 1.0 - lost))
    start = max(0, min(len(own) - longest, int(places[0]) - longest // 4)) if len(places) else 0
    within = places < start + longest
    cut = np.array(own[start : start + longest], np.int64)
    states = None if text.states is None else text.states[start : start + longest]
    return Lesson(cut, places[within] - start, ids[within], shares[within], states)


class Lessons(torch.utils.data.Dataset[Lesson]):  # type: ignore[misc]
    """All of a corpus."""

    def __init__(self, lessons: Sequence[Lesson]) -> None:
        self._lessons = lessons

    def __len__(self) -> int:
        return len(self._lessons)

    def __getitem__(self, n: int) -> Lesson:
        return self._lessons[n]


def given(tokens: Sequence[NDArray[np.int64]], states: Sequence[NDArray[np.float16] | None]) -> dict[str, Any]:
    """Texts side by side: ``tokens`` [n] of each, and their ``states`` [n, width] where there are any."""
    found = {"tokens": _together(tokens, np.int64)}
    if (told := [one for one in states if one is not None]) and len(told) == len(states):
        found["states"] = _together(told, np.float32)
    return found


def _together(texts: Sequence[NDArray[Any]], kind: type) -> torch.Tensor:
    found = np.zeros((len(texts), max(map(len, texts)), *texts[0].shape[1:]), kind)
    for n, one in enumerate(texts):
        found[n, : len(one)] = one
    return torch.from_numpy(found)


def batch(lessons: Sequence[Lesson]) -> dict[str, Any]:
    """Lessons side by side, the shorter ones followed by what nobody looks at."""
    longest = max(len(one.tokens) for one in lessons)
    return {
        **given([one.tokens for one in lessons], [one.states for one in lessons]),
        "places": torch.from_numpy(np.concatenate([one.places + n * longest for n, one in enumerate(lessons)])),
        "ids": torch.from_numpy(np.concatenate([one.ids for one in lessons])),
        "shares": torch.from_numpy(np.concatenate([one.shares for one in lessons])),
    }
