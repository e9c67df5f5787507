"""Llama-family models on disk, tensor by tensor: GGUF files and safetensors directories under one set of names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workers.errors import ModelError, Unsupported

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
        reader = gguf.GGUFReader(path)
        fields = reader.fields
        kind = str(fields["general.architecture"].contents())
        if kind not in FAMILIES:
            raise Unsupported(f"octet runs {', '.join(FAMILIES)} models; {path.name} is of the {kind} family")
        scaling = fields.get(f"{kind}.rope.scaling.type")
        if (scaling is not None and scaling.contents() != "none") or f"{kind}.expert_count" in fields:
            raise Unsupported(f"octet does not run {path.name}: its rotary scaling or experts are not covered")
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

        def number(key: str, default: Any = None) -> Any:
            found = fields.get(f"{kind}.{key}")
            if found is None and default is None:
                raise ModelError(f"{path.name}: the file has no {kind}.{key}")
            return found.contents() if found is not None else default

        heads = int(number("attention.head_count"))
        width = int(number("embedding_length"))
        self.numbers = Numbers(
            layers=int(number("block_count")),
            width=width,
            heads=heads,
            kv_heads=int(number("attention.head_count_kv", heads)),
            head=int(number("attention.key_length", width // heads)),
            ffn=int(number("feed_forward_length")),
            vocabulary=int(self._tensors["token_embd.weight"].shape[1]),
            context=int(number("context_length", 2048)),
            epsilon=float(number("attention.layer_norm_rms_epsilon")),
            theta=float(number("rope.freq_base", 10000.0)),
            neox=kind in ("qwen2", "qwen3"),
        )

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

        config = json.loads((path / "config.json").read_text())
        kind = config.get("model_type")
        if kind not in FAMILIES:
            raise Unsupported(f"octet runs {', '.join(FAMILIES)} models; {path.name} is of the {kind} family")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise Unsupported(f"octet does not cover the rotary scaling of {path.name}: use the torch engine")
        heads = int(config["num_attention_heads"])
        context = int(config.get("max_position_embeddings", 2048))
        window = config.get("sliding_window")
        if window and config.get("use_sliding_window", True):
            context = min(context, int(window))  # within the window, sliding or not is the same
        self._files: list[Any] = [safe_open(file, framework="pt") for file in sorted(path.glob("*.safetensors"))]
        self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118
        self.numbers = Numbers(
            layers=int(config["num_hidden_layers"]),
            width=int(config["hidden_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head=int(config.get("head_dim") or config["hidden_size"] // heads),
            ffn=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            context=context,
            epsilon=float(config.get("rms_norm_eps", 1e-6)),
            theta=float(rope.get("rope_theta") or config.get("rope_theta", 10000.0)),
            neox=True,
        )

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
