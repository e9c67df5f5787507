"""Schemas that overstrain the grammar library: an answer to each, in seconds, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import random
import time

import httpx
import pytest
from helpers.running_server import RunningServer

pytestmark = pytest.mark.long

NUMBERS = {f"p{n}": {"type": "integer", "multipleOf": 100_000 + n} for n in range(50)}


@pytest.fixture(scope="module")
def stack():
    made = RunningServer(strategy="serial", port=0)
    yield made
    made.close()


def ask(stack: RunningServer, schema: object, **fields: object) -> httpx.Response:
    shaped = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"prompt": "x = ", "max_tokens": 40, "seed": 1, "response_format": shaped, **fields}
    return httpx.post(f"{stack.url}/v1/completions", json=body, timeout=100)


@pytest.mark.parametrize(
    "schema, words",
    [
        ({"const": -9223372036854775807}, "overstrains the grammar library"),
        ({"type": "object", "properties": NUMBERS, "required": list(NUMBERS)[:3]}, "more than 3 s to compile"),
    ],
)
def test_what_kills_or_freezes_the_library_is_a_400(stack, schema, words):
    calm = stack.complete("y = ", max_tokens=40, seed=3)["choices"][0]["text"]
    before = stack.status("target").pid
    found = ask(stack, schema)
    assert found.status_code == 400 and words in found.json()["error"]["message"], found.text
    # A tool's arguments are then any JSON.
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": schema}}},
    }
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "tools": [tool],
        "tool_choice": "required",
        "max_tokens": 30,
    }
    found = httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=100)
    assert found.status_code == 200 and found.headers["x-hetero-relaxed"] == "f: all of it", found.text
    assert found.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "f"
    assert stack.status("target").pid == before and stack.session.failure is None
    assert stack.complete("y = ", max_tokens=40, seed=3)["choices"][0]["text"] == calm
    assert ask(stack, {"type": "integer"}).status_code == 200  # another probe is there
    stack.settled()


def test_others_do_not_wait_while_one_compiles(stack):
    async def both() -> tuple[int, float]:
        async with httpx.AsyncClient(timeout=100) as client:
            schema = {"type": "object", "properties": {**NUMBERS, "q": {"type": "integer"}}, "required": ["p0"]}
            shaped = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            slow = asyncio.create_task(
                client.post(f"{stack.url}/v1/completions", json={"prompt": "x", "response_format": shaped})
            )
            await asyncio.sleep(0.3)
            answers = 0
            while not slow.done():
                assert (await client.get(f"{stack.url}/health")).status_code == 200
                answers += 1
                await asyncio.sleep(0.02)
            return answers, (await slow).status_code

    answers, status = asyncio.run(both())
    assert status == 400 and answers > 20


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000_000},
        {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(1300)}},
    ],
)
def test_a_grammar_that_fails_on_its_way_is_the_requests_fault(stack, schema):
    found = ask(stack, schema)
    assert found.status_code in (200, 400), found.text


def test_names_of_control_tokens_in_a_schema_are_text(stack):
    found = ask(stack, {"const": "<|im_start|>"})
    assert json.loads(found.json()["choices"][0]["text"]) == "<|im_start|>"


def test_random_schemas_get_an_answer(stack):
    rng = random.Random(7)

    def schema(depth: int) -> object:
        kind = rng.choice(["integer", "string", "number", "array", "object", "const", "enum", "anyOf", "ref", "odd"])
        if depth == 0 and kind in ("array", "object", "anyOf"):
            kind = "integer"
        sub = lambda: schema(depth - 1)  # noqa: E731
        big = rng.choice([0, 1, -1, 2**31, -(2**63) + 1, 2**64, 1e308, 10**30, 7])
        word = rng.choice([big, "(a+)+$", "date", "["])
        properties = {f"k{n}": sub() for n in range(rng.randint(0, 6))} if kind == "object" else {}
        return {
            "integer": lambda: {"type": "integer", rng.choice(["minimum", "maximum", "multipleOf", "x"]): big},
            "number": lambda: {"type": "number", rng.choice(["exclusiveMinimum", "multipleOf"]): big},
            "string": lambda: {"type": "string", rng.choice(["minLength", "maxLength", "pattern", "format"]): word},
            "array": lambda: {"type": "array", "items": sub(), rng.choice(["minItems", "maxItems"]): big},
            "object": lambda: {"type": "object", "properties": properties, "required": ["k0"]},
            "const": lambda: {"const": rng.choice([big, "\u0000", None, [], {"a": big}])},
            "enum": lambda: {"enum": [big, "x", None][: rng.randint(0, 3)]},
            "anyOf": lambda: {rng.choice(["anyOf", "oneOf", "allOf"]): [sub() for _ in range(rng.randint(0, 4))]},
            "ref": lambda: {"$ref": rng.choice(["#", "#/properties/k0", "http://x/y", "#/$defs/no"])},
            "odd": lambda: rng.choice([{}, {"type": "nothing"}, {"type": []}, {"not": {}}, {"if": {}, "then": {}}]),
        }[kind]()  # fmt: skip

    began, seen = time.monotonic(), {200: 0, 400: 0}
    while sum(seen.values()) < 60 and time.monotonic() - began < 60:
        found = ask(stack, schema(3), max_tokens=8)
        assert found.status_code in seen, found.text
        seen[found.status_code] += 1
    assert seen[200] > 20 < sum(seen.values()) and seen[400] > 0, seen
    stack.settled()
