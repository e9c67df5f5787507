"""Exact mode end to end on the built-in pair: the same text with and without a drafter, alone and in company."""

from __future__ import annotations

import pytest
from helpers.builtin_pair import DRAFTER, PROMPTS, TARGET
from helpers.real_workers import Client, eager, opening, until, workers

from hetero.workers.models.tokenizer import GgufTokenizer
from hetero.workers.runtime.spec import WorkerSpec

LENGTH = 64


def pair(strategy: str, engine: str = "llama_cpp") -> tuple[WorkerSpec, WorkerSpec | None]:
    common = {"strategy": strategy, "gamma": 7, "context": 512}
    target = WorkerSpec("target", str(TARGET), engine, cores=[0], exact=True, **common)
    return target, None if strategy == "off" else WorkerSpec("drafter", str(DRAFTER), "llama_cpp", cores=[0], **common)


def texts(strategy: str, engine: str, together: bool) -> tuple[dict[tuple[int, float], list[int]], int]:
    """Output tokens of each (prompt, temperature), asked four at once or one by one; and accepted drafts."""
    tokenizer = GgufTokenizer(TARGET)
    found, accepted = {}, 0
    with workers(*pair(strategy, engine)) as (verifier, *others), Client(verifier.status().endpoint) as client:
        if others:
            until(lambda: verifier.status().drafters)
        asked = {}
        for n, prompt in enumerate(PROMPTS):
            for temperature in (0.0, 0.8):
                key = (n, temperature)
                asked[key] = opening(len(asked) + 1, tokenizer.encode(prompt), LENGTH, temperature, seed=n)
        keys = list(asked)
        groups = [keys[:4], keys[4:]] if together else [[key] for key in keys]
        for group in groups:
            answers = client.ask(*[asked[key] for key in group])
            for key in group:
                tokens, _, end = answers[asked[key].seq]
                found[key] = tokens
                accepted += end.stats.draft_n_accepted
    return found, accepted


@pytest.mark.long
@pytest.mark.parametrize("engine", ["llama_cpp", pytest.param("torch", marks=pytest.mark.rare)])
def test_exact_texts_are_equal_with_and_without_a_drafter_alone_and_together(engine, monkeypatch):
    eager(monkeypatch)
    plain, _ = texts("off", engine, together=False)
    assert all(len(tokens) == LENGTH for tokens in plain.values())
    strategies = [
        ("off", True),
        ("serial", False),
        ("pearl", True),
        ("mirror", True),
        ("ahead", False),
        ("ahead", True),
    ]
    if engine == "torch":  # slower, and its books are the same: one of each kind
        strategies = [("serial", False), ("mirror", True), ("ahead", True)]
    for strategy, together in strategies:
        found, accepted = texts(strategy, engine, together)
        assert found == plain, (strategy, together)
        assert accepted > 50 or strategy == "off"
