"""Llama-family models on disk, tensor by tensor: GGUF files and safetensors directories under one set of names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hetero.workers.errors import ModelError, Unsupported
from hetero.workers.models.metadata import read_metadata

Array = NDArray[np.float32]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Numbers:
    """A model's shape. ``neox``: rotary pairs lie half a head apart, not side by side."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    ffn: int
    vocabulary: int
    context: int
    epsilon: float
    theta: float
    neox: bool


def _numbers(path: Path, vocabulary: int) -> Numbers:
    """The shape of a model octet covers. Raises Unsupported."""
    found = read_metadata(path)
    if found.family not in FAMILIES:
        raise Unsupported(f"octet runs {', '.join(FAMILIES)} models; {path.name} is of the {found.family} family")
    if found.missing:
        raise ModelError(f"{path.name}: the file does not tell {', '.join(found.missing)}")
    if found.scaling or found.experts:
        raise Unsupported(f"octet does not run {path.name}: its rotary scaling or experts are not covered")
    # Within a sliding window, sliding or not is the same.
    context = min(found.context, found.window or found.context)
    # GGUF files of llama and mistral have their rotary pairs side by side; everything else half a head apart.
    neox = path.is_dir() or found.family in ("qwen2", "qwen3")
    return Numbers(
        found.layers, found.width, found.heads, found.kv_heads, found.head, found.ffn, vocabulary, context,
        found.epsilon, found.theta, neox,
    )  # fmt: skip


class Source(Protocol):
    """A model to read. Names are GGUF's: ``blk.0.attn_q.weight``."""

    numbers: Numbers

    def get(self, name: str) -> Array | None:
        """A tensor as float32, or None if the model has none of that name."""

    def rope_factors(self) -> Array | None:
        """Divisors of the rotary frequencies [head / 2], where the model stretches them."""


def open_source(path: Path) -> Source:
    """Raises ModelError or Unsupported."""
    return SafetensorsSource(path) if path.is_dir() else GgufSource(path)


class GgufSource:
    """A GGUF file of any quantisation that gguf can unpack."""

    def __init__(self, path: Path) -> None:
        import gguf

        self._gguf = gguf
        self._tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        embedding = self._tensors.get("token_embd.weight")
        if embedding is None:
            raise ModelError(f"{path.name}: the file has no token_embd.weight")
        self.numbers = _numbers(path, int(embedding.shape[1]))

    def get(self, name: str) -> Array | None:
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        shape = [int(n) for n in tensor.shape[::-1]]
        return np.asarray(self._gguf.dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(shape)

    def rope_factors(self) -> Array | None:
        return self.get("rope_freqs.weight")


_HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class SafetensorsSource:
    """A transformers directory."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._files: list[Any] = [safe_open(file, framework="pt") for file in sorted(path.glob("*.safetensors"))]
        self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118
        self.numbers = _numbers(path, read_metadata(path).vocabulary)

    def get(self, name: str) -> Array | None:
        parts = name.split(".")
        known = _HF_NAMES[parts[-2]]
        theirs = f"model.layers.{parts[1]}.{known}.{parts[-1]}" if parts[0] == "blk" else f"{known}.{parts[-1]}"
        file: Any = self._where.get(theirs)
        if file is None:
            return None
        found: Array = file.get_tensor(theirs).float().numpy()
        return found

    def rope_factors(self) -> Array | None:
        return None


def need(source: Source, name: str) -> Array:
    """A tensor the family must have. Raises ModelError."""
    found = source.get(name)
    if found is None:
        raise ModelError(f"the model has no tensor {name}")
    return found


def layer_names(layers: int) -> Iterator[str]:
    """``blk.0``, ``blk.1``, ..."""
    return (f"blk.{n}" for n in range(layers))
