"""A drafter made for a shorter context than its target's still drafts, and well, when the text is longer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.builtin_pair import PROMPTS
from helpers.running_server import RunningServer
from helpers.streams import from_drafter

from hetero.models import find_model


@pytest.mark.long
def test_it_drafts_from_the_last_tokens(monkeypatch):
    def found(path: str, role: str, of=None):
        model = find_model(path, role)
        return replace(model, metadata=replace(model.metadata, context=192)) if role == "drafter" else model

    monkeypatch.setattr("hetero.planning.planner.find_model", found)
    stack = RunningServer(strategy="serial", lookup=False, port=0)
    try:
        assert stack.plan.drafter.spec.context == 192 < stack.plan.target.spec.context
        prompt = (PROMPTS[0] * 40)[:3000]
        told = stack.complete(prompt, max_tokens=250, seed=3, temperature=0)
        plain = stack.complete(prompt, max_tokens=250, seed=3, temperature=0, speculation=False)
        assert told["usage"]["prompt_tokens"] > 400 and told["choices"] == plain["choices"]
        assert from_drafter(told["timings"]) > 60 and told["timings"]["speculation"] == "on"
        stack.settled()
    finally:
        stack.close()
