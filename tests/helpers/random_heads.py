"""Heads of the built-in target with random weights, in the layouts people publish."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from hetero.workers.models.metadata import read_metadata

PROPOSES = 1000  # tokens of an EAGLE-3 head's own vocabulary


def save_head(folder: Path, target: Path, kind: str, seed: int = 0) -> Path:
    """``kind``: "sglang" and "speculators" (EAGLE-3), "dovetail" (two layers)."""
    told, rng = read_metadata(target), torch.Generator().manual_seed(seed)
    width, vocabulary = told.width, told.vocabulary
    numbers = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 2 if kind == "dovetail" else 1,
        "vocab_size": vocabulary,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
    }

    def of(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng) / shape[-1] ** 0.5

    weights = {}
    first = "midlayer" if kind == "sglang" else "layers.0"
    for at in range(numbers["num_hidden_layers"]):
        layer = first if at == 0 else f"layers.{at}"
        entering = 2 * width if kind != "dovetail" and at == 0 else width
        for name, shape in (("q", (64, entering)), ("k", (32, entering)), ("v", (32, entering)), ("o", (width, 64))):
            weights[f"{layer}.self_attn.{name}_proj.weight"] = of(*shape)
        for name, shape in (("gate", (96, width)), ("up", (96, width)), ("down", (width, 96))):
            weights[f"{layer}.mlp.{name}_proj.weight"] = of(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}.{name}.weight"] = 1 + 0.1 * of(width)
    if kind == "dovetail":
        config = {**numbers, "architectures": ["DovetailForCausalLM"]}
        weights["feature.weight"], weights["embedding.weight"] = of(width, width), of(width, width)
        weights["gate.weight"], weights["embedding_norm.weight"] = of(width, 2 * width), 1 + 0.1 * of(width)
    else:
        weights[f"{first}.hidden_norm.weight"] = 1 + 0.1 * of(width)
        weights["fc.weight"] = of(width, 3 * width)
        weights["norm.weight"], weights["lm_head.weight"] = 1 + 0.1 * of(width), 3 * of(PROPOSES, width)
        own = torch.randperm(vocabulary, generator=rng)[:PROPOSES].sort().values
        weights["d2t"] = own - torch.arange(PROPOSES)
        weights["t2d"] = torch.zeros(vocabulary, dtype=torch.bool).index_fill(0, own, True)
        config = {**numbers, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": PROPOSES}
        if kind == "speculators":
            config = {
                "architectures": ["Eagle3Speculator"],
                "speculators_model_type": "eagle3",
                "transformer_layer_config": numbers,
                "draft_vocab_size": PROPOSES,
                "norm_before_residual": True,
                "eagle_aux_hidden_state_layer_ids": [0, 1, told.layers],
            }
            weights["embed_tokens.weight"] = of(vocabulary, width)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder
