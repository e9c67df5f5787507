"""Attention of rows over the cells of their own sequences, in place of a transformers model's.

It writes the rows' keys and values into our cells and lets each row see its sequence's prefix and its own path.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from hetero.workers.errors import Aborted, Unsupported

BLOCK = 64  # exact mode attends over whole blocks of so many cells


@dataclass(frozen=True, slots=True)
class Seen:
    """One sequence's rows in a forward: its slot, and of each row the position, the cell and what it may see.

    ``allowed`` is [rows, span]; ``at`` [span] is the position of each cell.
    """

    slot: int
    positions: NDArray[np.intp]
    cells: NDArray[np.intp]
    allowed: NDArray[np.bool_]
    at: NDArray[np.intp]

    def padded(self, rows: int, span: int, cell: int) -> Seen:
        """With further rows that see what the first sees and write to ``cell``, and further cells that none sees."""
        more = rows - len(self.cells)
        allowed = np.pad(self.allowed, ((0, 0), (0, span - len(self.at))))
        return Seen(
            self.slot,
            np.pad(self.positions, (0, more), constant_values=self.positions[0]),
            np.pad(self.cells, (0, more), constant_values=cell),
            np.concatenate([allowed, np.repeat(allowed[:1], more, axis=0)]),
            np.pad(self.at, (0, span - len(self.at))),
        )

    def part(self, first: int, dtype: torch.dtype, device: torch.device) -> Part:
        """As tensors, for rows ``first``.. of a forward."""
        mask = torch.zeros(self.allowed.shape, dtype=dtype)
        mask.masked_fill_(torch.from_numpy(~self.allowed), float("-inf"))
        distance = torch.from_numpy((self.positions[:, None] - self.at[None, :]).astype(np.int32))
        rows = slice(first, first + len(self.cells))
        cells = torch.from_numpy(self.cells)
        return Part(self.slot, rows, cells.to(device), mask.to(device), distance.to(device))


@dataclass(frozen=True, slots=True)
class Part:
    """``Seen`` on the device. ``mask`` is added to the scores; ``distance``: how many positions back a cell lies."""

    slot: int
    rows: slice
    cells: Tensor
    mask: Tensor
    distance: Tensor


@dataclass(frozen=True, slots=True)
class Forward:
    """What the attention needs of the forward in flight."""

    keys: Tensor  # [slots, layers, kv heads, cells, head size], as values
    values: Tensor
    parts: list[Part]
    exact: bool
    aborted: threading.Event


def _tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float,
    hetero: Forward,
    sliding_window: int | None = None,
    **more: object,
) -> tuple[Tensor, None]:
    """Attention of rows [1, heads, rows, size] over the cells of their own sequences."""
    if hetero.aborted.is_set():
        raise Aborted("the forward was aborted")
    if more.get("softcap") is not None or more.get("s_aux") is not None:
        raise Unsupported("the model caps its attention scores or adds sinks, which the torch engine does not cover")
    layer = module.layer_idx
    heads, size = query.shape[1], query.shape[3]
    outputs = []
    for part in hetero.parts:
        keys, values = hetero.keys[part.slot, layer], hetero.values[part.slot, layer]
        keys[:, part.cells] = key[0, :, part.rows]
        values[:, part.cells] = value[0, :, part.rows]
        span, groups = part.mask.shape[1], keys.shape[0]
        count = part.mask.shape[0]
        # Grouped queries share keys: [groups, heads per group * rows, size] needs no repeated keys.
        grouped = query[0, :, part.rows].reshape(groups, heads // groups * count, size)
        mask = part.mask
        if sliding_window is not None:
            mask = mask.masked_fill(part.distance >= sliding_window, float("-inf"))
        mask = mask.repeat(heads // groups, 1)
        attend = _attend_in_blocks if hetero.exact else _attend
        mixed = attend(grouped * scaling, keys[:, :span], values[:, :span], mask)
        outputs.append(mixed.view(heads, count, size).transpose(0, 1))
    return torch.cat(outputs)[None].contiguous(), None


def attend_layers(forward: Forward, first: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attentions of the layers from ``first`` on at once: [layers, heads or kv heads, rows, size] to
    [layers, rows, heads * size]."""
    if forward.aborted.is_set():
        raise Aborted("the forward was aborted")
    count, heads, _, size = query.shape
    groups, layers = key.shape[1], slice(first, first + count)
    outputs = []
    for part in forward.parts:
        keys, values = forward.keys[part.slot, layers], forward.values[part.slot, layers]
        keys[:, :, part.cells] = key[:, :, part.rows]
        values[:, :, part.cells] = value[:, :, part.rows]
        rows, span = part.mask.shape
        grouped = query[:, :, part.rows].reshape(count * groups, heads // groups * rows, size)
        mixed = _attend(
            grouped * scaling,
            keys.flatten(0, 1)[:, :span],
            values.flatten(0, 1)[:, :span],
            part.mask.repeat(heads // groups, 1),
        )
        outputs.append(mixed.view(count, heads, rows, size).transpose(1, 2).reshape(count, rows, heads * size))
    return torch.cat(outputs, dim=1)


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k + mask) v over [groups, rows, size] queries and [groups, span, size] cells."""
    scores = query @ keys.transpose(1, 2) + mask
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ values


def _attend_in_blocks(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """The same in blocks of BLOCK cells of one shape, added up in order.

    A longer span then only adds blocks of exact zeros to a row that does not see them, so its bits stay.
    """
    groups, rows, size = query.shape
    blocks = keys.shape[1] // BLOCK
    cells = (groups, blocks, BLOCK, size)
    scores = query[:, None] @ keys.reshape(cells).transpose(2, 3)
    scores = scores.float() + mask.view(rows, blocks, BLOCK).transpose(0, 1)
    weights = torch.exp(scores - scores.amax(dim=(1, 3), keepdim=True))
    sums = weights.sum(dim=3, keepdim=True)
    parts = weights.to(query.dtype) @ values.reshape(cells)
    total, mixed = sums[:, 0], parts[:, 0]
    for block in range(1, blocks):
        total = total + sums[:, block]
        mixed = mixed + parts[:, block]
    return (mixed / total).to(query.dtype)


transformers.AttentionInterface.register("hetero", _tree_attention)
