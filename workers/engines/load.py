"""From a worker's spec to its engine."""

from __future__ import annotations

import os

from workers.engines.base import Engine
from workers.spec import WorkerSpec


def load_engine(spec: WorkerSpec) -> Engine:
    """Load the model. Imports only the library the engine needs. Raises HeteroError."""
    threads = len(spec.cores) or os.cpu_count() or 1
    if spec.engine == "table":
        from workers.engines.table import TableEngine, TableSpec

        agreement = 1.0 if spec.role == "target" else 0.8
        return TableEngine(TableSpec(spec.vocabulary, spec.context, agreement=agreement, sequences=spec.sequences))
    if spec.engine == "llama_cpp":
        from workers.engines.llama_cpp import LlamaEngine, LlamaSettings

        return LlamaEngine(
            spec.path,
            LlamaSettings(threads, spec.sequences, spec.context, exact=spec.exact, gpu=_seen(spec.gpu)),
        )
    if spec.engine in ("octet", "octet4"):
        from workers.engines.octet.engine import OctetEngine, OctetSettings

        return OctetEngine(
            spec.path, OctetSettings(threads, spec.sequences, spec.context, bits=4 if spec.engine == "octet4" else 8)
        )
    import torch

    from workers.engines.torch_engine import TorchEngine, TorchSettings

    torch.set_num_threads(threads)
    device = "cpu" if spec.gpu is None else f"cuda:{_seen(spec.gpu)}"
    return TorchEngine(spec.path, TorchSettings(device, spec.dtype, spec.sequences, spec.context, exact=spec.exact))


def _seen(gpu: int | None) -> int | None:
    """The GPU's number within the process, which sees that one only (``pinning.pin``)."""
    return None if gpu is None else 0
