"""How far what a student would say is from what the target would, seen through the target's likeliest tokens and one
more for all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Divergence: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # of logarithms p (the target's) and q, [m, top + 1] -> [m]
_LEAST = 1e-6  # of a share


def shares(logits: Tensor, ids: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the target's and the student's shares [m, top + 1], the last of all the rest; from the student's
    ``logits`` [m, vocabulary], ``ids`` [m, top] (-1: none) and the ``target``'s shares of them."""
    there = ids >= 0
    own = logits.gather(-1, ids.clamp(min=0)) - logits.logsumexp(-1, keepdim=True)
    own = torch.where(there, own.exp(), 0.0)
    p = torch.cat([target, 1.0 - target.sum(-1, keepdim=True)], -1).clamp(min=_LEAST)
    q = torch.cat([own, 1.0 - own.sum(-1, keepdim=True)], -1).clamp(min=_LEAST)
    return p.log(), q.log()


def forward(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q)."""
    return (p.exp() * (p - q)).sum(-1)


def reverse(p: Tensor, q: Tensor) -> Tensor:
    """KL(q || p)."""
    return (q.exp() * (q - p)).sum(-1)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """The mean of both to their middle."""
    middle = ((p.exp() + q.exp()) / 2).log()
    return (forward(p, middle) + forward(q, middle)) / 2


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """1 - the chance that a draft is accepted, at temperature 1 (Leviathan et al. 2023, section 3.2)."""
    return (p.exp() - q.exp()).abs().sum(-1) / 2


def mixed(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q), whose slope reaches what the student gives no chance, and the total variation, which counts."""
    return forward(p, q) + 2.0 * total_variation(p, q)


DIVERGENCES: dict[str, Divergence] = {
    "mixed": mixed,
    "kl": forward,
    "reverse": reverse,
    "js": jensen_shannon,
    "tv": total_variation,
}
