"""Thousands of requests, schemas and frames that are not right: an answer to each, and nothing is left of them.

After each fuzzer a seeded text is what it was, and memory, files, threads and sequences are where they were.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psutil
import pytest
from helpers.mutation import ODD, mutated
from helpers.real_workers import Client, opening, until, workers
from helpers.running_server import RunningServer

from hetero.workers.runtime.spec import WorkerSpec
from hetero.workers.wire.codec import encode
from hetero.workers.wire.messages import (
    Cancel,
    Close,
    Commit,
    Draft,
    Hint,
    Message,
    Open,
    Ping,
    Pong,
    Resume,
    Sampling,
    Tokens,
)
from hetero.workers.wire.sockets import connect_dealer

MIB = 1 << 20
ROOM = 96 * MIB  # what allocators may keep of thousands of inputs


@pytest.fixture(scope="module")
def stack():
    made = RunningServer(strategy="serial", port=0, context=256, parallel=4, max_waiting=400, prefix_cache=1)
    yield made
    made.close()


@contextmanager
def nothing_left(stack: RunningServer) -> Iterator[None]:
    """Around a fuzzer."""
    known = {"max_tokens": 60, "seed": 3, "temperature": 0.8}

    def look() -> tuple[str, list[int], int, int]:
        text = stack.complete("import os", **known)["choices"][0]["text"]
        statuses = stack.settled()
        gc.collect()
        here = psutil.Process()
        processes = [here, *(psutil.Process(status.pid) for status in statuses.values())]
        return text, [p.memory_info().rss for p in processes], here.num_fds(), threading.active_count()

    for n in range(30):  # what is made once is there
        stack.complete(f"x{n}", max_tokens=30)
    chat = {"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object"}, "max_tokens": 9}
    assert httpx.post(f"{stack.url}/v1/chat/completions", json=chat, timeout=100).status_code == 200
    before = look()
    yield
    until(lambda: stack.served.admission.sequences == 0, 120)
    end = time.monotonic() + 30
    while True:  # connections close within moments
        after = look()
        if after[2] <= before[2] + 4 or time.monotonic() > end:
            break
        time.sleep(1)
    assert after[0] == before[0]
    grown = [now - then for now, then in zip(after[1], before[1], strict=True)]
    assert max(grown) < ROOM, [f"{size / MIB:.0f} MiB" for size in grown]
    assert after[2] <= before[2] + 4 and after[3] <= before[3] + 4, (before[2:], after[2:])


# Requests

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
COMMON = {
    "model": "builtin", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 1, "n": 2,
    "stop": ["a", "b"], "presence_penalty": 1.0, "frequency_penalty": 0.5, "logit_bias": {"5": 1.0}, "stream": True,
    "stream_options": {"include_usage": True, "include_windows": True}, "speculation": False, "user": "me",
}  # fmt: skip
RIGHT = [
    ("/v1/completions", {**COMMON, "prompt": "x = ", "echo": True}),
    ("/v1/completions", {"prompt": [[5, 6], [7]], "logprobs": 3, "max_tokens": 3}),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 3, "response_format": {"type": "json_object"}}),
    ("/v1/chat/completions", {**COMMON, "messages": [{"role": "user", "content": "x"}], "logprobs": True}),
    (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "s"}]},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "7", "tool_call_id": "1"},
            ],
            "tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False, "max_completion_tokens": 4,
            "top_logprobs": 2, "logprobs": True,
        },
    ),
]  # fmt: skip


def body_of(rng: random.Random) -> tuple[str, str, bytes, dict[str, str]]:
    """Method, path, body, headers."""
    path, value = rng.choice(RIGHT)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        value = mutated(value, rng)
    data, headers, method = json.dumps(value).encode(), {"content-type": "application/json"}, "POST"
    kind = rng.random()
    if kind < 0.1:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 5)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        data = bytes(changed[: rng.randrange(len(changed) + 1)])
    elif kind < 0.15:
        data = rng.choice([b"", b"[" * 50_000, b'{"a":' * 20_000, b"\xff\xfe", b"null", b"1e999999", b'"' * 999, b"{}"])
    elif kind < 0.2:
        path = rng.choice(
            ["/", "/v1", "/v1/models/%00", "/v1/models/" + "x" * 3000, "/metrics", "/..%2f", "/v1/x?a=%ff"]
        )
        method = rng.choice(["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
    elif kind < 0.25:
        headers = rng.choice([{}, {"content-type": "text/plain"}, {"content-type": "x" * 2000}, {"authorization": "²"}])
        headers = {name: value.encode() for name, value in headers.items()}
    return method, path, data, headers


def requests(stack: RunningServer, seed: int, count: int) -> collections.Counter[int]:
    rng, seen = random.Random(seed), collections.Counter()
    given = [body_of(rng) for _ in range(count)]

    async def one(client: httpx.AsyncClient, turn: asyncio.Semaphore, n: int) -> None:
        method, path, data, headers = given[n]
        async with turn:
            answer = await client.request(method, stack.url + path, content=data, headers=headers)
        seen[answer.status_code] += 1
        assert answer.status_code in (200, 400, 404, 405, 413, 429), (given[n], answer.text[:500])
        if answer.status_code >= 400 and method != "HEAD" and answer.status_code != 405:
            assert answer.json()["error"]["message"], given[n]

    async def play() -> None:
        turn = asyncio.Semaphore(8)
        async with httpx.AsyncClient(timeout=120) as client:
            await asyncio.gather(*[one(client, turn, n) for n in range(count)])

    asyncio.run(play())
    return seen


def test_odd_requests(stack):
    with nothing_left(stack):
        seen = requests(stack, 1, 40)
    assert seen[200] > 5 and seen[400] > 12, seen


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_many_odd_requests(stack):
    with nothing_left(stack):
        print(requests(stack, 2, 500))


# Schemas

SCHEMAS = [
    {
        "type": "object", "required": ["a"], "additionalProperties": False,
        "properties": {
            "a": {"type": "integer", "minimum": 0, "maximum": 9, "multipleOf": 3},
            "b": {"type": "array", "items": {"enum": ["x", 1, None]}, "minItems": 1, "maxItems": 4},
            "c": {"anyOf": [{"type": "string", "pattern": "^a+b$"}, {"$ref": "#/$defs/d"}]},
        },
        "$defs": {"d": {"type": "string", "format": "date", "minLength": 1}},
    },
    {"oneOf": [{"const": "<|im_start|>"}, {"type": "number", "exclusiveMinimum": -1.5}]},
    {"type": "array", "prefixItems": [{"type": "boolean"}], "items": {"$ref": "#"}},
    {"allOf": [{"type": "object"}, {"properties": {"k": {"type": ["string", "null"]}}, "minProperties": 1}]},
    {"type": "string", "maxLength": 20, "pattern": "(a|b)*c{1,9}[0-9]{2,5}"},
]  # fmt: skip
VALUES = [
    *ODD, "(a+)+$", "[", "a{1000}", "\\p{L}+", "#", "#/$defs/d", "http://x/y", "object", "string", ["object", "null"],
    {"type": "integer"}, {"$ref": "#"}, {"not": {}}, {"const": -(2**63) + 1},
    {"multipleOf": 100_003, "type": "integer"},
]  # fmt: skip


def schemas(stack: RunningServer, seed: int, count: int) -> collections.Counter[int]:
    rng, seen = random.Random(seed), collections.Counter()
    with httpx.Client(timeout=120) as client:
        for _ in range(count):
            schema = rng.choice(SCHEMAS)
            for _ in range(rng.choice([1, 1, 2, 4])):
                schema = mutated(schema, rng, VALUES)
            if rng.random() < 0.5:
                shaped = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
                path, body = "/v1/completions", {"prompt": "x", "max_tokens": 6, "response_format": shaped}
            else:
                tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
                choice = rng.choice(["auto", "required"])
                body = {"messages": [{"role": "user", "content": "x"}], "tools": [tool], "tool_choice": choice}
                path, body = "/v1/chat/completions", {**body, "max_tokens": 6}
            answer = client.post(
                stack.url + path, content=json.dumps(body), headers={"content-type": "application/json"}
            )
            seen[answer.status_code] += 1
            assert answer.status_code in (200, 400), (body, answer.text[:500])
    return seen


@pytest.mark.long
def test_odd_schemas(stack):
    with nothing_left(stack):
        seen = schemas(stack, 1, 30)
    assert seen[200] > 5 and seen[400] > 3, seen


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_many_odd_schemas(stack):
    before = dict(stack.session.coordinator.restarts)
    with nothing_left(stack):
        print(schemas(stack, 2, 250))
    assert dict(stack.session.coordinator.restarts) == before


# Frames


def messages(rng: random.Random, epoch: int, live: int) -> list[Message]:
    """One of each kind. Requests and cancels are of other sequences than ``live``: who has a key may ask."""
    seq, other = rng.choice([live, rng.getrandbits(62)]), rng.getrandbits(62)
    base = rng.choice([0, 1, 5, 1000, 1 << 20])
    some = [rng.choice([0, 5, 4095, 4096, 2**31 - 1]) for _ in range(rng.choice([0, 1, 3, 200]))]
    wrong, most, grammar = rng.choice([epoch, 0, 7]), rng.choice([1, 1 << 20]), rng.choice(["", "{", "x" * 99])
    bias = [(5, 1e4), (2**31 - 1, 1.0)]
    odd = Sampling(rng.choice([0.0, 1e-30, 100.0]), rng.choice([0, 1, 2**31 - 1]), 1.0, 0.0, 1, 0, bias=bias)
    begun = Open(other, 0, some or [1], some, odd, most, ["x"], grammar)
    parents = [rng.choice([-1, 0, n - 1, n, 1023]) for n in range(len(some))]
    chances = [rng.random() for _ in some]
    return [
        begun,
        Resume(begun),
        Cancel(other),
        Commit(seq, wrong, base, some, 1.0),
        Close(seq, wrong),
        Pong(wrong),
        Draft(seq, wrong, base, parents, some, chances, 0.1),
        Hint(seq, wrong, base, parents, some, [[5]] * len(some)),
        Tokens(seq, wrong, base, some, "x"),
        Ping("drafter", rng.choice([1, 2]), [(seq, 5)], rng.choice([0, 1023])),
        Ping("gateway", 0, [(other, 5)] * rng.choice([0, 1, 3000])),
        Ping("", 0, []),
    ]


def damaged(frame: bytearray, rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.6:
        for _ in range(rng.choice([1, 1, 3, 10])):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
    return bytes(frame[: rng.randrange(len(frame) + 1)] if kind < 0.2 else frame)


def frames(seed: int, count: int) -> None:
    """Right and wrong ones, to a verifier that answers another client meanwhile and has a drafter."""
    rng = random.Random(seed)
    specs = [WorkerSpec(role, "", "table", "serial", 4, context=256) for role in ("target", "drafter")]
    with workers(*specs) as (verifier, drafter), Client(verifier.status().endpoint) as client:
        socket = connect_dealer(client.context, verifier.status().endpoint, b"stranger")
        try:
            until(lambda: verifier.status().drafters)
            calm = client.ask(opening(1, [1, 2], 200, seed=9))[1][:2]
            here, epoch = psutil.Process(), verifier.status().epoch
            facts = here.memory_info().rss, here.num_fds(), threading.active_count()
            for _ in range(-(-count // 500)):
                begun, live = [], rng.getrandbits(62)  # as gateways choose it: not to be hit by chance
                for _ in range(500):
                    message = rng.choice(messages(rng, epoch, live))
                    if isinstance(message, Open | Resume):
                        begun.append(message.seq if isinstance(message, Open) else message.opening.seq)
                    frame = damaged(bytearray(encode(message)), rng)
                    socket.send_multipart([frame] if rng.random() < 0.98 else [b"a", frame])
                    while socket.poll(0):
                        socket.recv()
                for seq in begun:  # else they stand in the queue in front of the client
                    socket.send(encode(Cancel(seq)))
                assert client.ask(opening(live, [1, 2], 200, seed=9))[live][:2] == calm
            assert verifier.status().epoch == epoch and verifier.status().dropped > count / 10
            assert verifier.status().phase == drafter.status().phase == "ready"
            now = here.memory_info().rss, here.num_fds(), threading.active_count()
            assert now[0] - facts[0] < ROOM and now[1] <= facts[1] + 4 and now[2] <= facts[2] + 2, (facts, now)
        finally:
            socket.close(0)


def test_odd_frames():
    frames(1, 2000)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_many_thousand_odd_frames():
    frames(2, 20_000)
