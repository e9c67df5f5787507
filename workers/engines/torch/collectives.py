"""How the ranks of one engine meet within a forward: collectives of ``torch.distributed`` (gloo, or NCCL on GPUs)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

LOADING = 600.0  # seconds that ranks may be apart while they load
_SILENT = 15.0  # seconds a rank may keep the others waiting within a forward


@dataclass(frozen=True)
class Team:
    """``rank`` of ``size`` processes. ``tensor``: the model is split within its layers, as transformers' own plan has
    it; else each layer's attention is one rank's, and its keys and values."""

    rank: int
    size: int
    tensor: bool

    def device(self, kind: str) -> str:
        """This rank's, by torch's name of its kind: each has the GPU of its number."""
        return kind if kind == "cpu" else f"{kind.partition(':')[0]}:{self.rank}"

    def owner(self, layer: int) -> int:
        """Whose a layer's attention is, where layers are not split. (The first and the last layer are everybody's.)"""
        return (layer - 1) % self.size

    def gather(self, found: dict[int, Tensor], layers: Sequence[int], like: Tensor) -> list[Tensor]:
        """The outputs of some layers' attentions, each from its owner; ``found``: this rank's, by place."""
        most = max(sum(self.owner(layer) == rank for layer in layers) for rank in range(self.size))
        own = [found[at] for at in sorted(found)]
        own += [torch.zeros_like(like)] * (most - len(own))
        parts = [torch.empty((most, *like.shape), dtype=like.dtype, device=like.device) for _ in range(self.size)]
        dist.all_gather(parts, torch.stack(own))
        taken = [0] * self.size
        result = []
        for layer in layers:
            rank = self.owner(layer)
            result.append(parts[rank][taken[rank]])
            taken[rank] += 1
        return result


def enter(team: Team, meeting: Path, device: str) -> None:
    """Take part in the collectives of a team whose ranks meet at a file, each on its ``device``. By sockets only over
    this machine's loopback."""
    os.environ |= {"RANK": str(team.rank), "WORLD_SIZE": str(team.size), "LOCAL_RANK": str(team.rank)}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    store = dist.FileStore(str(meeting), team.size)
    os.environ["NCCL_SOCKET_IFNAME"] = os.environ["GLOO_SOCKET_IFNAME"]
    where = torch.device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    dist.init_process_group(
        "gloo" if where.type == "cpu" else "nccl",
        store=store,
        rank=team.rank,
        world_size=team.size,
        timeout=timedelta(seconds=LOADING),
        device_id=None if where.type == "cpu" else where,
    )


def loaded() -> None:
    """From now on a rank that keeps the others waiting is soon given up."""
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=_SILENT), dist.group.WORLD)
