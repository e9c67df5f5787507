"""Weights as the kernel reads them: the file's own values in tiles, repacked when the engine starts."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hetero.workers.engines.octet.library import library
from hetero.workers.engines.octet.source import Array, Raw, Source, maybe, need
from hetero.workers.errors import ModelError, Unsupported

GROUP = 32  # inputs that share a scale; as in the kernel's types.h
_LINE = 64  # bytes that are read at once
AS_IS, INT4 = "as-is", "int4"


@dataclass(frozen=True)
class Matrix:
    """A repacked matrix: ``format`` in the kernel's numbers, sizes with their padding."""

    tiles: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    outputs: int
    inputs: int
    format: int


def padded(count: int) -> int:
    """A number of inputs, up to whole groups."""
    return -(-count // GROUP) * GROUP


class Weights:
    """A model in memory. ``choice`` is what becomes of 16- and 32-bit floats: int8 (as-is, too) or int4, with a scale
    for every 32; what is quantised already keeps its own values. Raises ModelError or Unsupported.

    ``progress`` is told the share of the file that is done.
    """

    def __init__(
        self, path: Path, choice: str = AS_IS, threads: int = 1, progress: Callable[[float], None] = lambda share: None
    ) -> None:
        self._source = Source(path)
        self._threads, self._bits = threads, 4 if choice == INT4 else 8
        self.architecture, self.vocabulary = self._source.architecture, self._source.vocabulary
        a = self.architecture
        mixed = a.experts is not None and (a.experts.ffn % GROUP or a.experts.shared_ffn % GROUP)
        if a.width % GROUP or a.head % 16 or a.head > 256 or a.ffn % 16 or mixed:
            raise Unsupported(
                "octet needs a width in multiples of 32, heads of up to 256 and an ffn in multiples of 16"
            )
        self.embedding: Raw = need(self._source, "token_embd.weight", self.vocabulary, a.width)
        self.norm = self.norm_of("output_norm", a.width)
        head = maybe(self._source, "output.weight", self.vocabulary, a.width)
        # Of floats the head keeps 8 bits: the matrix that quantisation hurts most.
        self.head = repacked(head or self.embedding, self.vocabulary, 8, threads)
        self.layers: list[dict[str, list[Matrix]]] = []
        for layer in range(a.layers):
            self.layers.append(self._layer(f"blk.{layer}"))
            progress((layer + 1) / a.layers)

    def optional(self, name: str, size: int) -> Array | None:
        """A vector that some models have."""
        raw = maybe(self._source, name, size)
        return None if raw is None else raw.floats()[0]

    def several(self, name: str, size: int) -> Array | None:
        """All values of a tensor that some models have."""
        raw = self._source.get(name)
        if raw is not None and raw.rows * raw.columns != size:
            raise ModelError(f"tensor {name} has {raw.rows * raw.columns} values, the model's numbers make it {size}")
        return None if raw is None else raw.floats().reshape(-1)

    def norm_of(self, name: str, size: int) -> Array:
        """A norm's weights that every model of the family has."""
        found = self.optional_norm(name, size)
        if found is None:
            raise ModelError(f"the model has no tensor {name}.weight")
        return found

    def optional_norm(self, name: str, size: int) -> Array | None:
        """Those that some models have."""
        found = self.optional(f"{name}.weight", size)
        return found + np.float32(1) if found is not None and self.architecture.one_more else found

    def check_all_read(self) -> None:
        """Raises Unsupported for a tensor that no part of the forward has asked for: the model is another one."""
        if (unread := self._source.unread()) is not None:
            raise Unsupported(f"octet does not know what {unread} is for; take llama_cpp or torch")

    def _layer(self, name: str) -> dict[str, list[Matrix]]:
        """Its matrices, of which only experts' are several."""
        a = self.architecture
        queries, kv = a.heads * a.head, a.kv_heads * a.head
        raws = {
            **self._fused(f"{name}.attn_qkv", {"q": queries, "k": kv, "v": kv}, ("attn_q", "attn_k", "attn_v"), name),
            "out": need(self._source, f"{name}.attn_output.weight", a.width, queries),
        }
        counts = {}
        if a.experts is None:
            raws |= self._fused(f"{name}.ffn_up", {"gate": a.ffn, "up": a.ffn}, ("ffn_gate", "ffn_up"), name)
            raws["down"] = need(self._source, f"{name}.ffn_down.weight", a.width, a.ffn)
        else:
            count, ffn, shared = a.experts.count, a.experts.ffn, a.experts.shared_ffn
            for part, outputs, inputs in (("gate", ffn, a.width), ("up", ffn, a.width), ("down", a.width, ffn)):
                raws[part] = need(self._source, f"{name}.ffn_{part}_exps.weight", count * outputs, inputs)
                counts[part] = count
            for part, outputs, inputs in (
                ("gate", shared, a.width),
                ("up", shared, a.width),
                ("down", a.width, shared),
            ):
                if shared:
                    raws[f"shared_{part}"] = need(self._source, f"{name}.ffn_{part}_shexp.weight", outputs, inputs)
        found: dict[str, list[Matrix]] = {}
        for key, raw in raws.items():
            rows = raw.rows // counts.get(key, 1)
            outputs = padded(rows) if key in ("gate", "up") else rows
            each = [raw.part(n * rows, rows) for n in range(counts.get(key, 1))]
            found[key] = [repacked(one, outputs, self._bits, self._threads) for one in each]
            self._source.done(raw)
        return found

    def _fused(self, name: str, sizes: dict[str, int], parts: tuple[str, ...], layer: str) -> dict[str, Raw]:
        """Matrices that some files have as one (phi3): its rows in turn."""
        width, whole = self.architecture.width, self._source.get(f"{name}.weight")
        if whole is None or whole.rows != sum(sizes.values()):
            each = zip(sizes.items(), parts, strict=True)
            return {key: need(self._source, f"{layer}.{part}.weight", size, width) for (key, size), part in each}
        whole = need(self._source, f"{name}.weight", sum(sizes.values()), width)
        found, first = {}, 0
        for key, size in sizes.items():
            found[key] = whole.part(first, size)
            first += size
        return found


def repacked(raw: Raw, outputs: int, bits: int, threads: int) -> Matrix:
    """A tensor as the kernel reads it, zeros up to ``outputs`` and to whole groups of inputs; ``bits``: of floats.
    Raises ModelError or Unsupported."""
    lib = library()
    assert lib is not None
    inputs = padded(raw.columns)
    sizes = ctypes.c_size_t(), ctypes.c_size_t()
    form = lib.octet_format(raw.type, bits, outputs, inputs, *map(ctypes.byref, sizes))
    if form < 0:
        raise Unsupported(f"octet cannot use {raw.name}: {raw.columns} inputs are no whole blocks of its type")
    tiles, scales = (_aligned(size.value) for size in sizes)
    wrong = lib.octet_repack(
        raw.data.ctypes.data, raw.type, bits, raw.rows, raw.columns, outputs, inputs, threads, tiles.ctypes.data,
        scales.ctypes.data,
    )  # fmt: skip
    if wrong:
        why = "has values that are no numbers" if wrong == 1 else "cannot be repacked: no memory is left"
        raise ModelError(f"tensor {raw.name} {why}")
    return Matrix(tiles, scales, outputs, inputs, form)


def _aligned(size: int) -> NDArray[np.uint8]:
    whole = np.empty(size + _LINE, np.uint8)
    first = -whole.ctypes.data % _LINE
    return whole[first : first + size]
