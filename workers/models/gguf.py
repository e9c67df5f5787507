"""A GGUF file as llama.cpp opens it: whole, or its vocabulary and metadata alone."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import llama_cpp

from hetero.workers.errors import ModelError
from hetero.workers.models.next_layers import next_layers

# llama.cpp's chatter is dropped; its failures come back as return codes.
_QUIET = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(_QUIET, ctypes.c_void_p(0))


def open_gguf(
    path: Path, gpus: Sequence[int] = (), vocabulary_only: bool = False, layers: int = -1, next_tokens: bool = False
) -> object:
    """A llama_model pointer. ``gpus``: the ggml devices that share all layers, or the last ``layers`` of them, each
    some in sequence, as their free memory has it; none: the CPU does. ``next_tokens``: with its next-token layers.
    Raises ModelError."""
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = vocabulary_only
    params.load_mtp = next_tokens
    behind = 1 + (0 if next_tokens else next_layers(path))  # it counts the output first, and next-token layers
    params.n_gpu_layers = 0 if not gpus else layers + behind if layers >= 0 else 1_000
    devices = (ctypes.c_void_p * (len(gpus) + 1))(
        *gpus
    )  # ended by a NULL; without any, llama.cpp leaves all GPUs alone
    params.devices = ctypes.cast(devices, ctypes.c_void_p)
    params.split_mode = llama_cpp.LLAMA_SPLIT_MODE_LAYER if len(gpus) > 1 else llama_cpp.LLAMA_SPLIT_MODE_NONE
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise ModelError(f"{path}: llama.cpp cannot load this file (damaged, or an architecture it does not know)")
    return model
