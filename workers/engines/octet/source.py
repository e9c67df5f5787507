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
    """The shape of a model octet covers. Raises ModelError or Unsupported."""
    found = read_metadata(path)
    if found.family not in FAMILIES:
        raise Unsupported(f"octet runs {', '.join(FAMILIES)} models; {path.name} is of the {found.family} family")
    if found.missing:
        raise ModelError(f"{path.name}: the file does not tell {', '.join(found.missing)}")
    if found.scaling or found.experts:
        raise Unsupported(f"octet does not run {path.name}: its rotary scaling or experts are not covered")
    if found.heads % found.kv_heads:
        raise ModelError(f"{path.name}: {found.heads} heads cannot share {found.kv_heads} heads of keys and values")
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
        """A tensor as float32, or None if the model has none of that name. Raises ModelError or Unsupported."""


def open_source(path: Path) -> Source:
    """Raises ModelError or Unsupported."""
    return SafetensorsSource(path) if path.is_dir() else GgufSource(path)


class GgufSource:
    """A GGUF file of any quantisation that gguf can unpack."""

    def __init__(self, path: Path) -> None:
        import gguf

        read_metadata(path)  # bounds what the reader below believes of keys
        self._gguf = gguf
        try:
            self._tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        except Exception as error:  # the library checks little, and falls over in many ways
            raise ModelError(f"{path.name}: its list of tensors is damaged ({error or type(error).__name__})") from None
        embedding = self._tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise ModelError(f"{path.name}: the file has no matrix token_embd.weight")
        self.numbers = _numbers(path, int(embedding.shape[1]))

    def get(self, name: str) -> Array | None:
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        shape = [int(n) for n in tensor.shape[::-1]]
        try:
            return np.asarray(self._gguf.dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(shape)
        except NotImplementedError:
            raise Unsupported(f"octet cannot read {name}: its type is {tensor.tensor_type.name}") from None
        except ValueError as error:
            raise ModelError(f"tensor {name} is damaged ({error})") from None


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
        from safetensors import SafetensorError, safe_open

        self._broken = SafetensorError
        self.numbers = _numbers(path, read_metadata(path).vocabulary)
        try:
            self._files: list[Any] = [safe_open(file, framework="pt") for file in sorted(path.glob("*.safetensors"))]
            self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path.name}: a safetensors file is damaged ({error})") from None

    def get(self, name: str) -> Array | None:
        parts = name.split(".")
        known = _HF_NAMES.get(parts[-2])
        if known is None:
            return None
        theirs = f"model.layers.{parts[1]}.{known}.{parts[-1]}" if parts[0] == "blk" else f"{known}.{parts[-1]}"
        file: Any = self._where.get(theirs)
        if file is None:
            return None
        try:
            found: Array = file.get_tensor(theirs).float().numpy()
        except self._broken as error:
            raise ModelError(f"tensor {theirs} is damaged ({error})") from None
        return found


def need(source: Source, name: str, *shape: int) -> Array:
    """A tensor the family must have. Raises ModelError."""
    found = maybe(source, name, *shape)
    if found is None:
        raise ModelError(f"the model has no tensor {name}")
    return found


def maybe(source: Source, name: str, *shape: int) -> Array | None:
    """A tensor some models have. Raises ModelError for one of another shape, or with values that are no numbers."""
    found = source.get(name)
    if found is not None:
        if found.shape != shape:
            raise ModelError(f"tensor {name} is {found.shape}, the model's numbers make it {shape}")
        if not np.isfinite(found).all():
            raise ModelError(f"tensor {name} has values that are no numbers")
    return found


def layer_names(layers: int) -> Iterator[str]:
    """``blk.0``, ``blk.1``, ..."""
    return (f"blk.{n}" for n in range(layers))
