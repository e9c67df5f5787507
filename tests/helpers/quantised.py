"""Random weights of every type that octet reads, and a GGUF file of one type that becomes another."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import numpy as np

TYPES = [
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
    "IQ4_XS", "MXFP4",
]  # fmt: skip
_HALVES = {  # where in a block the half floats lie
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip


def blocks(kind: str, rows: int, columns: int, seed: int) -> np.ndarray:
    """Any bits at all, with scales as weights have them: [rows, bytes]."""
    rng = np.random.default_rng(seed)
    number = gguf.GGMLQuantizationType[kind]
    values, size = gguf.GGML_QUANT_SIZES[number]
    if kind in ("F32", "F16", "BF16"):
        found = rng.standard_normal((rows, columns)).astype(np.float32)
        if kind == "F32":
            return found.view(np.uint8)
        halves = found.astype(np.float16) if kind == "F16" else (found.view(np.uint32) >> 16).astype(np.uint16)
        return halves.view(np.uint8)
    found = rng.integers(0, 256, (rows, columns // values, size), dtype=np.uint8)
    for at in _HALVES.get(kind, ()):
        scales = (rng.uniform(-0.02, 0.02, found.shape[:2])).astype(np.float16)
        found[:, :, at : at + 2] = scales.view(np.uint8).reshape(*found.shape[:2], 2)
    if kind == "MXFP4":
        found[:, :, 0] = rng.integers(118, 124, found.shape[:2])
    return found.reshape(rows, -1)


def requantised(source: Path, target: Path, file_type: str) -> Path:
    """A GGUF file in another of llama.cpp's types (``Q4_K_M``, ...), by llama.cpp itself."""
    import llama_cpp

    import hetero.workers.models.gguf  # noqa: F401  (drops llama.cpp's chatter)

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
    settings.allow_requantize = True
    settings.nthread = 2
    assert not llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings))
    return target
