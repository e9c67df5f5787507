"""The library alternative to octet's kernel: int8 x int8 through oneDNN, as torch binds it. Linear layers alone.

Rows are quantised outside the timing, attention, norms and residuals are left out: what a whole forward could reach
at best with one library call per matrix.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from hetero.workers.engines.octet.source import Numbers


class LinearLayers:
    """Random int8 weights in the shapes of a model's matrices."""

    def __init__(self, numbers: Numbers, threads: int) -> None:
        import torch

        self._torch: Any = torch
        torch.set_num_threads(threads)
        queries, kv = numbers.heads * numbers.head, numbers.kv_heads * numbers.head
        layer = [
            (queries + 2 * kv, numbers.width),
            (numbers.width, queries),
            (2 * numbers.ffn, numbers.width),
            (numbers.width, numbers.ffn),
        ]
        self._matrices = [self._pack(*shape) for shape in layer * numbers.layers]
        self._matrices.append(self._pack(numbers.vocabulary, numbers.width))

    def seconds(self, rows: int) -> float:
        """One pass of ``rows`` rows through all matrices."""
        torch = self._torch
        inputs = {k: torch.randint(0, 255, (rows, k), dtype=torch.uint8) for k in {k for _, k, _, _ in self._matrices}}
        began = time.perf_counter()
        for packed, inputs_n, scales, zeros in self._matrices:
            torch.ops.onednn.qlinear_pointwise(
                inputs[inputs_n], 1 / 127, 128, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
            )
        return time.perf_counter() - began

    def _pack(self, outputs: int, inputs: int) -> Sequence[Any]:
        torch = self._torch
        weights = torch.randint(-127, 127, (outputs, inputs), dtype=torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(weights, None)
        return packed, inputs, torch.rand(outputs), torch.zeros(outputs, dtype=torch.int32)
