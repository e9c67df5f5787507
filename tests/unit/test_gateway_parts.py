"""The gateway's parts by themselves: what one request may cost, calls, templates, errors that are no crashes."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest
import zmq
import zmq.asyncio
from helpers.simulated_world import PIECES, World, reference
from llguidance import LLMatcher
from msgspec import structs
from pydantic import ValidationError
from starlette.responses import JSONResponse

from hetero.errors import SequenceFailed
from hetero.gateway.admission import AdmissionLimits
from hetero.gateway.answers.answer import Dialect
from hetero.gateway.answers.errors import failure
from hetero.gateway.answers.stats import timings
from hetero.gateway.chat.template_process import Renderer
from hetero.gateway.door.guard import Guard
from hetero.gateway.requests.openai import ChatRequest, CompletionRequest
from hetero.gateway.routes.generation import Asked, _stream
from hetero.gateway.verifiers.pool import Verifiers
from hetero.gateway.verifiers.sequences import SILENCE, Delta, ask
from hetero.serve import _listen
from hetero.workers.errors import EngineError
from hetero.workers.sampling.logits_processors import LogitsProcessor
from hetero.workers.wire.messages import Sampling, Stats

_STATS = Stats(10, 1.0, 40, 100.0, 30, 20, 15, 0, 0, 0.0)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "on"),
        ({"draft_n": 0}, "off"),
        ({"alone_n": 40, "draft_n": 0}, "off: no drafter"),
        ({"alone_n": 12}, "off for 12 of 40 tokens: no drafter"),
        ({"plain_n": 8}, "off for 8 of 40 tokens: it was slower than plain decoding"),
        (
            {"alone_n": 12, "plain_n": 8},
            "off for 12 of 40 tokens: no drafter; off for 8 of 40 tokens: it was slower than plain decoding",
        ),
        ({"resumed_n": 25, "alone_n": 15, "draft_n": 0}, "off: no drafter"),
    ],
)
def test_what_is_told_of_speculation_is_true(changes, words):
    assert timings(structs.replace(_STATS, **changes))["speculation"] == words


@pytest.mark.parametrize(
    "schema, body",
    [
        (CompletionRequest, {"prompt": [[-1] * 25_000] * 16}),
        (CompletionRequest, {"prompt": [-1] * 100_000}),
        (CompletionRequest, {"prompt": "x", "logit_bias": {f"x{n}": "y" for n in range(50_000)}}),
        (CompletionRequest, {"prompt": "x", "stop": [5] * 50_000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [0] * 50_000}] * 10}),
        (ChatRequest, {"messages": [{"role": "nobody"}] * 4000}),
    ],
)
def test_a_million_mistakes_make_a_few_complaints(schema, body):
    with pytest.raises(ValidationError) as refused:
        schema.model_validate(body)
    assert 1 <= refused.value.error_count() <= 10


def test_templates_write_json_as_models_know_it():
    source = "{{ messages[0]['content'] }} {{ tools | tojson }} {{ '<' + ({'b': 1, 'a': 2} | tojson(indent=1)) }}"
    said = Renderer(source, {"bos_token": ""}).render([{"role": "user", "content": "x"}], [{"z": "it's <b>", "a": "é"}])
    assert said == ('x [{"z": "it\'s <b>", "a": "é"}] <{\n "b": 1,\n "a": 2\n}', "")


def test_bias_and_penalties_of_tokens_a_padded_vocabulary_lacks_are_left_out():
    processor = LogitsProcessor(Sampling(0.0, presence=1.0, frequency=0.5, bias=[(2, 3.0), (9, 5.0)]))
    for token in (1, 1, 9):
        processor.commit(token)
    assert processor(np.zeros(4, np.float32)).tolist() == [0.0, -2.0, 3.0, 0.0]
    assert processor(np.zeros(10, np.float32))[9] == pytest.approx(5.0 - 1.5)


def test_a_hint_that_fails_costs_nothing(monkeypatch):
    def fails(*more):
        raise EngineError("scripted")

    monkeypatch.setattr("hetero.workers.decoding.verifier.hint_of", fails)
    world = World(2, "mirror", gamma=3)
    story = world.ask([1, 2, 3], max_tokens=30)
    world.play()
    assert story.tokens == reference(story.opening) and story.end.stats.draft_n_accepted > 0


def test_a_grammar_is_compiled_once_for_all_choices(monkeypatch):
    made = []
    monkeypatch.setattr(
        "hetero.workers.sampling.grammar.LLMatcher", lambda *a, **k: made.append(a) or LLMatcher(*a, **k)
    )
    grammar = LLMatcher.grammar_from_regex("[a-c]{3,5}")
    one, two = PIECES.grammars.start(grammar), PIECES.grammars.start(grammar)
    one.commit(0)
    assert len(made) == 1
    assert two.allowed(48).sum() == one.allowed(48).sum() > 0
    for _ in range(2):
        one.commit(1)
    assert two.allowed(48)[:3].all() and not two.complete


def test_a_stream_that_hears_nothing_says_that_it_lives(monkeypatch):
    """Of a verifier that says nothing, and of tokens that make no event: what is held back for a stop string, say."""

    class Held(Dialect):
        def whole(self, answer):
            return {}

        def failed(self, answer, error):
            return ()

        def part(self, answer, part):
            yield from ["held\n"] if part.text == "x" else []

    async def quiet() -> list[Delta]:
        verifiers = Verifiers()
        context = zmq.asyncio.Context()
        silent = context.socket(zmq.ROUTER)
        port = silent.bind_to_random_port("tcp://127.0.0.1")
        linking = asyncio.create_task(verifiers.link(0, f"tcp://127.0.0.1:{port}"))
        await asyncio.sleep(0)
        found = []
        async for delta in verifiers.generate(ask([1], Sampling(0.0, 0, 1.0, 0.0, 1, 0), 4)):
            found.append(delta)
            if len(found) == 2:
                break
        linking.cancel()
        await verifiers.close()
        silent.close(0)
        context.term()
        return found

    monkeypatch.setattr("hetero.gateway.verifiers.pool.QUIET", 0.05)
    assert asyncio.run(quiet()) == [SILENCE, SILENCE]

    async def events() -> list[str]:
        async def deltas():
            yield 0, SILENCE
            yield 0, Delta([1], "x")
            for _ in range(3):
                await asyncio.sleep(0.03)
                yield 0, Delta([1], "")

        answer = SimpleNamespace(choices=[SimpleNamespace(take=lambda delta: delta)])
        return [text async for text in _stream(Asked(answer, [], Held(), True), deltas())]

    monkeypatch.setattr("hetero.gateway.routes.generation.QUIET", 0.05)
    assert [text for text in asyncio.run(events()) if text] == ["held\n", Held.alive]


def test_patience_counts_from_the_loss_of_the_verifier():
    async def wait() -> float:
        verifiers = Verifiers(patience=0.4)
        context = zmq.asyncio.Context()
        silent = context.socket(zmq.ROUTER)  # as if one were there, with a long queue
        port = silent.bind_to_random_port("tcp://127.0.0.1")
        linking = asyncio.create_task(verifiers.link(0, f"tcp://127.0.0.1:{port}"))
        await asyncio.sleep(0)

        async def one() -> None:
            asked = ask([1], Sampling(0.0, 0, 1.0, 0.0, 1, 0), 4)
            async for _ in verifiers.generate(asked):
                pass

        task = asyncio.create_task(one())
        await asyncio.sleep(0.6)
        assert not task.done()
        verifiers.lost(0)
        await linking
        began = time.monotonic()
        with pytest.raises(SequenceFailed, match="verifier_timeout"):
            await task
        await verifiers.close()
        silent.close(0)
        context.term()
        return time.monotonic() - began

    assert asyncio.run(wait()) >= 0.39


def guarded(keys: tuple[str, ...], headers: dict[str, str], path: str = "/v1/models") -> int:
    """The status of a request that passes the guard (200) or does not."""

    async def inner(scope, receive, send):
        await JSONResponse({})(scope, receive, send)

    seen: list[int] = []

    async def send(message):
        if message["type"] == "http.response.start":
            seen.append(message["status"])

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": path, "headers": raw, "query_string": b""}
    asyncio.run(Guard(inner, keys, AdmissionLimits())(scope, receive, send))
    return seen[0]


@pytest.mark.parametrize(
    "host, status",
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("[::1]:8000", 200),
        ("app.localhost:8000", 200),
        ("127.8.9.1", 200),
        ("evil.example:8000", 403),
        ("evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("192.168.1.5:8000", 403),
        ("", 403),
    ],
)
def test_without_a_key_only_the_loopbacks_names_are_answered(host, status):
    assert guarded((), {"host": host}) == status
    assert guarded((), {"host": host}, "/health") == 200
    assert guarded(("k",), {"host": host, "authorization": "Bearer k"}) == 200


def test_keys_of_any_letters_work():
    assert guarded(("schl\u00fcssel-\u9375",), {"authorization": "Bearer schl\u00fcssel-\u9375"}) == 200
    assert guarded(("schl\u00fcssel",), {"authorization": "Bearer schlussel"}) == 401


def test_errors_echo_a_part_of_what_was_said():
    found = failure("x" * 10_000_000, "invalid_request_error", "p" * 10_000_000)
    assert len(json.dumps(found)) < 5000


def test_a_key_may_come_as_anthropics_clients_send_it():
    assert guarded(("k",), {"x-api-key": "k"}) == 200 and guarded(("k",), {"x-api-key": "other"}) == 401
    assert guarded(("k",), {"x-api-key": "k", "authorization": "Bearer other"}) == 200


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost.evil.example"}, 403),
        ({"origin": "vscode-webview://abc"}, 200),
        ({"origin": "https://chat.example", "host": "chat.example", "authorization": "Bearer k"}, 200),
        ({"origin": "https://chat.example", "sec-fetch-site": "same-origin", "authorization": "Bearer k"}, 200),
        ({"origin": "https://evil.example", "sec-fetch-site": "cross-site", "authorization": "Bearer k"}, 403),
    ],
)
def test_pages_from_elsewhere_may_not_ask(headers, status):
    keys = ("k",) if "authorization" in headers else ()
    assert guarded(keys, {"host": "localhost", **headers}) == status


def test_localhost_is_both_families():
    listeners = _listen("localhost", 0)
    families = {listener.family for listener in listeners}
    ports = {listener.getsockname()[1] for listener in listeners}
    for listener in listeners:
        listener.close()
    assert socket.AF_INET in families and len(ports) == 1
    assert len(families) == len(listeners) == (2 if _has_ipv6() else 1)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False
