"""HTTP itself as clients and pages meet it: origins, methods, codings, kept connections, headers."""

from __future__ import annotations

import gzip
import http.client
import json
import time

import httpx
import pytest
from helpers.running_server import RunningServer

HI = [{"role": "user", "content": "hi"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def stack():
    made = RunningServer(strategy="serial", port=0, cors_origin="https://chat.example.org")
    yield made
    made.settled()
    made.close()


def ask(stack: RunningServer, route: str = CHAT, **fields: object) -> httpx.Response:
    prompt = {"messages": HI} if route == CHAT else {"prompt": "a b"}
    return httpx.post(stack.url + route, json={"max_tokens": 6, **prompt, **fields}, timeout=120)


def test_doors_and_headers(stack):
    pages = {"Origin": "http://localhost:3000", "Access-Control-Request-Headers": "authorization,x-api-key"}
    found = httpx.request("OPTIONS", stack.url + CHAT, headers={**pages, "Access-Control-Request-Method": "POST"})
    assert found.status_code == 200 and found.headers["access-control-allow-origin"] == pages["Origin"]
    assert "authorization" in found.headers["access-control-allow-headers"]
    for origin, status in (("https://chat.example.org", 200), ("https://evil.example", 403), ("null", 403)):
        found = httpx.post(stack.url + TEXT, json={"prompt": "x", "max_tokens": 1}, headers={"Origin": origin})
        assert found.status_code == status
        assert found.headers.get("access-control-allow-origin") == (origin if status == 200 else None)
    assert (
        httpx.post(stack.url + TEXT, json={"prompt": "x", "max_tokens": 1}, headers={"Origin": stack.url}).status_code
        == 200
    )
    head = httpx.head(f"{stack.url}/health")
    assert head.status_code == 200 and head.content == b""
    assert httpx.get(f"{stack.url}/v1/models/").json()["data"][0]["id"] == "builtin"
    wrong = httpx.get(stack.url + CHAT)
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST" and "POST" in wrong.json()["error"]["message"]
    assert "no route GET /v2" in httpx.get(f"{stack.url}/v2").json()["error"]["message"]
    assert httpx.get(f"{stack.url}/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert len(httpx.get(f"{stack.url}/health", headers={"x-request-id": "no\tgood"}).headers["x-request-id"]) == 32
    stream = ask(stack, stream=True)
    assert stream.headers["x-accel-buffering"] == "no" and stream.headers["cache-control"] == "no-cache"
    assert ask(stack).json()["system_fingerprint"].startswith("hetero-")


def test_gzip_bodies(stack):
    body = json.dumps({"prompt": "a b", "max_tokens": 1}).encode()
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    assert httpx.post(stack.url + TEXT, content=gzip.compress(body), headers=headers).status_code == 200
    bomb = httpx.post(stack.url + TEXT, content=gzip.compress(b" " * (64 << 20)), headers=headers)
    assert bomb.status_code == 413 and "--max-body" in bomb.json()["error"]["message"]
    for content, coding in ((b"not gzip", "gzip"), (gzip.compress(body)[:-9], "gzip"), (body, "br")):
        found = httpx.post(stack.url + TEXT, content=content, headers={**headers, "content-encoding": coding})
        assert found.status_code in (400, 415) and "content-encoding" in found.json()["error"]["message"]


def test_a_connection_is_kept(stack):
    host = stack.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=20)
    for wait in (0.0, 6.5):
        time.sleep(wait)
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b'{"status":"ok"}'
    connection.close()


def test_a_prompt_beyond_the_context(stack):
    for route, fields in (
        (TEXT, {"prompt": "word " * 3000}),
        (CHAT, {"messages": [{"role": "user", "content": "word " * 3000}]}),
    ):
        error = ask(stack, route, **fields).json()["error"]
        assert (
            error["code"] == "context_length_exceeded" and "maximum context length is 2048 tokens" in error["message"]
        )


def test_headers_hold_whatever_schemas_are_called(stack):
    odd = {"type": "object", "properties": {"a": {"": {}, "$ref": "x", "not": {}}}}
    tool = {"type": "function", "function": {"name": " \u6a21\n ", "parameters": odd}}
    assert ask(stack, tools=[tool], **{"\u6a21": 1, " ": 2, ",": 3}).status_code == 200


def test_what_is_nested_too_deeply_is_told(stack):
    deep: object = 1
    for _ in range(900):
        deep = [deep]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"enum": deep}}}
    for route, body in (
        ("/v1/responses", {"input": "hi", "metadata": {"a": deep}}),
        (CHAT, {"messages": HI, "tools": [tool]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "tool_use", "input": deep}]}]}),
    ):
        found = httpx.post(stack.url + route, json=body, timeout=60)
        assert found.status_code == 400 and "nested" in found.text
