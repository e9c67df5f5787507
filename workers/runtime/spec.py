"""What a worker is told: plain numbers and strings, checked, so that they may travel over Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from hetero.placement.memory import F16, KvCache
from hetero.workers.wire.transfer import Origin


class WorkerSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One worker. ``index``: which of its role it is; ``engine``: a name in ``engines.registry``.

    ``cores``: the CPU cores it is confined to (empty: all); ``gpus``: GPUs of that ``kind``, ``gpu_layers`` of the
    model on them (-1: all), the others on the cores; ``group``: layers whose attentions run at once for draft tokens;
    ``ranks``: processes that share the model; ``trace``: a file to append a trace to; ``host``, ``ports`` (first and
    last): where a verifier listens; ``secure``: whether both roles speak CURVE; ``cached``: tokens of finished
    sequences to keep as prefixes; ``origin``: where a model can be had that is not here;
    ``lookup``: whether a verifier drafts what stood behind the same words before, in a sequence or in the last ``past``
    tokens of answers; ``vocabulary``: a model whose tokens a drafter is asked in, where they are not its own, and of
    a head its target; ``features``: layers of a target whose input it hands out, for heads; ``learns``: a drafter goes
    on learning while it serves.
    """

    role: Literal["target", "drafter"]
    model: str
    engine: str
    strategy: str
    gamma: int
    cores: list[int] = []
    gpus: list[int] = []
    gpu_layers: int = -1
    kind: Literal["cuda", "rocm", "vulkan", "mps"] = "cuda"
    dtype: str = "float32"
    weights: str = "as-is"
    kv_cache: KvCache = F16
    group: int = 1
    ranks: int = 1
    sequences: int = 4
    cached: int = 0
    context: int = 2048
    exact: bool = False
    host: str = "127.0.0.1"
    secure: bool = False
    ports: list[int] = []
    trace: str = ""
    index: int = 0
    origin: Origin | None = None
    lookup: bool = False
    past: int = 0
    vocabulary: str = ""
    features: list[int] = []
    learns: bool = False

    @property
    def path(self) -> Path:
        return Path(self.model)

    def plain(self) -> dict[str, Any]:
        """As builtins."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built


def read_spec(plain: dict[str, Any]) -> WorkerSpec:
    """The inverse of ``plain``; raises msgspec.ValidationError."""
    return msgspec.convert(plain, WorkerSpec)
