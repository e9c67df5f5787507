"""Requests made up from our own OpenAPI document: whatever comes, the answer is one of ours and never a 500."""

from __future__ import annotations

from collections import Counter

import httpx
import pytest
import schemathesis
from helpers.running_server import RunningServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

pytestmark = pytest.mark.long

PATHS = {
    "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
    "/v1/models", "/v1/models/{name}", "/v1/embeddings", "/health", "/plan", "/metrics", "/tokenize", "/detokenize",
    "/apply-template", "/props", "/slots", "/completion", "/api/tags", "/api/chat", "/api/generate", "/api/show",
    "/api/version",
}  # fmt: skip


@pytest.fixture(scope="module")
def stack():
    made = RunningServer(strategy="serial", port=0, timeout=20, context=256)
    yield made
    made.settled()
    made.close()


def test_no_request_makes_an_internal_error(stack):
    asked: Counter[tuple[str, int]] = Counter()
    document = schemathesis.openapi.from_url(f"{stack.url}/openapi.json")
    for found in document.get_all_operations():
        operation = found.ok()

        modes = [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if operation.body else [])]

        @given(case=st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes]))
        @settings(
            max_examples=12 if "completion" in operation.path else 6,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
        def probe(case):
            answer = case.call(timeout=60)
            asked[case.path, answer.status_code] += 1
            if answer.status_code != 501 or "embed" not in case.path:  # those are not to be had here, and say so
                case.validate_response(answer, checks=[not_a_server_error])
            if answer.status_code >= 400 and "json" in answer.headers.get("content-type", ""):
                error = answer.json()["error"]  # Ollama's clients want the words alone
                assert error if case.path.startswith("/api/") else error["message"] and error["type"]

        probe()
    assert {path for path, _ in asked} >= PATHS
    assert asked["/v1/completions", 200] > 0 < asked["/v1/completions", 400]  # not all of it was refused


def test_the_document_names_routes_and_fields(stack):
    found = httpx.get(f"{stack.url}/openapi.json").json()
    assert set(found["paths"]) >= PATHS
    fields = found["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "tools", "response_format", "logit_bias", "n", "stop", "top_logprobs"} <= set(fields)
