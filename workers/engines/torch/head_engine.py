"""A head as an engine: it drafts from the target's states where those have come, and below from its own.

What it holds of a draft token was made from a guess of the target's state, so it is evaluated again once committed
(``EngineLimits.lasting``), from the true one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hetero.workers.engines.base import Features, OnEarlyExit, Outcome, Row
from hetero.workers.engines.head_states import HeadStates
from hetero.workers.engines.kv_slots import SlotSequence
from hetero.workers.engines.ledger import Entry, entered, row_order
from hetero.workers.engines.torch.attention import Forward, Part
from hetero.workers.engines.torch.engine import Course, TorchEngine, TorchOutcome, TorchSettings
from hetero.workers.engines.torch.heads import HeadModel, load_head
from hetero.workers.errors import Unsupported
from hetero.workers.models.head import read_head


class HeadEngine(TorchEngine):
    """``engines.base.Head``."""

    def __init__(self, path: Path, target: Path, settings: TorchSettings) -> None:
        """Load the head of a directory; ``target``: whose. Raises ModelError, Unsupported."""
        if settings.exact or settings.group > 1:
            raise Unsupported(f"{path.name} is a head: it drafts, and its guesses are not exact")
        self._target = target
        self._books: dict[int, HeadStates[Tensor]] = {}
        self._given: list[Tensor | None] = []  # states before the rows of the forward that is about to run
        self._left: Tensor | None = None  # states of its rows
        super().__init__(path, settings)
        self.limits = replace(self.limits, lasting=False, prefixes=False, drafts_from=read_head(path).features)

    def inform(self, seq: int, first: int, features: Features) -> None:
        book, most = self._books.setdefault(seq, HeadStates()), self.limits.chunk
        try:
            for at in range(0, len(features), most):
                given = torch.from_numpy(features[at : at + most].copy()).to(self._device, self._keys.dtype)
                with torch.inference_mode():
                    book.true.update(enumerate(self._head.state(given), first + at))
        except (RuntimeError, torch.OutOfMemoryError):  # it then goes on from its own
            book.true.clear()

    def prefill(self, seq: int, tokens: Sequence[int], every: bool = False) -> Outcome:
        book = self._books.setdefault(seq, HeadStates())
        first = self.length(seq) if seq in self._slots else 0
        self._given = [book.true.get(first + at) for at in range(len(tokens))]
        outcome = super().prefill(seq, tokens, every)
        assert self._left is not None
        book.own[0] = self._left[-1]
        return outcome

    def extend(self, rows: Sequence[Row], on_early_exit: OnEarlyExit | None = None) -> Outcome:
        with entered(rows, self.limits, self._slots.__getitem__) as entries:
            done: list[Entry[SlotSequence]] = []
            found: list[Tensor] = []
            waiting = entries
            while waiting:
                # A guess needs the state that the head itself leaves at the token before.
                now, later = [], []
                for entry in waiting:
                    ready, held = self._books[entry.rows[0].seq].divided(entry.rows, entry.positions)
                    now += [entry.part(ready)]
                    later += [entry.part(held)] if held else []
                waiting = later
                self._given = [
                    self._books[row.seq].before(row, place)
                    for part in now
                    for row, place in zip(part.rows, part.positions, strict=True)
                ]
                found.append(self._forward(self._true, now))
                assert self._left is not None
                places = [row for part in now for row in part.rows]
                for row, state in zip(places, self._left, strict=True):
                    self._books[row.seq].own[row.node] = state
                done += now
        return TorchOutcome(torch.cat(found), row_order(done))

    def commit(self, seq: int, node: int, keep: Collection[int] = ()) -> None:
        super().commit(seq, node, keep)
        self._books[seq].committed(node, keep, self.length(seq))

    def close(self, seq: int) -> None:
        super().close(seq)
        self._books.pop(seq, None)

    def _load(self, path: Path, settings: TorchSettings, parts_of: int) -> HeadModel:
        self._head = load_head(path, self._target, settings.dtype)
        return self._head

    def _logits(self, course: Course, tokens: Tensor, positions: Tensor, parts: list[Part], keep: int = 0) -> Tensor:
        count, width = tokens.shape[1], self._head.config.hidden_size
        nothing = torch.zeros(width, dtype=self._keys.dtype, device=self._device)
        given = self._given or [None] * count
        before = torch.stack([state if state is not None else nothing for state in given])
        forward = Forward(self._keys, self._values, parts, False, self._aborted)
        logits, self._left = self._head(tokens, before, positions, forward, keep)
        self._given = []
        return logits
