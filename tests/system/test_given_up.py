"""A target that is given up: requests fail at once. A server of its own, which this ends."""

from __future__ import annotations

import json
import threading

import httpx
from helpers.builtin_pair import NO_END
from helpers.running_server import RunningServer


def test_a_target_that_is_given_up_fails_requests_at_once():
    server = RunningServer(draft="none", port=0)
    try:
        failure, begun = [], threading.Event()

        def one() -> None:
            body = {"prompt": "x", "max_tokens": 1900, "stream": True, "logit_bias": NO_END}
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=240) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: {"):
                        begun.set()
                        if "error" in (chunk := json.loads(line[6:])):
                            failure.append(chunk["error"])

        thread = threading.Thread(target=one)
        thread.start()
        assert begun.wait(60)
        server.session.coordinator.give_up("target", "scripted")
        thread.join(60)
        assert not thread.is_alive()
        assert failure and failure[0]["code"] == "unavailable" and "scripted" in failure[0]["message"]
        found = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"})
        assert found.status_code == 503 and "scripted" in found.json()["error"]["message"]
        assert httpx.get(f"{server.url}/health").status_code == 503
    finally:
        server.close()
