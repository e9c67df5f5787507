"""Transformers checkpoints: a GGUF file or a safetensors directory to a model, without ever running code from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.distributed import DistributedConfig

from hetero.workers.errors import ModelError, Unsupported
from hetero.workers.models.directory import check_directory
from hetero.workers.models.gguf_header import parts


def exit_layer(model: Any) -> torch.nn.Module | None:
    """The middle layer, after which the LM head can be tried; None where the model is built otherwise."""
    body = getattr(model, "model", None)
    layers = getattr(body, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList) or len(layers) < 2 or not hasattr(body, "norm"):
        return None
    return layers[len(layers) // 2 - 1]


def load_model(path: Path, dtype: str, parts_of: int = 1, attention: str = "hetero") -> Any:
    """A causal language model from a GGUF file or a safetensors directory; never runs code from the model.

    ``parts_of``: ranks that share it by transformers' own tensor-parallel plan, of which this is one; ``attention``: by
    default that of ``engines.torch.attention``, which registers it."""
    if path.is_dir():
        check_directory(path)
        where, more = path, dict[str, Any](use_safetensors=True)
    else:
        if len(parts(path)) > 1:
            raise ModelError(
                f"torch reads whole GGUF files only: {path.name} is one of several parts; take octet or llama_cpp, or "
                "join them with llama-gguf-split --merge"
            )
        where, more = path.parent, {"gguf_file": path.name}
    if parts_of > 1:
        more["distributed_config"] = DistributedConfig(tp_size=parts_of)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            where,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation=attention,
            **more,
        ).eval()
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path}: transformers cannot load this model: {first}") from error
    if getattr(model, "_is_stateful", False):
        raise Unsupported(f"{path.name} has recurrent memory, which cannot take back rejected tokens")
    return model
