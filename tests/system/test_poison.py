"""A model at which verifiers die: what they say of it is told, a request is not replayed for ever, nothing hangs."""

from __future__ import annotations

import httpx
import pytest
from helpers.builtin_pair import TARGET
from helpers.odd_gguf import rewritten
from helpers.running_server import RunningServer
from helpers.served_host import until

from hetero.errors import ClusterError


def test_a_load_that_kills_its_process_is_given_up_with_its_last_words(tmp_path):
    odd = rewritten(TARGET, tmp_path / "odd.gguf", llama__expert_count=2)
    with pytest.raises(ClusterError, match=r"its process died \(llama-model.cpp:\d+: GGML_ASSERT"):
        RunningServer(target=str(odd), draft="none", port=0)


@pytest.mark.long
def test_a_request_at_which_verifiers_die_fails_and_the_server_lives(tmp_path):
    odd = rewritten(TARGET, tmp_path / "odd.gguf", llama__attention__layer_norm_rms_epsilon=-1.0)
    server = RunningServer(target=str(odd), draft="none", port=0)
    try:
        found = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x", "max_tokens": 4}, timeout=200)
        assert found.status_code == 500 and "ended 3 times at this request" in found.json()["error"]["message"]
        assert any("GGML_ASSERT(eps >= 0.0f) failed" in event for event in server.events)
        assert server.session.failure is None and server.session.verifiers.live == 0
        until(lambda: httpx.get(f"{server.url}/health").status_code == 200)  # once the next verifier is there
    finally:
        server.close()
