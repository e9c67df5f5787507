"""A model's own next-token layers (MTP) as a head, through llama.cpp: they draft from the states of the model's end.

One layer of a checkpoint guesses the token after the next from the state before and the token's embedding (DeepSeek-V3,
section 2.2; Qwen3.5, GLM-4.5 and others bring one). Further tokens are drafted from its own states by the same layer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp import llama_cpp_ext

from hetero.workers.engines.accelerators import gpu_handles
from hetero.workers.engines.base import Features, Outcome
from hetero.workers.engines.head_states import HeadStates
from hetero.workers.engines.ledger import Entry, in_order
from hetero.workers.engines.llama_cpp.batch import State, StateBatch
from hetero.workers.engines.llama_cpp.engine import BranchedSequence, LlamaEngine, LlamaSettings
from hetero.workers.errors import EngineError, Unsupported
from hetero.workers.models.gguf import open_gguf
from hetero.workers.sampling.logits_processors import Logits


class NextTokenEngine(LlamaEngine):
    """``engines.base.Head``, of a file with a model's next-token layers."""

    _kind = llama_cpp.LLAMA_CONTEXT_TYPE_MTP

    def __init__(self, path: Path, settings: LlamaSettings) -> None:
        """Raises ModelError for a file llama.cpp refuses."""
        if settings.exact:
            raise Unsupported(f"{path.name} drafts, and its guesses are not exact")
        gpus = gpu_handles(path, settings.gpu, settings.gpus)
        super().__init__(path, settings, open_gguf(path, gpus, layers=settings.gpu_layers, next_tokens=True))
        self._width = llama_cpp.llama_model_n_embd(self._model)
        if llama_cpp.llama_model_n_embd_out(self._model) != self._width:
            raise Unsupported(f"{path.name}: its states are not as wide as its embedding")
        # Of all rows: asked for those with logits alone, the library hands out others'.
        llama_cpp_ext.llama_set_embeddings_nextn(self._context, True, False)
        self._states_of: dict[int, HeadStates[State]] = {}
        self._batch = self._rows = StateBatch(self._context, self._width, len(self._batch.ids))
        self.limits = replace(self.limits, lasting=False, prefixes=False, drafts_from=self._width)

    def inform(self, seq: int, first: int, features: Features) -> None:
        self._book(seq).true.update(enumerate(features, first))

    def prefill(self, seq: int, tokens: Sequence[int], every: bool = False) -> Outcome:
        book = self._book(seq)
        held = self._sequences.get(seq)
        first = held.ledger.length if held is not None else 0
        self._rows.given = [book.true.get(first + at) for at in range(len(tokens))]
        outcome = super().prefill(seq, tokens, every)
        book.own[0] = self._left(len(tokens) - 1)
        return outcome

    def commit(self, seq: int, node: int, keep: Collection[int] = ()) -> None:
        super().commit(seq, node, keep)
        self._book(seq).committed(node, keep, self._held(seq).ledger.length)

    def close(self, seq: int) -> None:
        super().close(seq)
        self._states_of.pop(seq, None)

    def shutdown(self) -> None:
        self._rows.free()
        super().shutdown()

    def _evaluate(self, entries: Sequence[Entry[BranchedSequence]], starts: Sequence[tuple[int, int]]) -> Outcome:
        """A guess needs the state that is left at the token before: those rows first."""
        found: dict[int, Logits] = {}
        waiting = list(entries)
        while waiting:
            now, later = [], []
            for entry in waiting:
                ready, held = self._book(entry.rows[0].seq).divided(entry.rows, entry.positions)
                now.append(entry.part(ready))
                later += [entry.part(held)] if held else []
            waiting = later
            rows = in_order(now)
            places = {
                (row.seq, row.node): place for part in now for row, place in zip(part.rows, part.positions, strict=True)
            }
            self._rows.given = [self._book(row.seq).before(row, places[row.seq, row.node]) for row in rows]
            self._fill(rows)
            self._decode(starts)
            order = sorted(place for part in now for place in part.places)
            for at, (row, place) in enumerate(zip(rows, order, strict=True)):
                found[place] = self._logits(at)
                self._book(row.seq).own[row.node] = self._left(at)
        return _Kept([found[place] for place in sorted(found)])

    def _book(self, seq: int) -> HeadStates[State]:
        return self._states_of.setdefault(seq, HeadStates())

    def _logits(self, at: int) -> Logits:
        pointer = llama_cpp.llama_get_logits_ith(self._context, at)
        if not pointer:
            raise EngineError(f"llama.cpp has no logits of row {at}")
        return np.ctypeslib.as_array(pointer, (self.limits.vocabulary,)).copy()

    def _left(self, at: int) -> State:
        """The state that a row of the latest forward left."""
        pointer = llama_cpp_ext.llama_get_embeddings_nextn_ith(self._context, at)
        if not pointer:
            raise EngineError(f"llama.cpp has no state of row {at}")
        return np.ctypeslib.as_array(pointer, (self._width,)).copy()


class _Kept(Outcome):
    """Of several forwards."""

    def __init__(self, logits: list[Logits]) -> None:
        self._found = logits

    def logits(self, row: int) -> Logits:
        return self._found[row]
