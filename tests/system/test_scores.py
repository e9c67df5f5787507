"""lm-eval's scores by the server are those of transformers; in a file of its own, as its server's end is Ray's."""

from __future__ import annotations

import pytest
from helpers.clients import checkpoint, environment, talk
from helpers.running_server import RunningServer

pytestmark = [pytest.mark.clients, pytest.mark.timeout(1800)]


def test_scores_are_those_of_transformers(tmp_path):
    """Multiple choice: every choice's logprob, and the accuracy."""
    there = str(checkpoint(tmp_path))
    stack = RunningServer(target=there, draft="none", target_engine="torch", port=0)
    try:
        talk(environment("requirements"), "scores", stack.url, HETERO_TOKENIZER=there, HETERO_REFERENCE=there)
    finally:
        stack.close()
