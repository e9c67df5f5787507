"""Transformers directories of several families: our attention and cache against the model's own forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from helpers.builtin_pair import TARGET

from hetero.errors import ModelError
from hetero.models import find_model
from hetero.workers.engines.base import Row
from hetero.workers.engines.torch.engine import TorchEngine, TorchSettings
from hetero.workers.errors import Unsupported
from hetero.workers.models.model import vocabulary_difference
from hetero.workers.models.tokenizer import GgufTokenizer, load_tokenizer

SMALL = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
FAMILIES = {
    "llama": transformers.LlamaConfig(**SMALL),
    "qwen2": transformers.Qwen2Config(**SMALL),
    "qwen3": transformers.Qwen3Config(**SMALL, head_dim=32),
    "mistral with a sliding window": transformers.MistralConfig(**SMALL, sliding_window=12),
}


@pytest.fixture(params=FAMILIES)
def saved(request, tmp_path):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[request.param]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # random weights are too tame to show a mistake
    model.save_pretrained(tmp_path)
    return tmp_path, model


def test_trees_equal_the_models_own_forward(saved):
    path, model = saved
    engine = TorchEngine(path, TorchSettings(sequences=2, context=128))
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 300, 40).tolist()
    other = rng.integers(0, 300, 9).tolist()

    def plain(tokens: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([tokens])).logits[0, -1].numpy()

    def same(got: np.ndarray, tokens: list[int]) -> None:
        want = plain(tokens)
        assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
        assert np.ptp(want) > 0.1

    same(engine.prefill(1, prompt[:25]).logits(0), prompt[:25])
    same(engine.prefill(1, prompt[25:]).logits(0), prompt)
    engine.prefill(2, other)
    rows = [
        Row(1, 1, 0, 5),
        Row(2, 1, 0, 6),
        Row(1, 2, 1, 7),
        Row(1, 3, 1, 8),
        Row(1, 4, 0, 9),
        Row(1, 5, 3, 10),
    ]
    paths = [[*prompt, 5], [*other, 6], [*prompt, 5, 7], [*prompt, 5, 8], [*prompt, 9], [*prompt, 5, 8, 10]]
    outcome = engine.extend(rows)
    for n, tokens in enumerate(paths):
        same(outcome.logits(n), tokens)
    engine.commit(1, 3, frozenset({5}))
    outcome = engine.extend([Row(1, 6, 5, 11), Row(1, 7, 3, 12)])
    same(outcome.logits(0), [*prompt, 5, 8, 10, 11])
    same(outcome.logits(1), [*prompt, 5, 8, 12])
    engine.shutdown()


def test_a_directory_is_a_model(tmp_path):
    transformers.AutoTokenizer.from_pretrained(TARGET.parent, gguf_file=TARGET.name).save_pretrained(tmp_path)
    config = transformers.LlamaConfig(**{**SMALL, "vocab_size": 4096}, eos_token_id=2)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), GgufTokenizer(TARGET)
    text = "def naïve(x):\n\treturn '🙂'"
    assert ours.encode(text, special=False) == theirs.encode(text, special=False)
    assert ours.vocabulary.pieces[3:] == theirs.vocabulary.pieces[3:]  # but for control tokens
    model = find_model(str(tmp_path), "target")
    assert (model.context, model.shape.layers, model.shape.kv_heads, model.shape.vocabulary) == (256, 3, 2, 4096)
    assert vocabulary_difference(model, find_model("builtin", "drafter")) == ""


def test_weights_that_are_not_safetensors_and_recurrent_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ModelError, match="safetensors"):
        TorchEngine(tmp_path, TorchSettings())
    mamba = transformers.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)
    transformers.MambaForCausalLM(mamba).save_pretrained(tmp_path)
    with pytest.raises((Unsupported, ModelError)):
        TorchEngine(tmp_path, TorchSettings())
