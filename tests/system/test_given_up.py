"""A target that cannot be kept alive: it is given up, and nobody waits for it. A server of its own, which this ends."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import httpx
from helpers.builtin_pair import NO_END
from helpers.running_server import RunningServer


def test_a_target_that_dies_again_and_again_is_given_up_and_requests_fail_at_once():
    server = RunningServer(draft="none", port=0)
    try:
        failure = []

        def one() -> None:
            body = {"prompt": "x", "max_tokens": 1900, "stream": True, "logit_bias": NO_END}
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=240) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: {") and "error" in (chunk := json.loads(line[6:])):
                        failure.append(chunk["error"])

        thread = threading.Thread(target=one)
        thread.start()
        killed, end = set(), time.monotonic() + 120
        while thread.is_alive():
            assert time.monotonic() < end, server.events
            epoch = server.session.coordinator.statuses["target"].epoch
            if epoch not in killed:
                killed.add(epoch)
                os.kill(server.session.coordinator.statuses["target"].pid, signal.SIGKILL)
            time.sleep(0.05)
        assert len(killed) == 5
        assert failure and failure[0]["code"] == "unavailable" and "ended 5 times" in failure[0]["message"]
        found = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"})
        assert found.status_code == 503 and "ended 5 times" in found.json()["error"]["message"]
        assert httpx.get(f"{server.url}/health").status_code == 503
    finally:
        server.close()
