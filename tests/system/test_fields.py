"""Every field as the openai client sends it, on the whole product."""

from __future__ import annotations

import json
import math

import httpx
import openai
import pytest
from helpers.builtin_pair import PROMPTS, TARGET
from helpers.running_server import RunningServer

from hetero.workers.models.tokenizer import GgufTokenizer

PROMPT = "import os\n"
PERSON = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["cat", "dog"]}, "n": {"type": "integer", "maximum": 9}},
    "required": ["ok", "kind", "n"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "feed", "description": "Feed an animal", "parameters": PERSON},
}


@pytest.fixture(scope="module")
def exact():
    stack = RunningServer(exact=True, strategy="serial", port=0, max_waiting=20, timeout=60)
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def client(exact):
    return openai.OpenAI(base_url=f"{exact.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def words():
    return GgufTokenizer(TARGET)


def complete(client, **fields):
    return client.completions.create(**{"model": "builtin", "prompt": PROMPT, "max_tokens": 24, "seed": 3, **fields})


def chat(client, **fields):
    messages = [{"role": "user", "content": "x = 1"}]
    return client.chat.completions.create(
        **{"model": "builtin", "messages": messages, "max_completion_tokens": 120, "seed": 3, **fields}
    )


def test_n_choices_are_those_of_single_requests_and_do_not_repeat(client):
    several = complete(client, n=4)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == complete(client).choices[0].text
    assert len({choice.text for choice in several.choices}) == 4
    assert several.usage.completion_tokens == 96 and several.usage.prompt_tokens == complete(client).usage.prompt_tokens
    texts = dict.fromkeys(range(4), "")
    for chunk in complete(client, n=4, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert list(texts.values()) == [choice.text for choice in several.choices]


def test_prompts_as_ids_lists_and_echo(client, words):
    ids = words.encode(PROMPT)
    one = complete(client).choices[0].text
    assert complete(client, prompt=ids).choices[0].text == one
    both = complete(client, prompt=[PROMPT, "def f(x):\n"], n=2, echo=True)
    assert [choice.text.startswith(PROMPT) for choice in both.choices] == [True, True, False, False]
    assert both.choices[0].text == PROMPT + one
    assert complete(client, prompt=[ids, ids]).choices[1].text == one
    assert complete(client, prompt=ids, echo=True).choices[0].text == PROMPT + one
    streamed = "".join(c.choices[0].text for c in complete(client, echo=True, stream=True))
    assert streamed == PROMPT + one
    for wrong in ([], [[]], [4096], [-1], [1.5], [PROMPT, 3], {"a": 1}):
        with pytest.raises(openai.BadRequestError, match="prompt"):
            complete(client, prompt=wrong)


def test_logprobs_are_the_models_own(client, words):
    found = complete(client, logprobs=5, temperature=0.7).choices[0]
    logprobs = found.logprobs
    assert "".join(logprobs.tokens) == found.text and len(logprobs.token_logprobs) == 24
    assert logprobs.text_offset[1] == len(logprobs.tokens[0])
    for value, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert value <= 0 and 0 < sum(map(math.exp, top.values())) <= 1 + 1e-6
        assert list(top.values()) == sorted(top.values(), reverse=True)
    assert complete(client, temperature=0.7).choices[0].text == found.text  # to ask changes nothing
    plain = complete(client, logprobs=5, temperature=0.7, extra_body={"speculation": False})
    assert plain.choices[0].logprobs == logprobs and plain.model_extra["timings"]["draft_n"] == 0
    whole = chat(client, logprobs=True, top_logprobs=3, max_completion_tokens=10).choices[0]
    parts = [
        entry
        for chunk in chat(client, logprobs=True, top_logprobs=3, max_completion_tokens=10, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert parts == whole.logprobs.content and len(parts) == 10 and len(parts[0].top_logprobs) == 3
    assert b"".join(bytes(e.bytes) for e in parts).decode() == whole.message.content
    greedy = chat(client, logprobs=True, top_logprobs=1, max_completion_tokens=10, temperature=0).choices[0]
    assert all(entry.token == entry.top_logprobs[0].token for entry in greedy.logprobs.content)
    assert complete(client, logprobs=0).choices[0].logprobs.top_logprobs[0] == {}


def test_bias_and_penalties(client, words):
    token = 511
    forced = complete(client, logit_bias={str(token): 100}, temperature=0.8)
    assert forced.choices[0].text == words.vocabulary.pieces[token].decode() * 24
    free = complete(client, max_tokens=60, logprobs=0, temperature=0)
    spread = complete(client, max_tokens=60, logprobs=0, temperature=0, frequency_penalty=2, presence_penalty=2)
    assert len(set(spread.choices[0].logprobs.tokens)) > len(set(free.choices[0].logprobs.tokens))
    # A ban lasts; the ban of what would have come first changes the first token.
    first = free.choices[0].logprobs.tokens[0]
    ids = words.encode(first, special=False)
    banned = complete(client, max_tokens=60, temperature=0, logprobs=0, logit_bias={str(ids[0]): -100})
    assert first not in banned.choices[0].logprobs.tokens


FIELDS = [
    {"presence_penalty": 1.0},
    {"frequency_penalty": 1.5, "temperature": 0.8},
    {"n": 3},
    {"logit_bias": {"201": -5.0, "14": 2.0}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}},
    {"stop": ["\n", ";"]},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: next(iter(fields)))
def test_texts_are_the_same_with_and_without_a_drafter(client, fields):
    drafted = chat(client, **fields)
    plain = chat(client, **fields, extra_body={"speculation": False})
    assert [c.message.content for c in drafted.choices] == [c.message.content for c in plain.choices]
    assert plain.model_extra["timings"]["draft_n"] == 0
    assert drafted.usage.completion_tokens < 3 or drafted.model_extra["timings"]["draft_n"] > 0


def test_json_and_schemas(client):
    for temperature in (0, 1.0, 2.0):
        answer = chat(client, temperature=temperature, response_format=FIELDS[4]["response_format"])
        found = json.loads(answer.choices[0].message.content)
        assert answer.choices[0].finish_reason == "stop"
        assert list(found) == ["ok", "kind", "n"] and found["kind"] in ("cat", "dog")
    text = chat(client, response_format={"type": "json_object"}, max_completion_tokens=40).choices[0]
    assert text.message.content.startswith("{")
    with pytest.raises(openai.BadRequestError, match="response_format"):
        chat(client, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}})
    parts = chat(client, response_format=FIELDS[4]["response_format"], stream=True)
    assert json.loads("".join(c.choices[0].delta.content or "" for c in parts if c.choices))


def test_tools(client):
    for choice in ("required", {"type": "function", "function": {"name": "feed"}}):
        answer = chat(client, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False).choices[0]
        assert answer.finish_reason == "tool_calls" and answer.message.content is None
        call = answer.message.tool_calls[0]
        assert call.function.name == "feed" and json.loads(call.function.arguments)["kind"] in ("cat", "dog")
        streamed = chat(client, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False, stream=True)
        deltas = [c.choices[0] for c in streamed if c.choices]
        calls = [call for d in deltas for call in d.delta.tool_calls or []]
        assert len(calls) > 1 and calls[0].function.name == "feed" and not any(c.function.name for c in calls[1:])
        assert "".join(c.function.arguments for c in calls) == call.function.arguments
        assert deltas[-1].finish_reason == "tool_calls"
    answer = chat(client, tools=[TOOL], max_completion_tokens=20).choices[0]  # the toy model does not call by itself
    assert answer.message.content and answer.message.tool_calls is None
    # The call and its result go back as messages.
    told = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]
    assert chat(client, messages=told, tools=[TOOL], max_completion_tokens=5).choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="content"):
        chat(client, messages=[{"role": "user", "content": None}])
    for fields in (
        {"tool_choice": "required"},
        {"tools": [TOOL, TOOL]},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
    ):
        with pytest.raises(openai.BadRequestError, match="tool"):
            chat(client, **fields)


