"""A small transformers model as a GGUF file, as llama.cpp's converter makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

_NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "self_attn.qkv_proj": "attn_qkv", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp", "mlp.router": "ffn_gate_inp", "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp", "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp", "self_attn.sinks": "attn_sinks",
}  # fmt: skip
_PERMUTED = ("llama", "mistral", "mixtral", "smollm3", "granite")  # rotary pairs side by side
_ARCHITECTURES = {
    "mistral": "llama", "mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss",
}  # fmt: skip


def _permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    return weights.reshape(heads, 2, -1, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Three control tokens, the bytes, and numbered pieces: more than 259."""
    writer.add_tokenizer_model("llama")
    bytes_ = [b"<0x%02X>" % n for n in range(256)]
    writer.add_token_list([b"<unk>", b"<s>", b"</s>", *bytes_, *[b"t%d" % n for n in range(259, size)]])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (size - 259)])


def write_gguf(model: Any, path: Path) -> Path:
    """In 32-bit floats, with a vocabulary of numbered pieces."""
    config = model.config
    family = config.model_type.removesuffix("_text")
    arch = _ARCHITECTURES.get(family, family)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head, "attention.value_length": head, "rope.dimension_count": head,
        "vocab_size": config.vocab_size,
    }.items():  # fmt: skip
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    _rope(writer, arch, config, head)
    for key, name in {
        "attention.scale": "attention_multiplier", "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier", "logit_scale": "logits_scaling",
        "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
    }.items():  # fmt: skip
        if getattr(config, name, None) is not None:
            writer.add_float32(f"{arch}.{key}", getattr(config, name))
    for key, name in {
        "expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    }.items():  # fmt: skip
        value = getattr(config, name, None) or (key == "expert_count" and getattr(config, "num_experts", None))
        if value:
            writer.add_uint32(f"{arch}.{key}", value)
    if arch == "gpt-oss":
        writer.add_uint32(f"{arch}.expert_feed_forward_length", config.intermediate_size)
    if arch in ("phi3", "gemma2", "gemma3", "gpt-oss") and config.sliding_window:
        writer.add_uint32(f"{arch}.attention.sliding_window", config.sliding_window)
    add_vocabulary(writer, config.vocab_size)
    gemma = any("pre_feedforward" in name for name in model.state_dict())
    for name, tensor in model.state_dict().items():
        stem, _, kind = name.removeprefix("model.").rpartition(".")
        if kind == "sinks":
            stem, kind = f"{stem}.sinks", "weight"
        layer = ""
        if stem.startswith("layers."):
            _, number, stem = stem.split(".", 2)
            layer = f"blk.{number}."
        if stem == "mlp.experts":
            for part, values in _experts(kind, tensor.float().numpy(), arch == "gpt-oss").items():
                writer.add_tensor(f"{layer}{part}", np.ascontiguousarray(values))
            continue
        ours = (
            "post_attention_norm"
            if (gemma or arch == "gpt-oss") and stem == "post_attention_layernorm"
            else _NAMES[stem]
        )
        values = tensor.float().numpy()
        if ours == "output" and config.tie_word_embeddings:
            continue
        if family in _PERMUTED and ours in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if ours == "attn_q" else config.num_key_value_heads
            values = _permuted(values, heads)
        if gemma and "norm" in ours:
            values = values + 1
        if ours == "ffn_gate_inp_shexp":
            values = values[0]
        writer.add_tensor(f"{layer}{ours}.{kind}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _experts(kind: str, values: np.ndarray, oss: bool) -> dict[str, np.ndarray]:
    """Of all experts: one tensor each for gates, ups and downs. gpt-oss has inputs first, gates and ups in turn."""
    what = "bias" if kind.endswith("_bias") else "weight"
    if oss and what == "weight":
        values = values.swapaxes(1, 2)
    if kind.startswith("down_proj"):
        return {f"ffn_down_exps.{what}": values}
    half = values.shape[1] // 2
    gate, up = (values[:, ::2], values[:, 1::2]) if oss else (values[:, :half], values[:, half:])
    return {f"ffn_gate_exps.{what}": gate, f"ffn_up_exps.{what}": up}


def _rope(writer: gguf.GGUFWriter, arch: str, config: Any, head: int) -> None:
    """Of the rules whose keys GGUF has; llama3's factors and longrope's are tensors."""
    rules = config.rope_parameters
    rules = rules.get("full_attention", rules)
    writer.add_float32(f"{arch}.rope.freq_base", rules["rope_theta"])
    kind = rules.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_string(f"{arch}.rope.scaling.type", kind)
        writer.add_float32(f"{arch}.rope.scaling.factor", rules["factor"])
    if kind == "yarn":
        writer.add_uint32(f"{arch}.rope.scaling.original_context_length", rules["original_max_position_embeddings"])
    if kind == "longrope":
        original = config.original_max_position_embeddings
        factor = config.max_position_embeddings / original
        writer.add_uint32(f"{arch}.rope.scaling.original_context_length", original)
        writer.add_float32(f"{arch}.rope.scaling.attn_factor", (1 + np.log(factor) / np.log(original)) ** 0.5)
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", np.array(rules[f"{name}_factor"], np.float32))
    if kind == "llama3":
        frequencies = rules["rope_theta"] ** (-np.arange(0, head, 2) / head)
        turns = rules["original_max_position_embeddings"] * frequencies / (2 * np.pi)
        low, high = rules["low_freq_factor"], rules["high_freq_factor"]
        kept = np.clip((turns - low) / (high - low), 0, 1)
        writer.add_tensor("rope_freqs.weight", (1 / (kept + (1 - kept) / rules["factor"])).astype(np.float32))
