"""octet computes what transformers computes, on small random models of every family it runs; and what llama.cpp does,
on the GGUF files of the same models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from helpers.gguf_of import write_gguf

from hetero.workers.engines.base import Row
from hetero.workers.engines.llama_cpp.engine import LlamaEngine, LlamaSettings
from hetero.workers.engines.octet.engine import OctetEngine, OctetSettings
from hetero.workers.engines.octet.library import why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

VOCABULARY, CONTEXT, PROMPT = 320, 256, 96
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 192, "intermediate_size": 160, "num_hidden_layers": 8,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "head_dim": 32,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 10000.0,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "short_factor": [1.0 + n / 8 for n in range(16)],
    "long_factor": [1.0 + n / 2 for n in range(16)], "rope_theta": 10000.0,
}  # fmt: skip
MODELS = {
    "llama": ("Llama", {}),
    "llama linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "llama llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "qwen2 yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "mistral window": ("Mistral", {"sliding_window": 40}),
    "smollm3": ("SmolLM3", {"tie_word_embeddings": True}),
    "granite": (
        "Granite",
        {
            "attention_multiplier": 0.05, "embedding_multiplier": 3.0, "residual_multiplier": 0.4,
            "logits_scaling": 2.0,
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 50}),
    "phi3 long": ("Phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 64}),
    "gemma2": ("Gemma2", {"sliding_window": 30, "query_pre_attn_scalar": 20, "hidden_activation": "gelu_pytorch_tanh"}),
    "gemma3": ("Gemma3Text", {"sliding_window": 30, "query_pre_attn_scalar": 20}),
    "mixtral": ("Mixtral", {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2moe": (
        "Qwen2Moe",
        {
            "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 96,
        },
    ),
    "qwen3moe": (
        "Qwen3Moe",
        {"num_experts": 12, "num_experts_per_tok": 4, "moe_intermediate_size": 64, "norm_topk_prob": True},
    ),
    "gpt-oss": ("GptOss", {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 30}),
    "gemma2 of its head's scale": ("Gemma2", {"sliding_window": 30, "query_pre_attn_scalar": 32}),
    "gemma3 of its head's scale": ("Gemma3Text", {"sliding_window": 30, "query_pre_attn_scalar": 32}),
}  # fmt: skip


MIXED = ("mixtral", "qwen2moe", "qwen3moe", "gpt-oss")  # which octet reads from GGUF files only
ELSEWHERE = {  # where llama.cpp computes something else than the model's own code
    "mistral window": "llama.cpp has no window there",
    "phi3": "llama.cpp has no window there",
    "gemma2": "llama.cpp's scale of attention is the head's",
    "gemma3": "llama.cpp's scale of attention is the head's",
}


def model_of(case: str) -> torch.nn.Module:
    """Random weights that are not small, so that all of it matters."""
    name, more = MODELS[case]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **more})
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias") or "norm" in key:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(2.8)
    return model


@pytest.fixture(scope="module", params=MODELS)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = model_of(request.param)
    model.save_pretrained(folder)
    return request.param, model, folder


def tokens(count: int) -> list[int]:
    return np.random.default_rng(0).integers(3, VOCABULARY, count).tolist()


def octet(path: Path, prompt: list[int], path_of: list[int]) -> np.ndarray:
    """Logits after the prompt and after each token of a chain, in windows of 3 with a wrong branch each."""
    made = OctetEngine(path, OctetSettings(threads=2, context=CONTEXT, sequences=2, chunk=64))
    for first in range(0, len(prompt), 64):
        outcome = made.prefill(1, prompt[first : first + 64])
    found, node, free = [outcome.logits(0).copy()], 0, 1
    for first in range(0, len(path_of), 3):
        rows = [Row(1, free, node, 7)]
        for n, token in enumerate(path_of[first : first + 3]):
            rows.append(Row(1, free + n + 1, node if n == 0 else free + n, token))
        outcome = made.extend(rows)
        found += [outcome.logits(n).copy() for n in range(1, len(rows))]
        node, free = rows[-1].node, free + 10
        made.commit(1, node)
    made.shutdown()
    return np.array(found)


def alike(found: np.ndarray, wanted: np.ndarray) -> None:
    """int8 costs 0.0003 to 0.001 of the correlation; a window that is one off 0.005 and more. (Where two experts are
    as good as each other, int8 may take the other one: then single rows differ.)"""
    assert wanted.std(axis=1).min() > 0.1  # or all would be alike
    unlike = [1 - np.corrcoef(got, want)[0, 1] for got, want in zip(found, wanted, strict=True)]
    assert np.median(unlike) < 0.0015 and np.mean(unlike) < 0.01, unlike
    assert abs(np.linalg.norm(found) / np.linalg.norm(wanted) - 1) < 0.01  # scales, too


def test_what_transformers_computes(case, tmp_path):
    name, model, folder = case
    if name in MIXED:
        folder = write_gguf(model, tmp_path / "model.gguf")
    prompt, chain = tokens(PROMPT), tokens(PROMPT + 24)[PROMPT:]
    with torch.no_grad():
        wanted = model(torch.tensor([prompt + chain])).logits[0, PROMPT - 1 :].float().numpy()
    alike(octet(folder, prompt, chain), wanted)


def test_what_llama_cpp_computes(case, tmp_path):
    name, model, _ = case
    if name in ELSEWHERE:
        pytest.skip(ELSEWHERE[name])
    file = write_gguf(model, tmp_path / "model.gguf")
    prompt, chain = tokens(PROMPT), tokens(PROMPT + 24)[PROMPT:]
    theirs = LlamaEngine(file, LlamaSettings(threads=1, context=CONTEXT, sequences=1, chunk=64))
    for first in range(0, PROMPT, 64):
        outcome = theirs.prefill(1, prompt[first : first + 64])
    wanted = [outcome.logits(0).copy()]
    for n, token in enumerate(chain):
        wanted.append(theirs.extend([Row(1, n + 1, n, token)]).logits(0).copy())
        theirs.commit(1, n + 1)
    theirs.shutdown()
    alike(octet(file, prompt, chain), np.array(wanted))
