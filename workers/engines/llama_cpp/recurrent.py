"""Recurrent and hybrid GGUF models (Mamba, LFM2, Granite-H, Qwen3.5, ...) through llama.cpp.

A state that has met a token cannot forget it. So a window is a chain, and what the target rejects is taken back by
the library's own snapshots where the model has them (``n_rs_seq``), else by a copy of the state from before the window,
from which the accepted tokens are evaluated once more with the next one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import llama_cpp

from hetero.workers.engines.base import EngineLimits, OnEarlyExit, Outcome, Row
from hetero.workers.engines.ledger import Ledger, entered
from hetero.workers.engines.llama_cpp.batch import RowBatch, failure
from hetero.workers.engines.llama_cpp.engine import IS_SET, LlamaOutcome, LlamaSettings, padded, set_cache_type
from hetero.workers.engines.llama_cpp.states import LlamaStates
from hetero.workers.errors import EngineError, TooManyLeaves, UnknownNode, Unsupported

_ROWS = 16  # of a window: each may cost a snapshot
_BEHIND = 2  # windows of committed tokens after which the state is copied anew
_PARTIAL = llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY  # the recurrent part of a hybrid's state


@dataclass
class _Chain:
    """A sequence. ``cells``: tokens its state has met; ``pending``: those it must meet again before any other;
    ``nodes``: evaluated ones below the tip, in order; ``since``: tokens met since ``mark`` cells, where ``kept`` was
    copied; ``last``: tokens of the last forward, beyond which the snapshots do not reach."""

    id: int
    ledger: Ledger = field(default_factory=Ledger)
    cells: int = 0
    pending: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    mark: int = -1
    since: list[int] = field(default_factory=list)
    kept: ctypes.Array[ctypes.c_uint8] | None = None
    last: int = 0

    def undo(self, rows: Sequence[Row]) -> None:
        """Take rows back that were entered for a forward that failed."""
        self.ledger.undo(rows)


class RecurrentEngine:
    """One model. A forward has rows of one sequence, a chain."""

    def __init__(self, path: Path, settings: LlamaSettings, model: object) -> None:
        """Of an open model, which is the engine's from now on. Raises Unsupported for exact mode: widths change its
        bits."""
        self._model = model
        if settings.exact:
            llama_cpp.llama_model_free(model)
            raise Unsupported(f"{path.name} has recurrent memory, of which there is no exact mode")
        self._flag = ctypes.create_string_buffer(2)
        rows = min(settings.rows, _ROWS)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = settings.sequences * padded(settings.context + rows)
        params.n_seq_max = settings.sequences
        params.n_batch = params.n_ubatch = max(settings.chunk, settings.sequences) + _BEHIND * rows + 2 * rows
        params.n_threads = params.n_threads_batch = settings.threads
        params.kv_unified = False
        set_cache_type(params, settings.kv_cache)
        params.n_rs_seq = rows - 1
        params.no_perf = True
        params.abort_callback = IS_SET
        params.abort_callback_data = ctypes.cast(self._flag, ctypes.c_void_p)
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            llama_cpp.llama_model_free(self._model)
            raise EngineError(f"llama.cpp could not make a context of {params.n_ctx} cells for {path.name}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._states = LlamaStates(self._context, settings.features)
        self._snapshots = llama_cpp.llama_n_rs_seq(self._context)
        vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self.limits = EngineLimits(
            vocabulary, settings.context, rows, settings.chunk, settings.sequences, exact=True, draft_nodes=rows,
            branches=settings.sequences, prefixes=False, features=self._states.width,
        )  # fmt: skip
        self._batch = RowBatch(params.n_batch, 1)
        self._ids = list(range(settings.sequences))[::-1]
        self._sequences: dict[int, _Chain] = {}

    def prefill(self, seq: int, tokens: Sequence[int], every: bool = False) -> Outcome:
        held = self._sequences.get(seq)
        if held is None and not self._ids:
            raise TooManyLeaves(f"all {self.limits.sequences} sequences of the engine are open")
        opened = held is None
        held = held or _Chain(self._ids[-1])
        held.ledger.check_prefill(tokens, self.limits)
        self._copy(held)
        self._decode(held, tokens, range(len(tokens)) if every else [len(tokens) - 1])
        if opened:
            self._sequences[seq] = held
            self._ids.pop()
        held.ledger.length += len(tokens)
        wanted = list(range(len(tokens))) if every else [len(tokens) - 1]
        return LlamaOutcome(self._context, self.limits.vocabulary, wanted, self._states)

    def extend(self, rows: Sequence[Row], on_early_exit: OnEarlyExit | None = None) -> Outcome:
        with entered(rows, self.limits, self._held) as (entry,):
            held = entry.sequence
            above = held.nodes[-1] if held.nodes else held.ledger.tip
            if rows[0].parent != above:
                raise Unsupported("a recurrent model keeps one chain a sequence: commit before another branch")
            self._settle(held)
            first = len(held.pending)
            self._decode(held, [row.token for row in rows], range(len(rows)))
            held.nodes += [row.node for row in rows]
        own = list(range(first, first + len(rows)))
        return LlamaOutcome(self._context, self.limits.vocabulary, own, self._states, first)

    def commit(self, seq: int, node: int, keep: Collection[int] = ()) -> None:
        held = self._held(seq)
        held.ledger.commit(node, keep)
        held.nodes = [other for other in held.nodes if other in held.ledger.nodes]
        self._roll_back(held, held.ledger.length + len(held.nodes))

    def close(self, seq: int) -> None:
        held = self._sequences.pop(seq, None)
        if held is not None:
            llama_cpp.llama_memory_seq_rm(self._memory, held.id, 0, -1)
            self._ids.append(held.id)

    def save_prefix(self, seq: int, key: int, length: int) -> None:
        raise Unsupported("a recurrent model's prefixes are not kept")

    def load_prefix(self, seq: int, key: int, length: int) -> None:
        raise UnknownNode(f"no prefix was saved under {key}")

    def drop_prefix(self, key: int) -> None:
        """None is ever saved."""

    def abort(self) -> None:
        self._flag[0] = b"x"

    def shutdown(self) -> None:
        if self._context:
            llama_cpp.llama_free(self._context)
            llama_cpp.llama_model_free(self._model)
            self._context = None

    @property
    def used_cells(self) -> int:
        return sum(held.cells for held in self._sequences.values())

    def _held(self, seq: int) -> _Chain:
        held = self._sequences.get(seq)
        if held is None:
            raise UnknownNode(f"sequence {seq} is not open")
        return held

    def _settle(self, held: _Chain) -> None:
        """Have a copy of the state from not long ago, so that few tokens are ever met twice."""
        if not held.nodes and not held.pending:
            return self._copy(held)
        behind = len(held.since) + len(held.pending) - len(held.nodes)  # committed ones since the copy
        if behind <= _BEHIND * self.limits.rows:
            return None
        tokens = [*held.since, *held.pending]
        if held.nodes:
            self._restore(held)
            held.since, held.pending = [], tokens[:behind]
        try:
            self._decode(held, [], ())
        except EngineError:
            held.pending, held.since = tokens, []
            raise
        self._copy(held)
        held.pending = tokens[behind:]
        return None

    def _copy(self, held: _Chain) -> None:
        """Keep the state as it is now."""
        if held.mark == held.cells and (held.kept is not None or not held.cells):
            return
        kept = None
        if held.cells:
            size = llama_cpp.llama_state_seq_get_size_ext(self._context, held.id, _PARTIAL)
            kept = (ctypes.c_uint8 * size)()
            if llama_cpp.llama_state_seq_get_data_ext(self._context, kept, size, held.id, _PARTIAL) != size:
                raise EngineError("llama.cpp could not copy a sequence's state")
        held.mark, held.since, held.kept = held.cells, [], kept

    def _roll_back(self, held: _Chain, length: int) -> None:
        """Forget all tokens behind the first ``length``."""
        surplus = held.cells + len(held.pending) - length
        if surplus <= 0:
            return
        if held.pending:  # not met yet
            del held.pending[len(held.pending) - surplus :]
            return
        # The library's snapshots reach into the last forward, but not to its beginning.
        within = surplus < held.last and surplus <= self._snapshots
        if within and llama_cpp.llama_memory_seq_rm(self._memory, held.id, length, -1):
            del held.since[len(held.since) - surplus :]
            held.cells, held.last = length, 0
            return
        self._restore(held)
        held.pending = held.since[: length - held.mark]
        held.since = []

    def _restore(self, held: _Chain) -> None:
        """The state as it was copied."""
        if held.kept is None:
            llama_cpp.llama_memory_seq_rm(self._memory, held.id, 0, -1)
        else:
            size = len(held.kept)
            if llama_cpp.llama_state_seq_set_data_ext(self._context, held.kept, size, held.id, _PARTIAL) != size:
                raise EngineError("llama.cpp could not restore a sequence's state")
            llama_cpp.llama_memory_seq_rm(self._memory, held.id, held.mark, -1)
        held.cells, held.last = held.mark, 0

    def _decode(self, held: _Chain, tokens: Sequence[int], wanted: Collection[int]) -> None:
        """Meet what is pending, and these tokens; on failure all is as before."""
        before = [*held.since, *held.pending]
        self._batch.clear()
        for n, token in enumerate([*held.pending, *tokens]):
            self._batch.add(token, held.cells + n, [held.id], n - len(held.pending) in wanted)
        self._flag[0] = b"\0"
        code = self._batch.run(self._context)
        llama_cpp.llama_synchronize(self._context)
        if code == 0:
            held.last = len(held.pending) + len(tokens)
            held.cells += held.last
            held.since = [*before, *tokens]
            held.pending = []
            return
        self._restore(held)
        held.pending, held.since = before, []
        raise failure(code)
