"""GGUF models through llama.cpp's low-level API.

Two ways to keep KV. *Unified*: all sequences share one pool of cells, each live branch has a
llama sequence id; trees and several sequences share a forward. *Exact*: one stream of cells per sequence and
forwards of one fixed width, so that a row's bits depend on nothing but its own path.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np

from hetero.placement.memory import F16, Q8_0, KvCache
from hetero.workers.engines.accelerators import gpu_handles
from hetero.workers.engines.base import Engine, EngineLimits, Features, OnEarlyExit, Outcome, Row, as_features
from hetero.workers.engines.kv_slots import saved_under
from hetero.workers.engines.ledger import Entry, Ledger, entered, in_order
from hetero.workers.engines.llama_cpp.batch import Batch, RowBatch, failure
from hetero.workers.engines.llama_cpp.states import LlamaStates
from hetero.workers.errors import EngineError, KvFull, TooManyLeaves, UnknownNode, Unsupported
from hetero.workers.models.gguf import open_gguf
from hetero.workers.sampling.logits_processors import Logits

EXACT_WIDTH = 8
_MAX_IDS = 256  # llama.cpp's LLAMA_MAX_SEQ


@dataclass(frozen=True)
class LlamaSettings:
    """How to run a model. ``gpu`` is the kind of the ``gpus`` GPUs the process sees, or "" for the CPU."""

    threads: int
    sequences: int = 4
    context: int = 2048
    rows: int = 64
    chunk: int = 128
    exact: bool = False
    gpu: str = ""
    gpus: int = 1
    gpu_layers: int = -1  # that they hold, the CPU the rest; -1: all
    branches: int = 32  # live branches per sequence
    draft_nodes: int = 128  # evaluated draft tokens per sequence
    kv_cache: KvCache = F16
    features: tuple[int, ...] = ()  # layers whose input is handed out; NEXT: what its next-token layers draw from


# llama.cpp polls this between graph nodes from its compute threads. A Python callback would take the GIL each
# time; libc's strlen is a ready-made C function of one pointer that is false for "" and true for "x".
IS_SET = ctypes.cast(ctypes.CDLL(None).strlen, llama_cpp.ggml_abort_callback)


def set_cache_type(params: llama_cpp.llama_context_params, kept: str) -> None:
    """Have a context's cache keep its numbers so. Only flash attention reads values that are quantised."""
    if kept == Q8_0:
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_Q8_0
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED


