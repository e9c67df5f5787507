"""Small random models with recurrent memory as GGUF files: Mamba (recurrent alone) and LFM2 (a hybrid)."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
import transformers

from helpers.gguf_of import add_vocabulary

VOCABULARY = 320


def _begun(path: Path, arch: str, numbers: dict[str, object]) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, arch)
    for key, value in numbers.items():
        if isinstance(value, list):
            writer.add_array(f"{arch}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{arch}.{key}", value)
        else:
            writer.add_uint32(f"{arch}.{key}", value)
    add_vocabulary(writer, VOCABULARY)
    return writer


def _ended(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _random(config: transformers.PretrainedConfig, scale: float) -> torch.nn.Module:
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and parameter.ndim > 1 and "A_log" not in name:
                parameter.mul_(scale)
    return model


def mamba(path: Path) -> tuple[Path, torch.nn.Module]:
    """Four layers of width 64."""
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=64, state_size=16, num_hidden_layers=4, conv_kernel=4, expand=2,
        time_step_rank=8,
    )  # fmt: skip
    model = _random(config, 3.0)
    writer = _begun(
        path, "mamba",
        {
            "context_length": 512, "embedding_length": 64, "feed_forward_length": 0, "attention.head_count": 0,
            "block_count": 4, "ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16,
            "ssm.time_step_rank": 8,
            "attention.layer_norm_rms_epsilon": 1e-5,
        },
    )  # fmt: skip
    names = {
        "mixer.in_proj": "ssm_in", "mixer.conv1d": "ssm_conv1d", "mixer.x_proj": "ssm_x", "mixer.dt_proj": "ssm_dt",
        "mixer.out_proj": "ssm_out", "norm": "attn_norm",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if name in ("backbone.embeddings.weight", "backbone.norm_f.weight"):
            writer.add_tensor("token_embd.weight" if "embed" in name else "output_norm.weight", values)
        elif name.startswith("backbone.layers."):
            number, rest = name.removeprefix("backbone.layers.").split(".", 1)
            if rest == "mixer.A_log":
                writer.add_tensor(f"blk.{number}.ssm_a", -np.exp(values))
            elif rest == "mixer.D":
                writer.add_tensor(f"blk.{number}.ssm_d", values)
            else:
                stem, kind = rest.rsplit(".", 1)
                squeezed = values.squeeze() if stem == "mixer.conv1d" else values
                writer.add_tensor(f"blk.{number}.{names[stem]}.{kind}", np.ascontiguousarray(squeezed))
    return _ended(writer, path), model


def lfm2(path: Path) -> tuple[Path, torch.nn.Module]:
    """Short convolutions and attention in turn."""
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    config = transformers.Lfm2Config(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, conv_L_cache=3, layer_types=kinds,
        block_auto_adjust_ff_dim=False, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = _random(config, 3.0)
    writer = _begun(
        path, "lfm2",
        {
            "context_length": 512, "embedding_length": 64, "feed_forward_length": 96, "attention.head_count": 4,
            "attention.head_count_kv": [2 if kind != "conv" else 0 for kind in kinds], "block_count": 4,
            "shortconv.l_cache": 3, "attention.layer_norm_rms_epsilon": float(config.norm_eps),
            "rope.freq_base": float(config.rope_parameters["rope_theta"]), "vocab_size": VOCABULARY,
        },
    )  # fmt: skip
    names = {
        "operator_norm": "attn_norm", "ffn_norm": "ffn_norm", "feed_forward.w1": "ffn_gate",
        "feed_forward.w3": "ffn_up", "feed_forward.w2": "ffn_down",
        "conv.conv": "shortconv.conv", "conv.in_proj": "shortconv.in_proj",
        "conv.out_proj": "shortconv.out_proj", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.out_proj": "attn_output", "self_attn.q_layernorm": "attn_q_norm",
        "self_attn.k_layernorm": "attn_k_norm",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        stem, kind = name.removeprefix("model.").rsplit(".", 1)
        if stem in ("embed_tokens", "embedding_norm"):
            writer.add_tensor("token_embd.weight" if stem == "embed_tokens" else "token_embd_norm.weight", values)
        elif stem.startswith("layers."):
            _, number, rest = stem.split(".", 2)
            squeezed = values.squeeze() if rest == "conv.conv" else values
            writer.add_tensor(f"blk.{number}.{names[rest]}.{kind}", np.ascontiguousarray(squeezed))
    return _ended(writer, path), model
