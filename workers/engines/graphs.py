"""Forwards of a few fixed shapes, recorded once as CUDA graphs and replayed.

A small drafter's forward is hundreds of kernels of a few microseconds each; launching them one by one from Python
costs more than they do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from workers.engines.attention import Part, Seen

_ROWS = (1, 4, 16, 64)
_SPAN = 256  # cells of the shortest shape; each longer one has twice as many

# Bytes of weights that are sooner read again for each sequence than a whole forward is launched kernel by kernel.
_LIGHT = 1 << 30

_log = logging.getLogger("hetero.graphs")

Run: TypeAlias = Callable[[Tensor, Tensor, list[Part]], Tensor]  # tokens and positions [1, rows] -> logits
Record: TypeAlias = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]


def cuda_graph(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record what ``run`` does on the current GPU; the result does it again, at the same addresses."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what libraries set up on first use must not be recorded
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


@dataclass(frozen=True, slots=True)
class _Shape:
    """The inputs of a recorded forward, at their addresses, and what replays it."""

    tokens: Tensor
    positions: Tensor
    part: Part
    replay: Callable[[], Tensor]


class Replays:
    """Forwards of each sequence's rows, padded to the next shape."""

    def __init__(self, run: Run, record: Record, cache: Tensor, weights: int) -> None:
        """``cache``: keys or values, the last cell of a slot takes what the padding writes; ``weights``: bytes."""
        self._run, self._record = run, record
        self._light = weights < _LIGHT
        self._dtype, self._device = cache.dtype, cache.device
        self._scratch = cache.shape[3] - 1
        self._shapes: dict[tuple[int, int, int], _Shape] = {}
        self._off = False

    def __call__(self, tokens: Sequence[list[int]], seen: Sequence[Seen]) -> Tensor | None:
        """Logits [rows, vocabulary] of each sequence's tokens; None: not to be had, run the forward itself."""
        if self._off or (len(seen) > 1 and not self._light) or max(map(len, tokens)) > _ROWS[-1]:
            return None
        try:
            return torch.cat([self._one(own, one) for own, one in zip(tokens, seen, strict=True)])
        except RuntimeError as error:  # of the model, the driver or memory: it only gets slower
            _log.warning("no CUDA graphs, forwards are launched kernel by kernel: %s", error)
            self._off = True
            self._shapes.clear()
            return None

    def _one(self, tokens: list[int], seen: Seen) -> Tensor:
        rows = next(rows for rows in _ROWS if rows >= len(tokens))
        span = _SPAN
        while span < len(seen.at):
            span *= 2
        span = min(span, self._scratch)
        padded = seen.padded(rows, span, self._scratch)
        ids = torch.tensor([tokens + [0] * (rows - len(tokens))])
        positions = torch.from_numpy(padded.positions)[None]
        key = seen.slot, rows, span
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = self._recorded(ids, positions, padded)
        else:
            fresh, kept = padded.part(0, self._dtype, torch.device("cpu")), shape.part
            shape.tokens.copy_(ids)
            shape.positions.copy_(positions)
            kept.cells.copy_(fresh.cells)
            kept.mask.copy_(fresh.mask)
            kept.distance.copy_(fresh.distance)
        return shape.replay()[: len(tokens)]

    def _recorded(self, ids: Tensor, positions: Tensor, padded: Seen) -> _Shape:
        ids, positions = ids.to(self._device), positions.to(self._device)
        part = padded.part(0, self._dtype, self._device)

        def run() -> Tensor:
            return self._run(ids, positions, [part])

        expected = run()
        replay = self._record(run)
        if not torch.allclose(replay(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()), equal_nan=True):
            raise RuntimeError("a replay differs from its forward")
        return _Shape(ids, positions, part, replay)
