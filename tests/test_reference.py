"""Against plain transformers: greedy text of the float32 target, token for token, with every strategy."""

from __future__ import annotations

import pytest
import torch
import transformers
from pair import DRAFTER, TARGET
from wiring import Client, opening, until, workers

from workers.spec import WorkerSpec
from workers.strategy import NAMES
from workers.tokenizer import GgufTokenizer

PROMPTS = [
    f"{head}{body}"
    for head in ("import os\n", "class A:\n    ", "def f(x):\n    ", "# Test\n", "x = [", "from typing import Any\n")
    for body in ("", "return ", "for i in range(", "    def __init__(self", "if __name__")
]
LENGTH = 128


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


@pytest.mark.parametrize("plan", list(NAMES))
def test_greedy_equals_transformers_generate(reference, plan):
    assert len(reference) == 30
    tokenizer = GgufTokenizer(TARGET)
    common = {"strategy": plan, "gamma": 5, "context": 512}
    target = WorkerSpec("target", str(TARGET), "torch", cores=[0], **common)
    drafter = None if plan == "off" else WorkerSpec("drafter", str(DRAFTER), "llama_cpp", cores=[0], **common)
    with workers(target, drafter) as (verifier, *others):
        client = Client(verifier.status()["endpoint"])
        if drafter:
            until(lambda: verifier._machine._partner.peer is not None)
        asked = [opening(n + 1, tokenizer.encode(prompt), LENGTH, 0.0) for n, prompt in enumerate(PROMPTS)]
        answers = client.ask(*asked)
        client.close()
        if plan == "mirror":  # the torch engine's early exit was asked, and its branches used
            assert others[0]._machine.landings["hinted"] > 50
    assert [answers[o.seq][0] for o in asked] == reference
    if drafter:
        assert sum(answers[o.seq][2].stats.draft_n_accepted for o in asked) > 500
