"""A small random model with a next-token layer (MTP) as a GGUF file: Qwen3.5's kind, recurrent but for one layer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from helpers.gguf_of import add_vocabulary

VOCABULARY, WIDTH, HEADS, KV, HEAD, FFN, TURNED = 320, 64, 4, 2, 16, 96, 8
LAYERS = 4  # the last of them attends; one more is the next-token layer
_STATE, _GROUPS, _RANK = 16, 2, 4
EPSILON, THETA = 1e-6, 10000.0


def qwen35(path: Path, seed: int = 7) -> tuple[Path, dict[str, np.ndarray]]:
    """The file, and its tensors by name."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "qwen35")
    for key, value in {
        "context_length": 512, "embedding_length": WIDTH, "feed_forward_length": FFN, "attention.head_count": HEADS,
        "attention.head_count_kv": KV, "attention.key_length": HEAD, "attention.value_length": HEAD,
        "block_count": LAYERS + 1, "nextn_predict_layers": 1, "full_attention_interval": 4, "ssm.conv_kernel": 4,
        "ssm.inner_size": _STATE * _RANK, "ssm.state_size": _STATE, "ssm.time_step_rank": _RANK,
        "ssm.group_count": _GROUPS, "rope.dimension_count": TURNED, "vocab_size": VOCABULARY,
    }.items():  # fmt: skip
        writer.add_uint32(f"qwen35.{key}", value)
    writer.add_float32("qwen35.attention.layer_norm_rms_epsilon", EPSILON)
    writer.add_float32("qwen35.rope.freq_base", THETA)
    writer.add_array("qwen35.rope.dimension_sections", [2, 1, 1, 0])
    add_vocabulary(writer, VOCABULARY)
    made: dict[str, np.ndarray] = {}

    def weight(name: str, *shape: int, scale: float = 1.0) -> None:
        made[f"{name}.weight"] = (rng.standard_normal(shape) * scale / shape[-1] ** 0.5).astype(np.float32)

    def norm(name: str, width: int) -> None:
        made[f"{name}.weight"] = (1 + 0.1 * rng.standard_normal(width)).astype(np.float32)

    weight("token_embd", VOCABULARY, WIDTH, scale=8.0)
    weight("output", VOCABULARY, WIDTH, scale=3.0)
    norm("output_norm", WIDTH)
    for layer in range(LAYERS + 1):
        own = f"blk.{layer}"
        norm(f"{own}.attn_norm", WIDTH)
        norm(f"{own}.post_attention_norm", WIDTH)
        if layer >= LAYERS - 1:
            weight(f"{own}.attn_q", 2 * HEADS * HEAD, WIDTH)
            weight(f"{own}.attn_k", KV * HEAD, WIDTH)
            weight(f"{own}.attn_v", KV * HEAD, WIDTH)
            weight(f"{own}.attn_output", WIDTH, HEADS * HEAD)
            norm(f"{own}.attn_q_norm", HEAD)
            norm(f"{own}.attn_k_norm", HEAD)
        else:
            keys, values = _GROUPS * _STATE, _RANK * _STATE
            weight(f"{own}.attn_qkv", 2 * keys + values, WIDTH)
            weight(f"{own}.attn_gate", values, WIDTH)
            made[f"{own}.ssm_conv1d.weight"] = rng.standard_normal((2 * keys + values, 4)).astype(np.float32) / 2
            made[f"{own}.ssm_dt.bias"] = rng.standard_normal(_RANK).astype(np.float32)
            made[f"{own}.ssm_a"] = -np.exp(rng.standard_normal(_RANK)).astype(np.float32)
            weight(f"{own}.ssm_beta", _RANK, WIDTH)
            weight(f"{own}.ssm_alpha", _RANK, WIDTH)
            norm(f"{own}.ssm_norm", _STATE)
            weight(f"{own}.ssm_out", WIDTH, values)
        weight(f"{own}.ffn_gate", FFN, WIDTH)
        weight(f"{own}.ffn_up", FFN, WIDTH)
        weight(f"{own}.ffn_down", WIDTH, FFN)
    own = f"blk.{LAYERS}.nextn"
    weight(f"{own}.eh_proj", WIDTH, 2 * WIDTH)
    for name in ("enorm", "hnorm", "shared_head_norm"):
        norm(f"{own}.{name}", WIDTH)
    for name, tensor in made.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, made
