"""A model that learns between its forwards: one small step of AdamW at a time, in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hetero.workers.engines.base import Lesson
from hetero.workers.engines.torch.divergence import mixed, shares
from hetero.workers.errors import EngineError

_RATE = 2e-4
_ATTENTION = "sdpa"  # while it learns


class Studies:
    """Of one transformers model. What it learns in float32 is kept beside 16-bit weights; its embeddings stay."""

    def __init__(self, model: Any) -> None:
        self._model = model
        embeddings = model.get_input_embeddings(), model.get_output_embeddings()
        kept = {id(parameter) for each in embeddings for parameter in each.parameters()}
        self._own = [p for p in model.parameters() if id(p) not in kept]
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) not in kept)
        self._masters = [p if p.dtype == torch.float32 else p.detach().float().clone() for p in self._own]
        # One tensor after another: beside the model and its moments there is to be nothing as large.
        self._optimizer = torch.optim.AdamW(self._masters, lr=_RATE, betas=(0.9, 0.98), weight_decay=0.0, foreach=False)

    def step(self, lessons: Sequence[Lesson], aborted: Callable[[], bool]) -> None:
        """Go through some lessons once, one after another, unless it is ``aborted`` meanwhile. Raises EngineError where
        nothing comes of it; the model is as before then."""
        config = self._model.config
        usual, config._attn_implementation = config._attn_implementation, _ATTENTION
        try:
            for lesson in lessons:
                if aborted():
                    return
                with torch.enable_grad():
                    (self._loss(lesson) / len(lessons)).backward()
            for own, master in zip(self._own, self._masters, strict=True):
                if own is not master and own.grad is not None:
                    master.grad, own.grad = own.grad.float(), None
            norm = torch.nn.utils.clip_grad_norm_(self._masters, 1.0)
            if not torch.isfinite(norm):
                raise EngineError("what it was to learn is no finite number")
            self._optimizer.step()
            with torch.no_grad():
                for own, master in zip(self._own, self._masters, strict=True):
                    if own is not master:
                        own.copy_(master)
        finally:
            config._attn_implementation = usual
            for own, master in zip(self._own, self._masters, strict=True):
                own.grad = master.grad = None

    def _loss(self, lesson: Lesson) -> Tensor:
        device = self._model.device
        tokens, places = (torch.tensor(each, device=device) for each in (lesson.tokens, lesson.places))
        logits = self._model(input_ids=tokens[None], use_cache=False, logits_to_keep=places).logits[0]
        top = min(map(len, lesson.ids))
        ids = torch.tensor([found[:top] for found in lesson.ids], device=device)
        told = torch.tensor([found[:top] for found in lesson.logprobs], device=device).exp()
        return mixed(*shares(logits.float(), ids, told)).mean()
