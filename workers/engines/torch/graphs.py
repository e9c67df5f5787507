"""Forwards of a few fixed shapes, recorded once as CUDA graphs and replayed.

A small drafter's forward is hundreds of kernels of a few microseconds each; launching them one by one from Python
costs more than they do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hetero.workers.engines.torch.attention import Part, Seen

_ROWS = (1, 4, 16, 64)
_SPAN = 256  # cells of the shortest shape; each longer one has twice as many

# Bytes of weights that are sooner read again for each sequence than a whole forward is launched kernel by kernel.
_LIGHT = 1 << 30

_log = logging.getLogger("hetero.graphs")

ForwardFunction: TypeAlias = Callable[[Tensor, Tensor, list[Part]], Tensor]  # tokens and positions [1, rows] -> logits
Record: TypeAlias = Callable[[Callable[[], object]], Callable[[], object]]


class CudaGraphs:
    """Records what a function does on the current GPU; the result does it again, at the same addresses.

    All graphs of one recorder use the same memory: they replay one at a time.
    """

    def __init__(self) -> None:
        self._side: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, run: Callable[[], object]) -> Callable[[], object]:
        if self._side is None:
            self._side, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        home, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        try:
            self._side.wait_stream(home)
            with torch.cuda.stream(self._side):  # what libraries set up on first use must not be recorded
                run()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"):
                run()
        finally:
            torch.cuda.set_stream(home)  # a failed capture leaves its own
            torch.cuda.synchronize()
        replay: Callable[[], object] = graph.replay
        return replay


@dataclass(frozen=True, slots=True)
class _Shape:
    """The inputs of a recorded forward, at their addresses, and what replays it."""

    tokens: Tensor
    positions: Tensor
    part: Part
    replay: Callable[[], object]


class Replays:
    """Forwards of each sequence's rows, padded to the next shape."""

    def __init__(self, run: ForwardFunction, record: Record, cache: Tensor, weights: int) -> None:
        """``cache``: keys or values; the last cell of a slot takes what the padding writes. ``weights``: bytes."""
        self.off = False
        self._run, self._record = run, record
        self._light = weights < _LIGHT
        self._dtype, self._device = cache.dtype, cache.device
        self._scratch = cache.shape[3] - 1
        self._shapes: dict[tuple[int, int, int], _Shape] = {}
        self._logits: Tensor | None = None  # [rows, vocabulary] of the last replay, of whatever shape

    def __call__(self, tokens: Sequence[list[int]], seen: Sequence[Seen]) -> Tensor | None:
        """Logits [rows, vocabulary] of each sequence's tokens; None: not to be had, run the forward itself."""
        if self.off or (len(seen) > 1 and not self._light) or max(map(len, tokens)) > _ROWS[-1]:
            return None
        try:
            return torch.cat([self._one(own, one) for own, one in zip(tokens, seen, strict=True)])
        except RuntimeError as error:  # of the model, the driver or memory: it only gets slower
            _log.warning("no CUDA graphs, forwards are launched kernel by kernel: %s", error.__context__ or error)
            self.off = True
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
            return self._first(key, ids.to(self._device), positions.to(self._device), padded)[: len(tokens)]
        fresh, kept = padded.part(0, self._dtype, torch.device("cpu")), shape.part
        shape.tokens.copy_(ids)
        shape.positions.copy_(positions)
        kept.cells.copy_(fresh.cells)
        kept.mask.copy_(fresh.mask)
        kept.distance.copy_(fresh.distance)
        shape.replay()
        assert self._logits is not None
        return self._logits[: len(tokens)].clone()

    def _first(self, key: tuple[int, int, int], ids: Tensor, positions: Tensor, padded: Seen) -> Tensor:
        """The forward itself, recorded for the next one of its shape."""
        part = padded.part(0, self._dtype, self._device)
        found = self._run(ids, positions, [part])
        if not torch.isfinite(found).all():  # nothing to hold a replay against
            return found
        if self._logits is None:
            self._logits = found.new_zeros((_ROWS[-1], found.shape[1]))
        logits = self._logits[: len(found)]
        replay = self._record(lambda: logits.copy_(self._run(ids, positions, [part])))
        logits.zero_()
        replay()
        if not torch.allclose(logits, found, rtol=1e-2, atol=1e-2 * float(found.abs().max())):
            raise RuntimeError("a replay differs from its forward")
        self._shapes[key] = _Shape(ids, positions, part, replay)
        return found
