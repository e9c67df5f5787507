"""The octet engine: llama-family models on CPUs, with the file's own weights.

A row's logits have the same bits whatever rows and sequences share its forward, so windows, trees, batches and
replays are all exact: exact mode costs nothing here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hetero.placement.memory import F16, Q8_0, KvCache
from hetero.workers.engines.base import EngineLimits, Features, OnEarlyExit, Outcome, Row, as_features
from hetero.workers.engines.kv_slots import Slots, saved_under
from hetero.workers.engines.ledger import entered, row_order
from hetero.workers.engines.octet import rotation
from hetero.workers.engines.octet.architecture import Experts
from hetero.workers.engines.octet.library import (
    MATRICES,
    CBatch,
    CExperts,
    CLayer,
    CMatrix,
    CPart,
    CRows,
    CShape,
    library,
    why_not,
)
from hetero.workers.engines.octet.library import path as library_path
from hetero.workers.engines.octet.rotation import Rope
from hetero.workers.engines.octet.weights import AS_IS, Matrix, Weights, padded
from hetero.workers.errors import Aborted, EngineError, ModelError, Unsupported
from hetero.workers.sampling.logits_processors import Logits

_MOST_ROWS = 4096
_SPAN = 64  # cells whose attention is one step; as in the kernel's types.h


@dataclass(frozen=True)
class OctetSettings:
    """How to run a model."""

    threads: int
    sequences: int = 4
    context: int = 2048
    rows: int = 64
    chunk: int = 128
    weights: str = AS_IS  # what becomes of 16- and 32-bit floats
    draft_nodes: int = 128  # evaluated draft tokens per sequence
    kv_cache: KvCache = F16  # what numbers the cache keeps
    features: tuple[int, ...] = ()  # layers whose input is handed out; the number of layers: what the last one gives


class OctetEngine:
    """One repacked model with its KV cache."""

    def __init__(
        self, path: Path, settings: OctetSettings, progress: Callable[[float], None] = lambda share: None
    ) -> None:
        """Load. Raises Unsupported where the kernel cannot run."""
        reason = why_not()
        lib = library()
        if reason is not None or lib is None:
            raise Unsupported(f"{reason}; use the llama_cpp engine")
        most = max(settings.rows, settings.chunk)
        if most > _MOST_ROWS:
            raise Unsupported(f"octet takes {_MOST_ROWS} rows in a forward, not {most}")
        self._lib = lib
        self._weights = Weights(path, settings.weights, settings.threads, progress)
        a = self._weights.architecture
        context = min(settings.context, a.context)
        self._capacity = -(-(context + settings.draft_nodes) // _SPAN) * _SPAN
        self._kept: list[NDArray[np.generic]] = []  # arrays the kernel points into
        self._kept_structs: list[object] = []
        ropes = self._ropes()
        shape = CShape(
            a.layers, a.width, a.heads, a.kv_heads, a.head, padded(a.ffn), self._weights.vocabulary, most,
            settings.sequences, self._capacity, settings.threads, a.ropes[0].rotated, a.neox, a.activation, a.epsilon,
            a.embedding_scale, a.attention_scale, a.residual_scale, a.logit_scale, a.attention_cap, a.logit_cap,
            settings.kv_cache == Q8_0,
        )  # fmt: skip
        layers = (CLayer * a.layers)(*[self._layer(n) for n in range(a.layers)])
        self._weights.check_all_read()
        embedding = self._weights.embedding
        pairs = [rotation.tables(rope, context, self._capacity) for rope in ropes]
        tables = [(ctypes.c_void_p * 2)(*[self._point(pair[n]) for pair in pairs]) for n in (0, 1)]
        self._model = lib.octet_create(
            ctypes.byref(shape),
            layers,
            ctypes.byref(self._matrix(self._weights.head)),
            ctypes.byref(
                CRows(self._point(embedding.data), embedding.type, a.width, embedding.data.nbytes // embedding.rows)
            ),
            self._point(self._weights.norm),
            *tables,
            library_path()[0],
        )
        if not self._model:
            raise EngineError("no memory for the KV cache: take a shorter --context or fewer --parallel sequences")
        self.limits = EngineLimits(
            self._weights.vocabulary,
            context,
            settings.rows,
            settings.chunk,
            settings.sequences,
            draft_nodes=settings.draft_nodes,
            features=len(settings.features) * a.width,
        )
        if not all(0 <= layer <= a.layers for layer in settings.features):
            raise Unsupported(f"no states can be taken from the layers {list(settings.features)} of {a.layers}")
        self._logits = np.empty((most, self._weights.vocabulary), np.float32)
        self._tapped = np.array(settings.features, np.int32)
        self._states = np.empty((len(settings.features), most, a.width), np.float32)
        self._slots = Slots(settings.sequences)
        self._saved: dict[int, tuple[NDArray[np.uint8], int]] = {}

    def prefill(self, seq: int, tokens: Sequence[int], every: bool = False) -> Outcome:
        held = self._slots.to_prefill(seq)
        ledger = held.ledger
        ledger.check_prefill(tokens, self.limits)
        first, count = ledger.length, len(tokens)
        positions = np.arange(first, first + count, dtype=np.int32)
        paths = np.tile(positions, (count, 1))
        part = CPart(held.slot, 0, count, first)
        wanted = list(range(count)) if every else [count - 1]
        self._run(tokens, positions, positions, [part], paths, wanted)
        self._slots.keep(seq, held)
        ledger.length += count
        return _OctetOutcome(self._logits, list(range(len(wanted))), self._taken(count), list(range(count)))

    def extend(self, rows: Sequence[Row], on_early_exit: OnEarlyExit | None = None) -> Outcome:
        with entered(rows, self.limits, self._slots.__getitem__) as entries:
            parts: list[CPart] = []
            positions: list[int] = []
            cells: list[int] = []
            paths: list[list[int]] = []
            for entry in entries:
                held = entry.sequence
                parts.append(CPart(held.slot, len(positions), len(entry.rows), held.ledger.length))
                positions += entry.positions
                free = held.free_cells(len(entry.rows), self._capacity)
                held.enter(entry.rows, free)
                cells += free
                paths += [held.path_cells(row.node) for row in entry.rows]
            table = np.zeros((len(rows), max(map(len, paths))), np.int32)
            for n, path in enumerate(paths):
                table[n, : len(path)] = path
            self._run(
                [row.token for entry in entries for row in entry.rows],
                np.array(positions, np.int32),
                np.array(cells, np.int32),
                parts,
                table,
                list(range(len(rows))),
            )
        order = row_order(entries)
        return _OctetOutcome(self._logits, order, self._taken(len(rows)), order)

    def commit(self, seq: int, node: int, keep: Collection[int] = ()) -> None:
        held = self._slots[seq]
        old, new = held.commit(node, keep)
        if old != new:
            source, target = np.array(old, np.int32), np.array(new, np.int32)
            if self._lib.octet_move(self._model, held.slot, source.ctypes.data, target.ctypes.data, len(old)):
                raise EngineError("no memory to move cells of the cache")

    def close(self, seq: int) -> None:
        self._slots.close(seq)

    def save_prefix(self, seq: int, key: int, length: int) -> None:
        kept = np.empty(self._lib.octet_saved_size(self._model, length), np.uint8)
        self._lib.octet_save(self._model, self._slots[seq].slot, length, kept.ctypes.data)
        self._saved[key] = kept, length

    def load_prefix(self, seq: int, key: int, length: int) -> None:
        kept, size = saved_under(self._saved, key)
        self._lib.octet_load(self._model, self._slots.open(seq, length).slot, size, kept.ctypes.data)

    def drop_prefix(self, key: int) -> None:
        self._saved.pop(key, None)

    def abort(self) -> None:
        if self._model:
            self._lib.octet_abort(self._model)

    def shutdown(self) -> None:
        if self._model:
            model, self._model = self._model, None
            self._lib.octet_free(model)

    @property
    def used_cells(self) -> int:
        return self._slots.used_cells

    def _run(
        self, tokens: Sequence[int], positions: NDArray[np.int32], cells: NDArray[np.int32], parts: list[CPart],
        paths: NDArray[np.int32], wanted: list[int],
    ) -> None:  # fmt: skip
        ids, rows = np.array(tokens, np.int32), np.array(wanted, np.int32)
        batch = CBatch(
            len(ids), len(parts), paths.shape[1], len(rows), ids.ctypes.data, positions.ctypes.data, cells.ctypes.data,
            ctypes.addressof(part := (CPart * len(parts))(*parts)), paths.ctypes.data, rows.ctypes.data,
            self._logits.ctypes.data, len(self._tapped), self._tapped.ctypes.data, self._states.ctypes.data,
        )  # fmt: skip
        aborted = self._lib.octet_forward(self._model, ctypes.byref(batch))
        del part
        if aborted:
            raise Aborted("the forward was aborted")

    def _taken(self, rows: int) -> NDArray[np.float32]:
        """The states of the latest forward, [layers, rows, width]: the kernel writes them one behind the other."""
        layers, _, width = self._states.shape
        return self._states.reshape(-1)[: layers * rows * width].reshape(layers, rows, width)

    def _ropes(self) -> list[Rope]:
        """The architecture's, with the factors that GGUF files have as tensors."""
        ropes = list(self._weights.architecture.ropes)
        pairs = ropes[0].rotated // 2
        for field, name in (("long", "rope_freqs"), ("long", "rope_factors_long"), ("short", "rope_factors_short")):
            factors = self._weights.optional(f"{name}.weight", pairs)
            if factors is not None:
                if not (factors > 0).all():
                    raise ModelError(f"tensor {name}.weight has factors that are not above zero")
                found = tuple(map(float, factors))
                ropes[0] = replace(ropes[0], long=found) if field == "long" else replace(ropes[0], short=found)
        return ropes

    def _layer(self, n: int) -> CLayer:
        a, weights = self._weights.architecture, self._weights
        queries, kv = a.heads * a.head, a.kv_heads * a.head
        name, layer = f"blk.{n}", CLayer()
        matrices = {key: [self._matrix(matrix) for matrix in each] for key, each in weights.layers[n].items()}
        for key in MATRICES:
            if a.experts is None or key not in ("gate", "up", "down"):
                setattr(layer, key, matrices[key][0])
        layer.experts = self._experts(n, a.experts, matrices) if a.experts is not None else None
        vectors = {
            "attn_norm": weights.norm_of(f"{name}.attn_norm", a.width),
            "ffn_norm": weights.norm_of(f"{name}.{a.ffn_norm}", a.width),
            "attn_post_norm": weights.optional_norm(f"{name}.post_attention_norm", a.width) if a.post_norms else None,
            "ffn_post_norm": weights.optional_norm(f"{name}.post_ffw_norm", a.width),
            "q_norm": weights.optional_norm(f"{name}.attn_q_norm", a.head),
            "k_norm": weights.optional_norm(f"{name}.attn_k_norm", a.head),
            "q_bias": weights.optional(f"{name}.attn_q.bias", queries),
            "k_bias": weights.optional(f"{name}.attn_k.bias", kv),
            "v_bias": weights.optional(f"{name}.attn_v.bias", kv),
            "out_bias": weights.optional(f"{name}.attn_output.bias", a.width),
            "sinks": weights.optional(f"{name}.attn_sinks.weight", a.heads),
        }
        for key, vector in vectors.items():
            setattr(layer, key, self._point(vector))
        layer.rotation, layer.window = a.rotations[n], a.windows[n]
        return layer

    def _experts(self, n: int, told: Experts, matrices: dict[str, list[CMatrix]]) -> int:
        """The address of a layer's experts."""
        weights, name, width = self._weights, f"blk.{n}", self._weights.architecture.width
        found = CExperts(told.count, told.used, told.ffn, told.shared_ffn, told.late, told.rescaled)
        for part in ("gate", "up", "down"):
            array = (CMatrix * told.count)(*matrices[part])
            self._kept_structs.append(array)
            setattr(found, part, ctypes.addressof(array))
            size = told.count * (width if part == "down" else told.ffn)
            setattr(found, f"{part}_bias", self._point(weights.several(f"{name}.ffn_{part}_exps.bias", size)))
            if told.shared_ffn:
                setattr(found, f"shared_{part}", matrices[f"shared_{part}"][0])
        router = weights.several(f"{name}.ffn_gate_inp.weight", told.count * width)
        if router is None:
            raise ModelError(f"the model has no tensor {name}.ffn_gate_inp.weight")
        found.router = self._point(router)
        found.router_bias = self._point(weights.several(f"{name}.ffn_gate_inp.bias", told.count))
        found.shared_router = self._point(weights.several(f"{name}.ffn_gate_inp_shexp.weight", width))
        self._kept_structs.append(found)
        return ctypes.addressof(found)

    def _matrix(self, matrix: Matrix) -> CMatrix:
        tiles, scales = self._point(matrix.tiles), self._point(matrix.scales)
        return CMatrix(tiles, scales, matrix.outputs, matrix.inputs, matrix.format)

    def _point(self, array: NDArray[np.generic] | None) -> int | None:
        """The address of an array's data, which is kept alive as long as the engine."""
        if array is None:
            return None
        array = np.ascontiguousarray(array)
        self._kept.append(array)
        return int(array.ctypes.data)


class _OctetOutcome(Outcome):
    """``place``: of each row where its logits lie, ``order``: where its states do."""

    def __init__(
        self, logits: NDArray[np.float32], place: list[int], states: NDArray[np.float32], order: list[int]
    ) -> None:
        self._logits, self._place = logits, place
        self._states, self._order = states, order

    def features(self, rows: Sequence[int]) -> Features:
        if not len(self._states):
            raise Unsupported("this engine was not asked for features")
        found = self._states[:, [self._order[row] for row in rows]]
        return as_features(np.concatenate(list(found), axis=-1))

    def logits(self, row: int) -> Logits:
        found: Logits = self._logits[self._place[row]]
        return found
