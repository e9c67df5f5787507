"""From a worker's spec to its engine."""

from __future__ import annotations

import os

from workers.engines.base import Engine
from workers.spec import WorkerSpec

_WINDOWS = 128  # evaluated guesses a target holds per sequence: a window's
_TREE = 512  # a drafter's: all that a window of many draft steps can grow


def load_engine(spec: WorkerSpec, graphs: bool = True) -> Engine:
    """Load the model. Imports only the library the engine needs. ``graphs``: torch's, on CUDA. Raises HeteroError."""
    guesses = _TREE if spec.role == "drafter" else _WINDOWS
    threads = len(spec.cores) or os.cpu_count() or 1
    if spec.engine == "table":
        from workers.engines.table import TableEngine, TableSpec

        agreement = 1.0 if spec.role == "target" else 0.8
        return TableEngine(TableSpec(spec.vocabulary, spec.context, agreement=agreement, sequences=spec.sequences))
    if spec.engine == "llama_cpp":
        from workers.engines.llama_cpp import LlamaEngine, LlamaSettings

        return LlamaEngine(
            spec.path,
            LlamaSettings(
                threads,
                spec.sequences,
                spec.context,
                exact=spec.exact,
                guesses=guesses,
                gpu=spec.kind if spec.gpu is not None else "",
            ),
        )
    if spec.engine in ("octet", "octet4"):
        from workers.engines.octet.engine import OctetEngine, OctetSettings

        bits = 4 if spec.engine == "octet4" else 8
        return OctetEngine(
            spec.path,
            OctetSettings(threads, spec.sequences, spec.context, bits=bits, guesses=guesses),
        )
    import torch

    from workers.engines.graphs import CudaGraphs
    from workers.engines.torch_engine import TorchEngine, TorchSettings

    torch.set_num_threads(threads)
    # The process sees that one GPU only (``pinning.pin``); torch calls ROCm's cuda, too.
    device = "cpu" if spec.gpu is None else "mps" if spec.kind == "mps" else "cuda:0"
    settings = TorchSettings(device, spec.dtype, spec.sequences, spec.context, exact=spec.exact, guesses=guesses)
    return TorchEngine(spec.path, settings, CudaGraphs() if graphs and device == "cuda:0" else None)
