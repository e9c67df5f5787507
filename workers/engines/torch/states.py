"""Hidden states of a forward: what a head on another device drafts from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hetero.workers.errors import Unsupported


class States:
    """What enters some layers of a model, caught as its forwards run."""

    def __init__(self, model: Any, layers: Sequence[int]) -> None:
        """``layers``: whose input is caught; their number stands for what the last one gives. Raises Unsupported."""
        self._caught: dict[int, Tensor] = {}
        self._count = len(layers)
        found: Any = getattr(getattr(model, "model", None), "layers", None)
        if layers and not (isinstance(found, torch.nn.ModuleList) and max(layers) <= len(found) and min(layers) >= 0):
            raise Unsupported(f"no states can be taken from the layers {list(layers)} of this model")
        for at, layer in enumerate(layers):
            if layer < len(found):
                found[layer].register_forward_pre_hook(partial(self._entering, at), with_kwargs=True)
            else:
                found[-1].register_forward_hook(partial(self._leaving, at))

    def taken(self) -> Tensor | None:
        """Those of the latest forward, [rows, numbers], one layer's after another's; None where none are wanted."""
        if not self._count:
            return None
        found = torch.cat([self._caught[at][0] for at in range(self._count)], dim=-1)
        self._caught.clear()
        return found

    def _entering(self, at: int, module: object, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._caught[at] = given[0] if given else named["hidden_states"]

    def _leaving(self, at: int, module: object, given: object, output: Tensor | tuple[Tensor, ...]) -> None:
        self._caught[at] = output if isinstance(output, Tensor) else output[0]
