"""What all who learn have in common, whatever they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray


class Words(Protocol):
    """The target's tokens in a student's own (``workers.models.translation.Translation``, ``Cut``)."""

    @property
    def same(self) -> NDArray[np.int64]:
        """Of each of the target's tokens the one that stands for it where the student speaks; -1: it cannot say it."""

    def spelt(self, token: int) -> list[int]:
        """What it reads for one."""

    def logits(self, own: NDArray[np.float32]) -> NDArray[np.float32]:
        """What it says, in the target's tokens."""


@dataclass(frozen=True)
class Cut:
    """It reads the target's tokens, and says those that are ``kept``, ascending; ``whole``: how many there are."""

    kept: NDArray[np.int64]
    same: NDArray[np.int64]

    @classmethod
    def to(cls, kept: Sequence[int], whole: int) -> Cut:
        """Of a vocabulary of ``whole`` tokens."""
        found = np.full(whole, -1, np.int64)
        found[kept] = np.arange(len(kept))
        return cls(np.asarray(kept, np.int64), found)

    def spelt(self, token: int) -> list[int]:
        return [token]

    def logits(self, own: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(self.kept) == len(self.same):
            return own
        found = np.full(len(self.same), -np.inf, np.float32)
        found[self.kept] = own
        return found


class Source(Protocol):
    """What the target makes of a text, from which a student goes on."""

    @property
    def said(self) -> str:
        """What it is, as the user is told."""

    @property
    def width(self) -> int:
        """Numbers of a token."""

    def states(self, tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float16]:
        """Of a text's tokens, the student's: [tokens, width]."""


class Student(Protocol):
    """Who learns. ``model``: its weights; ``words`` it speaks in; ``source``: None where tokens are all it reads."""

    model: Any  # torch.nn.Module, which is untyped here
    words: Words
    source: Source | None

    def say(self, model: Any, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits [steps, texts * tokens, own tokens] of what follows each token. ``model``: its own, maybe wrapped;
        ``given``: ``lessons.given``. In a step behind the first it knows less of the target's states: as deep in a
        draft."""

    def facts(self) -> list[tuple[str, str]]:
        """For its card."""

    def write(self, out: Path) -> Path:
        """As a drafter that can be served, in the folder ``out``, whole or not at all. Raises ModelError, OSError."""
