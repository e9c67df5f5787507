"""The gateway's parts by themselves: what one request may cost, calls, templates, errors that are no crashes."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.simulated_world import PIECES, World, reference
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher
from msgspec import structs
from pydantic import ValidationError

from hetero.errors import SequenceFailed
from hetero.gateway.chat import ChatTemplate
from hetero.gateway.client import Ask, VerifierClient
from hetero.gateway.responses import timings
from hetero.gateway.schema import ChatRequest, CompletionRequest
from hetero.gateway.tools import CallReader
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


CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    "schema, body",
    [
        (CompletionRequest, {"prompt": [[-1] * 25_000] * 16}),
        (CompletionRequest, {"prompt": [-1] * 100_000}),
        (CompletionRequest, {"prompt": "x", **{f"unknown{n}": n for n in range(50_000)}}),
        (CompletionRequest, {"prompt": "x", "logit_bias": {f"x{n}": "y" for n in range(50_000)}}),
        (CompletionRequest, {"prompt": "x", "stop": [5] * 50_000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [0] * 50_000}] * 10}),
        (ChatRequest, {"messages": [{"role": "user", "content": "x", **{f"u{n}": n for n in range(50_000)}}]}),
        (ChatRequest, {"messages": [{"role": "nobody"}] * 4000}),
    ],
)
def test_a_million_mistakes_make_a_few_complaints(schema, body):
    with pytest.raises(ValidationError) as refused:
        schema.model_validate(body)
    assert 1 <= refused.value.error_count() <= 10


@given(
    st.lists(st.sampled_from([CALL, "text", "\n", "\n\n", "<tool", "_call>", "<", "</tool_call>", "{"]), max_size=12),
    st.randoms(use_true_random=False),
)
def test_calls_and_text_do_not_depend_on_the_pieces_they_come_in(parts, rng):
    text = "".join(parts)
    whole = CallReader()
    want = whole.feed(text) + whole.finish()
    split = CallReader()
    got, at = "", 0
    while at < len(text):
        size = rng.randint(1, 5)
        got += split.feed(text[at : at + size])
        at += size
    got += split.finish()
    assert got == want
    assert [c["function"] for c in split.calls] == [c["function"] for c in whole.calls]
    assert text.count(CALL) == len(whole.calls) or "<tool_call>" in text.replace(CALL, "")


def test_templates_write_json_as_models_know_it():
    source = "{{ messages[0]['content'] }} {{ tools | tojson }} {{ '<' + ({'b': 1, 'a': 2} | tojson(indent=1)) }}"
    template = ChatTemplate(SimpleNamespace(chat_template=source, bos="", eos=""))
    assert template.knows_tools
    said = template.render([{"role": "user", "content": "x"}], [{"z": "it's <b>", "a": "é"}])
    assert said == 'x [{"z": "it\'s <b>", "a": "é"}] <{\n "b": 1,\n "a": 2\n}'


def test_bias_and_penalties_of_tokens_a_padded_vocabulary_lacks_are_left_out():
    processor = LogitsProcessor(1.0, 0.5, [(2, 3.0), (9, 5.0)])
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


def test_patience_counts_from_the_loss_of_the_verifier():
    async def wait() -> float:
        client = VerifierClient(patience=0.4)
        client._linked.set()  # as if one were there, with a long queue

        async def one() -> None:
            asked = Ask([1], Sampling(0.0, 0, 1.0, 0.0, 1, 0), 4)
            client._send = lambda message: asyncio.sleep(0)
            async for _ in client.generate(asked):
                pass

        task = asyncio.create_task(one())
        await asyncio.sleep(0.6)
        assert not task.done()
        client.lost()
        began = time.monotonic()
        with pytest.raises(SequenceFailed, match="verifier_timeout"):
            await task
        await client.close()
        return time.monotonic() - began

    assert asyncio.run(wait()) >= 0.39
