"""Many clients at once, and for long: nothing is left over, nothing grows. The whole product."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

import httpx
import psutil
import pytest
from helpers.builtin_pair import PROMPTS
from helpers.running_server import RunningServer

pytestmark = pytest.mark.long

LONG = 60.0  # seconds of the soak


@pytest.fixture(scope="module")
def stack():
    made = RunningServer(strategy="ahead", port=0, parallel=8, prefix_cache=4)  # small, so that it is full early
    yield made
    made.close()


async def stream(client: httpx.AsyncClient, url: str, body: dict, seconds: float | None = None) -> str | None:
    """The text of one stream, or None when it was cut after ``seconds``."""
    text, done = [], False
    try:
        async with asyncio.timeout(seconds):
            async with client.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}) as answer:
                assert answer.status_code == 200
                async for line in answer.aiter_lines():
                    done = done or line == "data: [DONE]"
                    if line.startswith("data: {"):
                        text.append(line)
    except TimeoutError:
        return None
    assert done, text[-1:]
    return "".join(text)


def test_two_hundred_streams_of_which_a_hundred_are_cut(stack):
    rng = random.Random(7)
    bodies = [
        {"prompt": PROMPTS[n % 4] * rng.choice([1, 8]), "max_tokens": rng.randint(20, 60), "seed": n}
        for n in range(200)
    ]
    cut = set(rng.sample(range(200), 100))

    async def all_of_them() -> list[str | None]:
        limits = httpx.Limits(max_connections=250)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            seconds = [rng.uniform(0, 4) if n in cut else None for n in range(200)]
            return await asyncio.gather(*[stream(client, stack.url, bodies[n], seconds[n]) for n in range(200)])

    texts = asyncio.run(all_of_them())
    assert all(texts[n] is not None for n in range(200) if n not in cut)
    assert sum(texts[n] is None for n in cut) > 50
    statuses = stack.settled(60)
    assert statuses["target"].cells == 0
    assert stack.complete("x = ", max_tokens=5)["usage"]["completion_tokens"] == 5


def memory(stack) -> dict[str, int]:
    """Bytes held by each process, those of tests included."""
    found = {role: stack.status(role).memory for role in ("target", "drafter")}
    return {**found, "gateway": psutil.Process().memory_info().rss}


@pytest.mark.long
@pytest.mark.timeout(LONG + 300)
def test_soak_with_faults_does_not_grow(stack):
    """Streams of all kinds, cuts and kills for a minute. A worker's memory is compared within an incarnation."""
    rng = random.Random(3)
    end = time.monotonic() + LONG
    count = {"whole": 0, "cut": 0, "killed": 0}

    async def one(client: httpx.AsyncClient) -> None:
        while time.monotonic() < end:
            body = {
                "prompt": rng.choice(PROMPTS) * rng.choice([1, 4, 16]),
                "max_tokens": rng.randint(1, 80),
                "temperature": rng.choice([0, 0.8]),
                "seed": rng.randrange(1 << 40),
                **rng.choice([{}, {"logprobs": 3}, {"n": 2}, {"presence_penalty": 1.0}, {"stop": ["\n\n"]}]),
            }
            found = await stream(client, stack.url, body, rng.choice([None, None, rng.uniform(0, 1)]))
            count["whole" if found is not None else "cut"] += 1

    async def faults() -> list[dict[str, int]]:
        seen = []
        killing = time.monotonic() + LONG / 2
        while time.monotonic() < end:
            await asyncio.sleep(LONG / 20)
            if time.monotonic() < killing:  # the first half kills, the second measures
                # In turn, so that none ends five times within a minute each: it would be given up.
                role = ["target", "drafter"][count["killed"] % 2]
                status = await asyncio.to_thread(stack.status, role)
                os.kill(status.pid, signal.SIGKILL)
                count["killed"] += 1
                await asyncio.sleep(LONG / 20)
            else:
                seen.append(await asyncio.to_thread(memory, stack))
        return seen

    async def run() -> list[dict[str, int]]:
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=50)) as client:
            clients = [asyncio.create_task(one(client)) for _ in range(12)]
            seen = await faults()
            await asyncio.gather(*clients)
            return seen

    seen = asyncio.run(run())
    stack.settled(60)
    assert count["whole"] > 30 and count["cut"] > 10 and count["killed"] >= 3, count
    third = len(seen) // 3
    for name in seen[0]:
        early = sum(found[name] for found in seen[third : 2 * third]) / third
        late = sum(found[name] for found in seen[-third:]) / third
        assert late < 1.1 * early + (16 << 20), (name, early, late, count)
