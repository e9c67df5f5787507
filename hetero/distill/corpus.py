"""What a student learns from, on disk: texts of the target's, and what it thought of each of their tokens.

Pieces of some thousand tokens in safetensors files, each there whole or not at all: who was killed goes on behind them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hetero.errors import ModelError

TOP = 24  # likeliest tokens that are kept of a position
_PIECE = 20_000  # tokens


@dataclass(frozen=True)
class Text:
    """``tokens`` [n]; of what follows each from ``first`` on ``ids`` [n - first, TOP], the likeliest first, and their
    natural ``logprobs``, as the target has them at temperature 1. ``states`` [n, width]: its hidden ones of the tokens,
    where those are wanted."""

    tokens: NDArray[np.int32]
    first: int
    ids: NDArray[np.int32]
    logprobs: NDArray[np.float16]
    states: NDArray[np.float16] | None = None


class Corpus:
    """A folder of texts."""

    def __init__(self, folder: Path) -> None:
        """Opened, or made. Raises OSError."""
        self._folder = folder
        self._waiting: list[Text] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.pieces = max((int(file.stem) + 1 for file in self._files()), default=0)

    def add(self, text: Text) -> None:
        """Keep a text; it may stay in memory for a while. Raises OSError, SafetensorError where the disk is full."""
        self._waiting.append(text)
        if sum(len(each.tokens) for each in self._waiting) >= _PIECE:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        texts, self._waiting = self._waiting, []
        file = self._folder / f"{self.pieces:05}.safetensors"
        part = file.with_suffix(".part")
        try:
            if all(text.states is not None for text in texts):  # first: a piece is there with its texts
                with part.open("wb") as opened:
                    np.save(opened, np.concatenate([text.states for text in texts if text.states is not None]))
                part.rename(_states(file))
            save_file(_packed(texts), part)
            part.rename(file)
        finally:
            part.unlink(missing_ok=True)
        self.pieces += 1

    def texts(self) -> Iterator[Text]:
        """All that was written; states stay on disk until they are looked at. Raises ModelError for a damaged file."""
        for file in self._files():
            try:
                found = load_file(file)
                states = np.load(_states(file), mmap_mode="r") if _states(file).is_file() else None
                bounds = np.cumsum([0, *found["lengths"]])
                rows = np.cumsum([0, *(found["lengths"] - found["firsts"])])
                for n, first in enumerate(found["firsts"].tolist()):
                    own = slice(rows[n], rows[n + 1])
                    whole = slice(bounds[n], bounds[n + 1])
                    yield Text(
                        found["tokens"][whole],
                        first,
                        found["ids"][own],
                        found["logprobs"][own],
                        None if states is None else states[whole],
                    )
            except (OSError, SafetensorError, KeyError, ValueError) as error:
                raise ModelError(f"{file}: damaged ({error}): delete it, and go on without it") from None

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9]*.safetensors"))


def _states(file: Path) -> Path:
    """Where those of a piece lie."""
    return file.with_suffix(".npy")


def _packed(texts: Sequence[Text]) -> dict[str, NDArray[np.generic]]:
    return {
        "tokens": np.concatenate([text.tokens for text in texts]).astype(np.int32),
        "lengths": np.array([len(text.tokens) for text in texts], np.int32),
        "firsts": np.array([text.first for text in texts], np.int32),
        "ids": np.concatenate([text.ids for text in texts]).astype(np.int32),
        "logprobs": np.concatenate([text.logprobs for text in texts]).astype(np.float16),
    }
