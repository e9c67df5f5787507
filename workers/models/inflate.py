"""A model with the same function as a small one and the cost of a far larger one, to measure on.

Zero padding keeps a llama-family model's function: embeddings and norm weights extended with zeros (RMSNorm weights
times sqrt(d / D), epsilon times d / D), extra heads, ffn units and whole layers of random weights whose outputs are
multiplied by zeros. Where D / d is a power of 4 all factors are powers of two, so even the last bit stays in F32.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file

from hetero.placement.errors import ConfigError
from hetero.workers.errors import ModelError
from hetero.workers.models.gguf_writing import TYPES, Matrix, Tensor, write_gguf
from hetero.workers.models.head import EAGLE3, read_head


@dataclass(frozen=True)
class Size:
    """The shape to inflate to; head size and the ratio of query to key heads stay."""

    width: int
    layers: int
    ffn: int


def inflate(source: Path, target: Path, size: Size | None, kind: str, seed: int = 0, noise: float = 0.0) -> int:
    """Write ``target``; returns its number of weights. ``size`` None: the source's; ``noise``: what is added to each of
    the source's matrices, in its root mean square, for a model that agrees less with it. Raises ConfigError for a size
    below the source's."""
    if kind not in TYPES:
        raise ConfigError(f"type: {kind!r} is unknown: choose {', '.join(TYPES)}")
    reader = gguf.GGUFReader(source)
    if reader.fields["general.architecture"].contents() != "llama":
        raise ModelError(f"{source}: only llama-architecture GGUF files can be inflated")
    model = _Small(reader, noise, np.random.default_rng(seed + 1))
    size = size or Size(model.width, model.layers, model.ffn)
    if size.width < model.width or size.layers < model.layers or size.ffn < model.ffn or size.width % model.width:
        raise ConfigError(
            f"size: {size.width} x {size.layers} layers, ffn {size.ffn}: each must be at least the source's "
            f"({model.width} x {model.layers}, ffn {model.ffn}), the width a multiple of it"
        )
    tensors = _tensors(model, size, np.random.default_rng(seed))
    write_gguf(target, reader, _changed(model, size), kind, tensors)
    return sum(int(np.prod(tensor.shape)) for tensor in tensors)


class _Small:
    """The source model's numbers and weights."""

    def __init__(self, reader: Any, noise: float = 0.0, rng: np.random.Generator | None = None) -> None:
        def number(key: str) -> int:
            return int(reader.fields[f"llama.{key}"].contents())

        self.width = number("embedding_length")
        self.layers = number("block_count")
        self.ffn = number("feed_forward_length")
        self.heads = number("attention.head_count")
        self.kv_heads = number("attention.head_count_kv")
        self.head = self.width // self.heads
        self.epsilon = float(reader.fields["llama.attention.layer_norm_rms_epsilon"].contents())
        self._noise, self._rng = noise, rng or np.random.default_rng(0)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Matrix:
        tensor = self._tensors[name]
        shape = [int(n) for n in tensor.shape[::-1]]
        found: Matrix = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32)
        if self._noise and found.ndim == 2 and not name.startswith("token_embd"):
            size = np.float32(self._noise * np.sqrt(np.mean(np.square(found))))
            found += size * self._rng.standard_normal(found.shape, dtype=np.float32)
        return found


def _changed(model: _Small, size: Size) -> dict[str, Any]:
    """Of the header."""
    factor = size.width // model.width
    return {
        "llama.embedding_length": size.width,
        "llama.block_count": size.layers,
        "llama.feed_forward_length": size.ffn,
        "llama.attention.head_count": model.heads * factor,
        "llama.attention.head_count_kv": model.kv_heads * factor,
        "llama.attention.layer_norm_rms_epsilon": model.epsilon / factor,
    }


def _tensors(model: _Small, size: Size, rng: np.random.Generator) -> list[Tensor]:
    factor = size.width // model.width
    queries, keys = size.width, model.kv_heads * factor * model.head
    scale = (model.width / size.width) ** 0.5
    wide, ffn = size.width, size.ffn
    # name: (shape, whether outputs beyond the source's must be zero, so that the padding stays zero)
    shapes = {
        "attn_q": ((queries, wide), False),
        "attn_k": ((keys, wide), False),
        "attn_v": ((keys, wide), False),
        "attn_output": ((wide, queries), True),
        "ffn_gate": ((ffn, wide), False),
        "ffn_up": ((ffn, wide), False),
        "ffn_down": ((wide, ffn), True),
    }

    def norm(name: str) -> Matrix:
        padded = np.zeros(wide, np.float32)
        padded[: model.width] = model[name] * np.float32(scale)
        return padded

    def embedding(name: str) -> Matrix:
        source = model[name]
        padded = np.zeros((source.shape[0], wide), np.float32)
        padded[:, : model.width] = source
        return padded

    def matrix(name: str, shape: tuple[int, int], zeros: bool) -> Matrix:
        noise = np.float32(0.02) * rng.standard_normal(shape, dtype=np.float32)
        made = np.zeros(shape, np.float32) if zeros else noise
        if name in model:
            source = model[name]
            made[: source.shape[0], : source.shape[1]] = source
        return made

    vocabulary = model["token_embd.weight"].shape[0]
    found: list[Tensor] = []
    for name in ("token_embd.weight", "output.weight"):
        if name in model:
            found.append(Tensor(name, (vocabulary, wide), partial(embedding, name)))
    found.append(Tensor("output_norm.weight", (wide,), partial(norm, "output_norm.weight")))
    for layer in range(size.layers):
        for part in ("attn_norm", "ffn_norm"):
            name = f"blk.{layer}.{part}.weight"
            # A layer of its own computes something, for its cost, from the same kind of input.
            like = name if name in model else f"blk.0.{part}.weight"
            found.append(Tensor(name, (wide,), partial(norm, like)))
        for part, (shape, zeros) in shapes.items():
            name = f"blk.{layer}.{part}.weight"
            found.append(Tensor(name, shape, partial(matrix, name, shape, zeros)))
    return found


def inflate_head(head: Path, source: Path, width: int, out: Path) -> None:
    """Write ``out``, the head of the directory ``head`` for its target ``source`` inflated to ``width``: what it reads
    of the padding counts for nothing, so it drafts the same. Raises ModelError for one that is no EAGLE-3 head."""
    told = read_head(head)
    if told.kind != EAGLE3:
        raise ModelError(f"{head}: only EAGLE-3 heads can be inflated, others are as wide as their target")
    weights = load_file(head / "model.safetensors")
    own = weights["fc.weight"]
    count, small = told.features // told.width, told.width
    wide = np.zeros((len(own), count, width), own.dtype)
    wide[:, :, :small] = own.reshape(len(own), count, small)
    weights["fc.weight"] = wide.reshape(len(own), -1)
    target = _Small(gguf.GGUFReader(source))
    weights.setdefault("embed_tokens.weight", target["token_embd.weight"].astype(own.dtype))
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors")
    config = json.loads((head / "config.json").read_text()) | {"target_hidden_size": width}
    config["eagle_aux_hidden_state_layer_ids"] = list(told.states(target.layers))
    (out / "config.json").write_text(json.dumps(config, indent=2))