class LlamaEngine:
    """One GGUF model with its KV cache."""

    _kind = llama_cpp.LLAMA_CONTEXT_TYPE_DEFAULT

    def __init__(self, path: Path, settings: LlamaSettings, model: object = None) -> None:
        """Load, or take an open ``model``. Raises ModelError for a file llama.cpp refuses, Unsupported for memory that
        cannot roll back."""
        exact = settings.exact
        self._model = model or open_gguf(
            path, gpu_handles(path, settings.gpu, settings.gpus), layers=settings.gpu_layers
        )
        if self._kind == llama_cpp.LLAMA_CONTEXT_TYPE_DEFAULT and is_recurrent(self._model):
            llama_cpp.llama_model_free(self._model)
            raise Unsupported(f"{path.name} has recurrent memory: it takes the engine of such models")
        self._flag = ctypes.create_string_buffer(2)
        ids = settings.sequences if exact else min(_MAX_IDS, settings.sequences * settings.branches)
        params = llama_cpp.llama_context_default_params()
        spare = EXACT_WIDTH if exact else settings.draft_nodes
        params.n_ctx = settings.sequences * padded(settings.context + spare)
        params.n_seq_max = ids
        params.n_batch = params.n_ubatch = max(
            settings.chunk, settings.rows, EXACT_WIDTH, ids
        )  # it wants a row for each
        params.n_threads = params.n_threads_batch = settings.threads
        params.kv_unified = not exact
        params.ctx_type = self._kind
        set_cache_type(params, settings.kv_cache)
        params.no_perf = True
        params.abort_callback = IS_SET
        params.abort_callback_data = ctypes.cast(self._flag, ctypes.c_void_p)
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            llama_cpp.llama_model_free(self._model)
            raise EngineError(f"llama.cpp could not make a context of {params.n_ctx} cells for {path.name}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._states = LlamaStates(self._context, settings.features)
        vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self.limits = EngineLimits(
            vocabulary=vocabulary,
            context=settings.context,
            rows=EXACT_WIDTH if exact else settings.rows,
            chunk=settings.chunk,
            sequences=settings.sequences,
            exact=exact,
            draft_nodes=spare,
            branches=ids,
            features=self._states.width,
        )
        self._batch: Batch = RowBatch(params.n_batch, ids)
        self._ids = list(range(ids))[::-1]  # free llama sequence ids
        self._sequences: dict[int, BranchedSequence] = {}
        self._saved: dict[int, ctypes.Array[ctypes.c_uint8]] = {}

    def prefill(self, seq: int, tokens: Sequence[int], every: bool = False) -> Outcome:
        held = self._sequences.get(seq)
        if held is None and len(self._sequences) >= self.limits.sequences:
            raise TooManyLeaves(f"all {self.limits.sequences} sequences of the engine are open")
        ledger = held.ledger if held is not None else Ledger()
        ledger.check_prefill(tokens, self.limits)
        opened = held is None
        if held is None:
            held = BranchedSequence(ledger, {self._take(): 0})
        ids = list(held.leaves)
        self._batch.clear()
        for at, token in enumerate(tokens):
            self._batch.add(token, ledger.length + at, ids, every or at == len(tokens) - 1)
        try:
            self._decode([(ids[0], ledger.length)])
        except EngineError:
            if opened:
                self._give(ids[0])
            raise
        self._sequences[seq] = held
        held.ledger.length += len(tokens)
        wanted = list(range(len(tokens))) if every else [len(tokens) - 1]
        return LlamaOutcome(self._context, self.limits.vocabulary, wanted, self._states)

    def extend(self, rows: Sequence[Row], on_early_exit: OnEarlyExit | None = None) -> Outcome:
        with entered(rows, self.limits, self._held) as entries:
            before = [(entry.sequence, dict(entry.sequence.leaves)) for entry in entries]
            starts = [(i, held.ledger.position(leaf) + 1) for held, leaves in before for i, leaf in leaves.items()]
            try:
                for entry in entries:
                    self._branch(entry.sequence, entry.rows)
                outcome = self._evaluate(entries, starts)
            except BaseException:
                for held, leaves in before:
                    for new in held.leaves.keys() - leaves.keys():
                        self._give(new)
                    held.leaves = leaves
                raise
        if self.limits.exact:  # the padding rows
            held = self._sequences[rows[0].seq]
            self._remove(next(iter(held.leaves)), held.ledger.position(rows[-1].node) + 1)
        return outcome

    def commit(self, seq: int, node: int, keep: Collection[int] = ()) -> None:
        held = self._held(seq)
        ledger = held.ledger
        branches = {i: [ledger.tip, *ledger.path(leaf)] for i, leaf in held.leaves.items()}
        ledger.commit(node, keep)
        alive = {i: [n for n in branch if n == node or n in keep] for i, branch in branches.items()}
        covered: set[int] = set()
        leaves: dict[int, int] = {}
        # Longest first: a branch whose rest lies within another one gives its id back.
        for i, branch in sorted(alive.items(), key=lambda item: -len(item[1])):
            if not branch or branch[-1] in covered:
                self._give(i)
                continue
            covered.update(branch)
            leaves[i] = branch[-1]
            if branch[-1] != branches[i][-1]:
                self._remove(i, ledger.position(branch[-1]) + 1)
        held.leaves = leaves

    def close(self, seq: int) -> None:
        held = self._sequences.pop(seq, None)
        if held is not None:
            for i in held.leaves:
                self._give(i)

    def save_prefix(self, seq: int, key: int, length: int) -> None:
        i = next(iter(self._held(seq).leaves))
        self._remove(i, length)
        size = llama_cpp.llama_state_seq_get_size(self._context, i)
        kept = (ctypes.c_uint8 * size)()
        if llama_cpp.llama_state_seq_get_data(self._context, kept, size, i) != size:
            raise EngineError("llama.cpp could not copy a sequence's state")
        self._saved[key] = kept

    def load_prefix(self, seq: int, key: int, length: int) -> None:
        kept = saved_under(self._saved, key)
        if len(self._sequences) >= self.limits.sequences:
            raise TooManyLeaves(f"all {self.limits.sequences} sequences of the engine are open")
        i = self._take()
        if llama_cpp.llama_state_seq_set_data(self._context, kept, len(kept), i) != len(kept):
            self._give(i)
            raise KvFull("llama.cpp found no room for a saved sequence")
        self._remove(i, length)
        self._sequences[seq] = BranchedSequence(Ledger().opened(length), {i: 0})

    def drop_prefix(self, key: int) -> None:
        self._saved.pop(key, None)

    def abort(self) -> None:
        self._flag[0] = b"x"

    def shutdown(self) -> None:
        if self._context:
            llama_cpp.llama_free(self._context)
            llama_cpp.llama_model_free(self._model)
            self._context = None

    @property
    def used_cells(self) -> int:
        """As llama.cpp sees it, over all its sequence ids: a cell shared by branches counts in each."""
        ids = range(len(self._batch.ids))
        return sum(llama_cpp.llama_memory_seq_pos_max(self._memory, i) + 1 for i in ids)

    def _held(self, seq: int) -> BranchedSequence:
        held = self._sequences.get(seq)
        if held is None:
            raise UnknownNode(f"sequence {seq} is not open")
        return held

    def _branch(self, held: BranchedSequence, rows: Sequence[Row]) -> None:
        """Give each row's branch a llama id: the first child takes its parent's over, others copy it."""
        tips = {leaf: i for i, leaf in held.leaves.items()}
        for row in rows:
            i = tips.pop(row.parent, None)
            if i is None:
                if self.limits.exact:
                    raise Unsupported("exact mode keeps one chain a sequence: commit before another branch")
                source = held.through(row.parent)[0]
                i = self._take()
                end = held.ledger.position(row.parent) + 1
                llama_cpp.llama_memory_seq_cp(self._memory, source, i, 0, end)
            held.leaves[i] = row.node
            tips[row.node] = i

    def _evaluate(self, entries: Sequence[Entry[BranchedSequence]], starts: Sequence[tuple[int, int]]) -> Outcome:
        """The forward of an extend whose rows have their branches."""
        rows = in_order(entries)
        self._fill(rows)
        self._decode(starts)
        return LlamaOutcome(self._context, self.limits.vocabulary, list(range(len(rows))), self._states)

    def _fill(self, rows: Sequence[Row]) -> None:
        """The batch of an extend; in exact mode padded to the fixed width with rows that are dropped after."""
        self._batch.clear()
        through: dict[tuple[int, int], list[int]] = {}
        for seq in {row.seq for row in rows}:
            held = self._sequences[seq]
            for i, leaf in held.leaves.items():
                for node in held.ledger.path(leaf):
                    through.setdefault((seq, node), []).append(i)
        for row in rows:
            position = self._sequences[row.seq].ledger.position(row.node)
            self._batch.add(row.token, position, through[row.seq, row.node], True)
        if self.limits.exact:
            for extra in range(1, EXACT_WIDTH - len(rows) + 1):
                self._batch.add(0, position + extra, through[row.seq, row.node], True)

    def _decode(self, starts: Sequence[tuple[int, int]]) -> None:
        """Run the batch. On failure remove what it left behind: cells of each id from its start position on."""
        self._flag[0] = b"\0"
        code = self._batch.run(self._context)
        llama_cpp.llama_synchronize(self._context)  # a GPU works on; the wait belongs to this thread
        if code == 0:
            return
        for i, start in starts:
            self._remove(i, start)
        raise failure(code)

    def _take(self) -> int:
        if not self._ids:
            raise TooManyLeaves(f"all {len(self._batch.ids)} branches of the engine are in use")
        return self._ids.pop()

    def _give(self, i: int) -> None:
        self._remove(i, 0)
        self._ids.append(i)

    def _remove(self, i: int, start: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, i, start, -1)


@dataclass
class BranchedSequence:
    """A sequence's nodes, and the branches that hold them: llama sequence id -> deepest node."""

    ledger: Ledger
    leaves: dict[int, int]

    def undo(self, rows: Sequence[Row]) -> None:
        """Take rows back that were entered for a forward that failed."""
        self.ledger.undo(rows)

    def through(self, node: int) -> list[int]:
        """Ids of the branches that contain a node."""
        if node == self.ledger.tip:
            return list(self.leaves)
        return [i for i, leaf in self.leaves.items() if node in self.ledger.path(leaf)]


class LlamaOutcome(Outcome):
    """``rows``: the batch's that were wanted; ``first``: where the call's own begin in it."""

    def __init__(self, context: object, vocabulary: int, rows: list[int], states: LlamaStates, first: int = 0) -> None:
        self._context, self._rows, self._states, self._first = context, rows, states, first
        self._type = ctypes.c_float * vocabulary

    def logits(self, row: int) -> Logits:
        pointer = llama_cpp.llama_get_logits_ith(self._context, self._rows[row])
        if not pointer:
            raise EngineError(f"llama.cpp has no logits of row {row}")
        values = self._type.from_address(ctypes.addressof(pointer.contents))
        found: Logits = np.frombuffer(memoryview(values), dtype=np.float32)
        return found

    def features(self, rows: Sequence[int]) -> Features:
        if not self._states.width:
            return super().features(rows)
        return as_features(self._states.taken([self._first + row for row in rows]))


def load_llama(path: Path, settings: LlamaSettings) -> Engine:
    """The engine of a GGUF model's memory: of cells, or recurrent. Raises ModelError for a file llama.cpp refuses."""
    from hetero.workers.engines.llama_cpp.recurrent import RecurrentEngine

    model = open_gguf(path, gpu_handles(path, settings.gpu, settings.gpus), layers=settings.gpu_layers)
    return (RecurrentEngine if is_recurrent(model) else LlamaEngine)(path, settings, model)


def is_recurrent(model: object) -> bool:
    """Whether a model's memory is recurrent, all of it or in part."""
    return bool(llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model))


def padded(cells: int) -> int:
    return -(-cells // 256) * 256
