"""Weights as the kernel reads them: the file's own values in tiles, repacked when the engine starts."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hetero.workers.engines.octet.library import library
from hetero.workers.engines.octet.source import Array, Numbers, Raw, Source, maybe, need
from hetero.workers.errors import ModelError, Unsupported

GROUP = 32  # inputs that share a scale; as in the kernel's types.h
_LINE = 64  # bytes that are read at once
AS_IS, INT8, INT4 = "as-is", "int8", "int4"
CHOICES = (AS_IS, INT8, INT4)


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
        self.numbers: Numbers = self._source.numbers
        n = self.numbers
        if n.width % GROUP or n.head % 16 or n.head > 256 or n.ffn % 16:
            raise Unsupported(
                "octet needs a width in multiples of 32, heads of up to 256 and an ffn in multiples of 16"
            )
        self.embedding: Raw = need(self._source, "token_embd.weight", n.vocabulary, n.width)
        self.norm = self.vector("output_norm.weight", n.width)
        head = maybe(self._source, "output.weight", n.vocabulary, n.width)
        # Of floats the head keeps 8 bits: the matrix that quantisation hurts most.
        self.head = repacked(head or self.embedding, n.vocabulary, 8, threads)
        self.layers: list[dict[str, Matrix]] = []
        for layer in range(n.layers):
            self.layers.append(self._layer(f"blk.{layer}"))
            progress((layer + 1) / n.layers)

    def vector(self, name: str, size: int) -> Array:
        """One that every model of the family has."""
        found = self.optional(name, size)
        if found is None:
            raise ModelError(f"the model has no tensor {name}")
        return found

    def optional(self, name: str, size: int) -> Array | None:
        """One that some models have."""
        raw = maybe(self._source, name, size)
        return None if raw is None else raw.floats()[0]

    def _layer(self, name: str) -> dict[str, Matrix]:
        n = self.numbers
        queries, kv = n.heads * n.head, n.kv_heads * n.head
        found: dict[str, Matrix] = {}
        for key, theirs, outputs, inputs in (
            ("q", "attn_q", queries, n.width), ("k", "attn_k", kv, n.width), ("v", "attn_v", kv, n.width),
            ("out", "attn_output", n.width, queries), ("gate", "ffn_gate", n.ffn, n.width),
            ("up", "ffn_up", n.ffn, n.width), ("down", "ffn_down", n.width, n.ffn),
        ):  # fmt: skip
            raw = need(self._source, f"{name}.{theirs}.weight", outputs, inputs)
            found[key] = repacked(raw, padded(outputs) if key in ("gate", "up") else outputs, self._bits, self._threads)
            self._source.done(raw)
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
    if lib.octet_repack(
        raw.data.ctypes.data, raw.type, bits, raw.rows, raw.columns, outputs, inputs, threads, tiles.ctypes.data,
        scales.ctypes.data,
    ):  # fmt: skip
        raise ModelError(f"tensor {raw.name} has values that are no numbers")
    return Matrix(tiles, scales, outputs, inputs, form)


def _aligned(size: int) -> NDArray[np.uint8]:
    whole = np.empty(size + _LINE, np.uint8)
    first = -whole.ctypes.data % _LINE
    return whole[first : first + size]
