"""The product as it runs: Ray, ZeroMQ, HTTP, the openai client."""

from __future__ import annotations

import asyncio
import json
import random
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import psutil
import pytest
from helpers.builtin_pair import PROMPTS
from helpers.running_server import RunningServer


@pytest.fixture(scope="module")
def ahead():
    stack = RunningServer(strategy="ahead", port=0)
    yield stack
    stack.close()


def test_openai_client_sync_async_and_streaming(ahead):
    client = openai.OpenAI(base_url=f"{ahead.url}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["builtin"]
    whole = client.completions.create(model="builtin", prompt="import os\n", max_tokens=40, temperature=0.8, seed=5)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 40
    timings = whole.model_extra["timings"]
    assert timings["predicted_n"] == 40 and 0 < timings["target_forwards_n"] <= 40
    stream = client.completions.create(
        model="builtin",
        prompt="import os\n",
        max_tokens=40,
        temperature=0.8,
        seed=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 40
    chat = client.chat.completions.create(
        model="builtin", messages=[{"role": "user", "content": "def f(x):"}], max_completion_tokens=20, seed=1
    )
    assert chat.choices[0].message.role == "assistant" and chat.choices[0].message.content

    async def both() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{ahead.url}/v1", api_key="none") as asynchronous:

            async def one(seed: int) -> str:
                parts = []
                async for chunk in await asynchronous.chat.completions.create(
                    model="builtin",
                    messages=[{"role": "user", "content": "def f(x):"}],
                    max_tokens=20,
                    seed=seed,
                    stream=True,
                ):
                    parts.append(chunk.choices[0].delta.content or "")
                return "".join(parts)

            return list(await asyncio.gather(*[one(seed) for seed in (1, 2, 3)]))

    texts = asyncio.run(both())
    assert texts[0] == chat.choices[0].message.content
    assert len(set(texts)) == 3


def test_workers_get_no_less_of_the_cores_than_other_programs(ahead):
    for role in ("target", "drafter"):
        assert psutil.Process(ahead.status(role).pid).nice() <= psutil.Process().nice()


def test_the_plan_at_work(ahead):
    httpx.post(f"{ahead.url}/v1/completions", json={"prompt": PROMPTS[0], "max_tokens": 24, "seed": 1}, timeout=120)
    plan = httpx.get(f"{ahead.url}/plan", timeout=60).json()
    assert plan["strategy"] == "ahead" and [role["role"] for role in plan["roles"]] == ["target", "drafter"]
    assert all(role["memory"] > 0 and role["device"].startswith("cpu") for role in plan["roles"])
    assert plan["measured"]["rate"] > 0 and plan["measured"]["forward"] and plan["drafters"][0]["drafted"] > 0
    assert plan["foreseen"] == []  # a strategy was named


def test_stop_strings_and_utf8(ahead):
    free = ahead.complete("def f(x):\n", max_tokens=60, seed=9, temperature=0.8)["choices"][0]["text"]
    stop = free[20:24]
    cut = ahead.complete("def f(x):\n", max_tokens=60, seed=9, temperature=0.8, stop=[stop])
    assert cut["choices"][0]["text"] == free[: free.index(stop)]
    assert cut["choices"][0]["finish_reason"] == "stop"
    assert cut["timings"]["draft_n_accepted"] < cut["timings"]["predicted_n"]
    # High temperature makes the model write broken UTF-8: chunks stay valid and add up to the whole.
    asked = {"prompt": "é", "max_tokens": 120, "seed": 4, "temperature": 4.0}
    whole = ahead.complete(**asked)["choices"][0]["text"]
    parts = []
    with httpx.stream("POST", f"{ahead.url}/v1/completions", json={**asked, "stream": True}, timeout=240) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                parts.append(json.loads(line[6:])["choices"][0]["text"])
    assert "".join(parts) == whole


BAD = {
    "temperature": [-2, 101, "warm"],
    "top_p": [1.1, -0.1],
    "min_p": [-0.1, 1.1],
    "top_k": [-2, 1.5, 1 << 40],
    "max_tokens": [-5, 1 << 30, "many"],
    "seed": [1.5, "x"],
    "stop": [["x"] * 65, 5, "y" * 2000, ["y" * 1000] * 9],
    "stream": ["perhaps", 7],
    "stream_options": [5],
    "n": [0, 129, 1.5],
    "logprobs": [21, -2],
    "logit_bias": [{"x": 1}, {"5": 101}, {"999999": 1}, {"-1": 1}],
    "presence_penalty": [2.5],
    "frequency_penalty": [-2.5],
    "echo": ["perhaps"],
    "best_of": [129, "x"],
    "suffix": ["x"],
    "mirostat": [2],
    "dry_multiplier": [0.8],
    "stop_token_ids": [[1 << 40], [999999], 5],
    "min_tokens": [-7],
    "repetition_penalty": [-3],
    "response_format": [
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"schema": {"type": "nope"}}},
    ],
    "grammar": ["root ::= ("],
}


