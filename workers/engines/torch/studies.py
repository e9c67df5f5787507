"""A model that learns between its forwards: one small step of AdamW at a time, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hetero.workers.engines.base import Lesson
from hetero.workers.engines.torch.divergence import mixed, shares

_RATE = 2e-4
_ATTENTION = "sdpa"  # while it learns


class Studies:
    """Of one transformers model. What it learns in float32 is kept beside 16-bit weights; its embeddings stay."""

    def __init__(self, model: Any) -> None:
        self._model = model
        kept = {
            id(p) for each in (model.get_input_embeddings(), model.get_output_embeddings()) for p in each.parameters()
        }
        self._own = [p for p in model.parameters() if id(p) not in kept]
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) not in kept)
        self._masters = [p if p.dtype == torch.float32 else p.detach().float().clone() for p in self._own]
        self._optimizer = torch.optim.AdamW(self._masters, lr=_RATE, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, lessons: Sequence[Lesson]) -> None:
        """Go through some lessons once."""
        config = self._model.config
        usual, config._attn_implementation = config._attn_implementation, _ATTENTION
        try:
            with torch.enable_grad():
                self._loss(lessons).backward()
        finally:
            config._attn_implementation = usual
        for own, master in zip(self._own, self._masters, strict=True):
            if own is not master:
                master.grad = None if own.grad is None else own.grad.float()
        torch.nn.utils.clip_grad_norm_(self._masters, 1.0)
        self._optimizer.step()
        with torch.no_grad():
            for own, master in zip(self._own, self._masters, strict=True):
                if own is not master:
                    own.copy_(master)
                own.grad = master.grad = None

    def _loss(self, lessons: Sequence[Lesson]) -> Tensor:
        device, longest = self._model.device, max(len(one.tokens) for one in lessons)
        tokens = torch.zeros(len(lessons), longest, dtype=torch.long)
        for n, one in enumerate(lessons):
            tokens[n, : len(one.tokens)] = torch.tensor(one.tokens)
        logits = self._model(input_ids=tokens.to(device), use_cache=False).logits.flatten(0, 1)
        places = torch.tensor([n * longest + place for n, one in enumerate(lessons) for place in one.places])
        top = min(len(ids) for one in lessons for ids in one.ids)
        ids = torch.tensor([found[:top] for one in lessons for found in one.ids], device=device)
        told = torch.tensor([found[:top] for one in lessons for found in one.logprobs], device=device).exp()
        return mixed(*shares(logits[places.to(device)].float(), ids, told)).mean()
