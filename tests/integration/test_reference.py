"""Against plain transformers: greedy text of the float32 target, token for token, with every strategy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from helpers.builtin_pair import DRAFTER, TARGET
from helpers.real_workers import Client, opening, until, workers

from hetero.workers.decoding.policy.strategy import NAMES
from hetero.workers.engines.base import Row
from hetero.workers.engines.torch.engine import TorchEngine, TorchSettings
from hetero.workers.models.tokenizer import GgufTokenizer
from hetero.workers.runtime.spec import WorkerSpec

PROMPTS = [
    f"{head}{body}"
    for head in ("import os\n", "class A:\n    ", "x = [")
    for body in ("", "return ", "for i in range(", "if __name__")
]
LENGTH = 64


@pytest.fixture(scope="module")
def reference() -> list[list[int]]:
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        TARGET.parent, gguf_file=TARGET.name, dtype=torch.float32
    ).eval()
    tokenizer = GgufTokenizer(TARGET)
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt)])
        output = model.generate(ids, max_new_tokens=LENGTH, do_sample=False, pad_token_id=0)
        found.append(output[0, ids.shape[1] :].tolist())
    return found


def test_the_tokenizers_read_the_same_tokens():
    theirs = transformers.AutoTokenizer.from_pretrained(TARGET.parent, gguf_file=TARGET.name)
    ours = GgufTokenizer(TARGET)
    for prompt in (*PROMPTS, "naïve café 漢字 🙂\n\t x"):
        ids = ours.encode(prompt, special=False)
        assert ids == theirs.encode(prompt, add_special_tokens=False)
        assert b"".join(ours.vocabulary.pieces[i] for i in ids).decode() == prompt


@pytest.mark.parametrize(
    "strategy", [name if name == "ahead" else pytest.param(name, marks=pytest.mark.long) for name in NAMES]
)
def test_greedy_equals_transformers_generate(reference, strategy):
    assert len(reference) == 12
    tokenizer = GgufTokenizer(TARGET)
    common = {"strategy": strategy, "gamma": 5, "context": 512}
    target = WorkerSpec("target", str(TARGET), "torch", cores=[0], **common)
    drafter = None if strategy == "off" else WorkerSpec("drafter", str(DRAFTER), "llama_cpp", cores=[0], **common)
    with workers(target, drafter) as (verifier, *others):
        with Client(verifier.status().endpoint) as client:
            if drafter:
                until(lambda: verifier.status().drafters)
            asked = [opening(n + 1, tokenizer.encode(prompt), LENGTH, 0.0) for n, prompt in enumerate(PROMPTS)]
            answers = client.ask(*asked)
        if strategy == "mirror":  # the torch engine's early exit was asked, its branches used
            assert others[0].status().landings["hinted"] > 0
    assert [answers[o.seq][0] for o in asked] == reference
    if drafter:
        assert sum(answers[o.seq][2].stats.draft_n_accepted for o in asked) > 100


def test_the_early_exit_is_the_head_upon_half_the_layers():
    model = transformers.AutoModelForCausalLM.from_pretrained(
        TARGET.parent, gguf_file=TARGET.name, dtype=torch.float32
    ).eval()
    tokens = [5, 17, 300, 42, 7, 99]
    with torch.inference_mode():
        states = model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states
        half = model.lm_head(model.model.norm(states[len(model.model.layers) // 2]))[0].numpy()
    engine = TorchEngine(TARGET, TorchSettings(context=64))
    engine.prefill(1, tokens[:3])
    rows = [Row(1, n, n - 1, token) for n, token in enumerate(tokens[3:], 1)]
    shown = []
    outcome = engine.extend(rows, lambda early: shown.append([early.logits(n).copy() for n in range(3)]))
    assert engine.limits.early_exit and len(shown) == 1
    np.testing.assert_allclose(shown[0], half[3:], atol=2e-4)
    assert np.abs(shown[0][2] - outcome.logits(2)).max() > 0.5  # not the last layer's
    engine.commit(1, 3)
    engine.extend([Row(1, 4, 3, 5)], None)  # without a hint nothing is shown
    assert len(shown) == 1
    engine.shutdown()