@pytest.mark.parametrize("field", BAD)
def test_what_cannot_be_done_is_named(ahead, field):
    for value in BAD[field]:
        found = httpx.post(f"{ahead.url}/v1/completions", json={"prompt": "x", field: value})
        assert found.status_code == 400, (value, found.text)
        error = found.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["param"] == field or error["message"].startswith(field), error


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(ahead, literal):
    found = httpx.post(f"{ahead.url}/v1/completions", content=f'{{"prompt": "x", "temperature": {literal}}}')
    assert found.status_code == 400 and "not valid JSON" in found.json()["error"]["message"]


def test_requests_beyond_the_context_and_wrong_models_are_refused(ahead):
    found = httpx.post(f"{ahead.url}/v1/completions", json={"prompt": "word " * 4000})
    assert found.status_code == 400 and found.json()["error"]["param"] == "prompt"
    error = found.json()["error"]
    assert error["code"] == "context_length_exceeded" and "maximum context length is 2048 tokens" in error["message"]
    found = httpx.post(f"{ahead.url}/v1/completions", json={"prompt": "x", "model": "gpt-9"})
    assert found.status_code == 200 and found.headers["x-hetero-model"] == found.json()["model"] == "builtin"
    assert httpx.get(f"{ahead.url}/v1/models/gpt-9").status_code == 404
    assert httpx.get(f"{ahead.url}/health").json() == {"status": "ok"}
    for content in ("\ud800", [{"type": "text", "text": "\ud800"}]):
        body = json.dumps({"messages": [{"role": "user", "content": content}]})
        found = httpx.post(
            f"{ahead.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )
        assert found.status_code == 400 and "error" in found.json()
    huge = httpx.post(f"{ahead.url}/v1/completions", json={"prompt": "x" * 3_000_000})
    assert huge.status_code == 400 and huge.json()["error"]["param"] == "prompt"
    form = httpx.post(f"{ahead.url}/v1/completions", content=b'{"prompt": "x"}', headers={"content-type": "text/plain"})
    assert form.status_code == 200  # as curl -d asks
    for body in (b"", b"[", b"[]", b"null", b"\xff"):
        found = httpx.post(f"{ahead.url}/v1/completions", content=body, headers={"content-type": "application/json"})
        assert found.status_code == 400 and "error" in found.json()


def test_more_requests_than_places_all_finish(ahead):
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda n: ahead.complete(PROMPTS[n % 4], max_tokens=30, seed=n), range(12)))
    assert all(answer["usage"]["completion_tokens"] == 30 for answer in found)
    ahead.settled()


def test_fifty_cancellations_leave_nothing(ahead):
    rng = random.Random(0)

    async def one(client: httpx.AsyncClient, n: int) -> int:
        body = {"prompt": PROMPTS[n % 4] * rng.choice([1, 20]), "max_tokens": 400, "seed": n, "stream": n % 3 > 0}
        delay = rng.choice([0.0, rng.uniform(0, 0.05), rng.uniform(0, 1.5)])
        try:
            async with asyncio.timeout(delay):
                async with client.stream("POST", f"{ahead.url}/v1/completions", json=body) as answer:
                    return len([chunk async for chunk in answer.aiter_bytes()])
        except TimeoutError:
            return -1

    async def all_of_them() -> list[int]:
        async with httpx.AsyncClient(timeout=240, limits=httpx.Limits(max_connections=60)) as client:
            return list(await asyncio.gather(*[one(client, n) for n in range(50)]))

    cut = asyncio.run(all_of_them())
    assert cut.count(-1) >= 40
    statuses = ahead.settled()
    assert statuses["target"].cells == statuses["drafter"].cells == 0
    assert ahead.complete("x = ", max_tokens=5)["usage"]["completion_tokens"] == 5


def test_workers_are_pinned_and_see_no_gpu(ahead):
    for role in ("target", "drafter"):
        process = psutil.Process(ahead.status(role).pid)
        placement = getattr(ahead.plan, role)
        assert process.cmdline()[0].startswith({"target": "ray::VerifierActor", "drafter": "ray::DrafterActor"}[role])
        assert tuple(process.cpu_affinity()) == placement.device.indices
        assert ahead.status(role).gpu == ""
