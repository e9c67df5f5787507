"""What the server takes on, who may ask, and what it tells of itself: the whole product with small limits."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import threading
import time
from dataclasses import replace

import httpx
import openai
import pytest
from helpers.builtin_pair import NO_END
from helpers.running_server import RunningServer
from prometheus_client.parser import text_string_to_metric_families

from hetero.config import api_keys, check_certificate, make_config
from hetero.errors import Busy, ConfigError, RequestError
from hetero.gateway.admission import Admission, AdmissionLimits
from hetero.serve import options_of

KEY = {"Authorization": "Bearer sesame"}
LONG = {"prompt": "x = ", "max_tokens": 1500, "temperature": 0.8, "stream": True, "logit_bias": NO_END}


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("sesame\nother-key\n")
    made = RunningServer(
        strategy="serial", port=0, parallel=1, max_waiting=2, max_pending_tokens=4000, max_body=0.25,
        api_key_file=str(keys),
    )  # fmt: skip
    yield made
    made.close()


def post(stack, body=None, headers=KEY, **more):
    body = {"prompt": "x = ", "max_tokens": 4, "logit_bias": NO_END} if body is None else body
    return httpx.post(f"{stack.url}/v1/completions", json=body, headers=headers, timeout=240, **more)


def metrics(stack) -> dict[str, float]:
    found = httpx.get(f"{stack.url}/metrics", headers=KEY, timeout=30)
    assert found.status_code == 200, found.text
    samples = [s for family in text_string_to_metric_families(found.text) for s in family.samples]
    return {s.name + "".join(f" {k}={v}" for k, v in sorted(s.labels.items())): s.value for s in samples}


def test_every_route_but_health_wants_a_key(stack):
    for path in ("/v1/models", "/metrics", "/", "/openapi.json", "/v1/completions"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic %%%"}, {"Authorization": "x"}):
            found = httpx.get(f"{stack.url}{path}", headers=headers)
            assert found.status_code == 401 and found.json()["error"]["type"] == "authentication_error", path
    assert httpx.get(f"{stack.url}/health").status_code == 200
    assert post(stack).status_code == 200
    basic = base64.b64encode(b"me:other-key").decode()  # what a browser sends
    assert post(stack, headers={"Authorization": f"Basic {basic}"}).status_code == 200
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="sesame")
    assert [model.id for model in client.models.list()] == ["builtin"]
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{stack.url}/v1", api_key="wrong").models.list()


def test_beyond_the_limits_it_is_429_with_retry_after_and_nothing_is_lost(stack):
    lines: list[list[str]] = [[], [], []]

    def stream(n: int) -> None:
        body = {**LONG, "max_tokens": 800}
        with httpx.stream("POST", f"{stack.url}/v1/completions", json=body, headers=KEY, timeout=240) as answer:
            lines[n] += [line for line in answer.iter_lines() if line]

    threads = [threading.Thread(target=stream, args=(n,)) for n in range(3)]  # one runs, two wait
    for thread in threads:
        thread.start()
    end = time.monotonic() + 20
    while metrics(stack)["hetero:num_sequences_admitted"] < 3:
        assert time.monotonic() < end
    refused = post(stack)
    assert refused.status_code == 429 and refused.headers["retry-after"] == "2"
    assert "--max-waiting" in refused.json()["error"]["message"]
    for thread in threads:
        thread.join(240)
    assert all(found[-1] == "data: [DONE]" for found in lines)
    assert post(stack).status_code == 200
    for param, body in (("n", {"n": 4}), ("max_tokens", {"n": 3, "max_tokens": 1999})):  # these never fit
        never = post(stack, {"prompt": "x", **body})
        assert never.status_code == 400 and never.json()["error"]["param"] == param
    found = metrics(stack)
    assert found["hetero:requests_refused_total"] == 1 and found["hetero:num_sequences_admitted"] == 0
    stack.settled()


def test_places_are_taken_when_they_are_found_free():
    admission = Admission(AdmissionLimits(sequences=3, tokens=100))
    one = admission.reserve(2, 60)
    for sequences, tokens, flag in ((2, 1, "--max-waiting"), (1, 50, "--max-pending-tokens")):
        with pytest.raises(Busy, match=flag):
            admission.reserve(sequences, tokens)
    for sequences, tokens, param in ((4, 1, "n"), (1, 101, "max_tokens")):
        with pytest.raises(RequestError) as never:
            admission.reserve(sequences, tokens)
        assert never.value.param == param
    two = admission.reserve(1, 40)
    for taken in (one, one, two):  # giving back twice gives nothing twice
        taken.release()
    assert (admission.sequences, admission.tokens, admission.refused) == (0, 0, 2)


def test_large_bodies_are_refused_with_and_without_a_length(stack):
    big = json.dumps({"prompt": "x" * 300_000}).encode()
    headers = {**KEY, "content-type": "application/json"}
    for content in (big, iter([big[:1000], big[1000:]])):
        found = httpx.post(f"{stack.url}/v1/completions", content=content, headers=headers, timeout=30)
        assert found.status_code == 413 and "--max-body" in found.json()["error"]["message"]


def test_a_request_that_takes_too_long_ends_by_name(stack, monkeypatch):
    options = stack.served.options
    short = replace(options, limits=replace(options.limits, seconds=4.0))
    monkeypatch.setattr(stack.served, "options", short)  # --timeout 4, for this test
    assert options_of(make_config({"timeout": 4}), stack.plan).limits.seconds == 4
    whole = {**LONG, "n": 2, "stream": False}  # the second waits for the first, whose place is the only one
    # The engine is too quick for its own time limit: the verifier stands still meanwhile.
    pid = stack.status("target").pid
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        found = post(stack, whole)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert found.status_code == 504 and 3 < time.monotonic() - began < 30
    assert found.json()["error"]["code"] == "request_timeout" and "--timeout" in found.json()["error"]["message"]
    stack.settled()


@pytest.mark.long
def test_a_reader_that_stops_reading_stalls_nobody(stack):
    host, port = stack.url.removeprefix("http://").split(":")
    body = json.dumps({**LONG, "max_tokens": 1200, "logprobs": 20}).encode()
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        lazy.connect((host, int(port)))
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sesame\r\nContent-Length: {len(body)}"
        )
        lazy.sendall(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + body)
        assert lazy.recv(12) == b"HTTP/1.1 200"
        for _ in range(3):
            assert post(stack).json()["usage"]["completion_tokens"] == 4
        stack_idle = stack.status("target")
        assert stack_idle.active <= 1
    end = time.monotonic() + 120
    while metrics(stack)["hetero:num_sequences_admitted"]:
        assert time.monotonic() < end
        time.sleep(0.1)
    stack.settled()


def test_metrics_count_what_happened(stack):
    before = metrics(stack)
    answer = post(
        stack, {"prompt": "import os\n" * 20, "max_tokens": 60, "temperature": 0.5, "seed": 2, "logit_bias": NO_END}
    ).json()
    again = post(
        stack, {"prompt": "import os\n" * 20, "max_tokens": 60, "temperature": 0.5, "seed": 2, "logit_bias": NO_END}
    ).json()
    after = metrics(stack)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    both = [answer["timings"], again["timings"]]
    assert grown("hetero:spec_decode_num_draft_tokens_total") == sum(t["draft_n"] for t in both) > 0
    accepted = sum(t["draft_n_accepted"] for t in both)
    assert grown("hetero:spec_decode_num_accepted_tokens_total") == accepted > 0
    places = [grown(name) for name in after if name.startswith("hetero:spec_decode_num_accepted_tokens_per_pos_total")]
    for name, field in (("draft_tokens", "n"), ("accepted_draft_tokens", "accepted")):
        by_source = {k: grown(k) for k in after if k.startswith(f"hetero:{name}_total")}
        assert sum(by_source.values()) == sum(one[field] for t in both for one in t["draft_sources"].values())
        assert any(key.endswith(" source=lookup") for key in by_source)
    assert sum(places) == accepted and places == sorted(places, reverse=True)
    assert 0 < grown("hetero:spec_decode_num_drafts_total") <= grown("hetero:target_forwards_total")
    assert grown("hetero:generation_tokens_total") == 120
    assert grown("hetero:prompt_tokens_cached_total") == again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert grown("hetero:time_to_first_token_seconds_count") == 2
    assert 100 <= grown("hetero:inter_token_latency_seconds_count") <= 118
    assert grown("hetero:sequences_total reason=length") == 2
    assert after["hetero:cached_prefixes role=target"] > 0 and after["hetero:cached_prefixes role=drafter"] > 0
    assert after["hetero:worker_restarts_total role=target"] == 0
    assert after["hetero:dropped_frames_total role=gateway"] == 0
    assert after["hetero:worker_memory_bytes role=drafter"] > 1 << 20


def test_a_server_that_others_can_reach_needs_a_key(tmp_path):
    assert api_keys(make_config({"host": "127.0.0.1"})) == () == api_keys(make_config({"host": "localhost"}))
    assert api_keys(make_config({"host": "0.0.0.0", "api_key": "k"})) == ("k",)
    for host in ("0.0.0.0", "::", "192.168.1.5", "box.lan"):
        with pytest.raises(ConfigError, match="--api-key"):
            api_keys(make_config({"host": host}))
    empty = tmp_path / "empty"
    empty.write_text("\n")
    for file in (empty, tmp_path / "missing"):
        with pytest.raises(ConfigError, match="api_key_file"):
            api_keys(make_config({"api_key_file": str(file)}))
    with pytest.raises(ConfigError, match="give both"):
        check_certificate(make_config({"ssl_cert_file": "x.pem"}))
    with pytest.raises(ConfigError, match="cannot be used"):
        check_certificate(make_config({"ssl_cert_file": str(empty), "ssl_key_file": str(empty)}))
