"""How much memory a model takes on a device: its weights and its KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from hetero.placement.errors import MemoryShortage

KvCache: TypeAlias = Literal["f16", "q8_0"]  # how one keeps its numbers
F16: KvCache = "f16"
Q8_0: KvCache = "q8_0"


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a model that decide its memory. ``weights`` in bytes on disk, ``parameters`` their number."""

    weights: int
    parameters: int
    layers: int
    kv_heads: int
    head_dim: int
    vocabulary: int


@dataclass(frozen=True)
class Footprint:
    """Bytes an engine takes: weights, KV cache, and working buffers."""

    weights: int
    kv: int
    work: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.work

    def scaled(self, share: float) -> Footprint:
        """What a share of the layers takes; buffers are needed whole."""
        return Footprint(round(self.weights * share), round(self.kv * share), self.work)


def kv_bytes(shape: ModelShape, width: float) -> int:
    """Bytes of one KV position with numbers of ``width`` bytes."""
    return round(2 * shape.layers * shape.kv_heads * shape.head_dim * width)


def footprint(shape: ModelShape, cells: int, width: float, rows: int) -> Footprint:
    """Memory of a model with ``cells`` KV positions, numbers of ``width`` bytes in them, and logits for ``rows``."""
    kv = cells * kv_bytes(shape, width)
    return Footprint(shape.weights, kv, rows * shape.vocabulary * 4 + 64 * 2**20)


def check_memory(what: str, needed: int, free: int) -> None:
    """Raise MemoryShortage when ``needed`` bytes exceed ``free`` ones."""
    if needed > free:
        raise MemoryShortage(
            f"{what} needs {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free: "
            "take a smaller or more quantised model, a shorter --context, or fewer --parallel sequences"
        )