def test_a_chats_next_turn_is_cached(exact, client):
    messages = [{"role": "user", "content": PROMPTS[0] * 12}]
    first = chat(client, messages=messages, max_completion_tokens=16)
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "y"}]
    second = chat(client, messages=messages, max_completion_tokens=16)
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert 0 < cached < second.usage.prompt_tokens
    assert second.model_extra["timings"]["cache_n"] == cached
    assert second.model_extra["timings"]["prompt_n"] == second.usage.prompt_tokens - cached


def test_exact_means_exact_with_a_cache_too(client):
    asked = {"prompt": PROMPTS[1] * 30, "max_tokens": 60, "temperature": 0.8}
    cold, warm = complete(client, **asked), complete(client, **asked)
    assert cold.usage.prompt_tokens_details.cached_tokens == 0 < warm.usage.prompt_tokens_details.cached_tokens
    assert warm.usage.prompt_tokens_details.cached_tokens % 128 == 0
    assert warm.choices[0].text == cold.choices[0].text


def test_half_a_surrogate_pair_is_a_400(exact):
    half = '"\\ud800"'
    bodies = [
        f'{{"messages": [{{"role": "user", "content": {half}}}]}}',
        f'{{"messages": [{{"role": "user", "content": "x"}}], "tools": [{{"type": "function", "function": '
        f'{{"name": "f", "description": {half}}}}}]}}',
        f'{{"messages": [{{"role": "user", "content": "x"}}], "response_format": {{"type": "json_schema", '
        f'"json_schema": {{"schema": {{"const": {half}}}}}}}}}',
    ]
    for body in bodies:
        headers = {"content-type": "application/json"}
        found = httpx.post(f"{exact.url}/v1/chat/completions", content=body, headers=headers, timeout=30)
        assert found.status_code == 400, (body, found.text)


def test_windows_are_told_on_request(exact):
    body = {"prompt": PROMPT, "max_tokens": 40, "stream": True, "stream_options": {"include_windows": True}}
    rounds = []
    with httpx.stream("POST", f"{exact.url}/v1/completions", json=body, timeout=240) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {") and "window" in (chunk := json.loads(line[6:])):
                rounds.append(chunk["window"])
    assert sum(r["tokens"] for r in rounds) == 40
    assert sum(r["accepted"] for r in rounds) > 0 and all(r["forward_ms"] > 0 for r in rounds)
    assert all(r["accepted"] <= r["drafted"] and r["accepted"] < r["tokens"] + 1 for r in rounds)
    exact.settled()
