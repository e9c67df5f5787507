"""What real clients send, and what they want: each case was found with one, or told in public of a server like this."""

from __future__ import annotations

import asyncio
import json
import re
from types import SimpleNamespace

import httpx
import pytest
from helpers.running_server import RunningServer

from hetero.gateway.chat.abilities import Abilities
from hetero.gateway.chat.template import ChatTemplate

HI = [{"role": "user", "content": "hi"}]
SAID = {"role": "assistant", "content": "x"}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TRUTH = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "f", "parameters": TRUTH}}


@pytest.fixture(scope="module")
def stack():
    made = RunningServer(strategy="serial", port=0)
    yield made
    made.settled()
    made.close()


def ask(stack: RunningServer, route: str = CHAT, **fields: object) -> httpx.Response:
    body = {"max_tokens": 6, **fields}
    if route == CHAT:
        body.setdefault("messages", HI)
    else:
        body.setdefault("prompt", "a b")
    return httpx.post(stack.url + route, json=body, timeout=120)


PARTS = [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]
BACK = {"refusal": None, "annotations": None, "audio": None, "function_call": None, "tool_calls": None}
ANSWERED = [
    {"messages": [HI[0], {**SAID, **BACK}, HI[0]]},
    {"messages": [HI[0], {**SAID, "parsed": None, "reasoning_content": "hm", "id": 1, "prefix": False}, HI[0]]},
    {"messages": [{"role": "user", "content": PARTS}]},
    {"messages": [{"role": "user", "content": "x", "name": None}, {"role": "function", "name": "f", "content": "1"}]},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"reasoning_effort": "none"},
    {"max_tokens": -1, "stop": "\n", "logit_bias": {"0": 100}},
    {"max_tokens": 256.0, "logit_bias": {"0": 100}},
    {"top_k": -1}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1}, {"stop": ""}, {"stop": []}, {"stop": None},
    {"stop": [f"s{n}" for n in range(17)]},
    {"repetition_penalty": 1.1}, {"repetition_penalty": 1.0}, {"repeat_penalty": 1.1, "repeat_last_n": 64},
    {"cache_prompt": True}, {"id_slot": -1}, {"mirostat": 0}, {"store": True}, {"verbosity": "low"},
    {"logprobs": 2}, {"logprobs": False}, {"top_logprobs": None},
    {"stream_options": {"include_usage": True}},
    {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"ignore_eos": True}, {"min_tokens": 0}, {"min_tokens": 3},
    {"tool_choice": "any", "tools": [TOOL], "max_tokens": 40}, {"tool_choice": "auto"}, {"tools": []},
    {"tools": None, "tool_choice": None, "response_format": None, "stream_options": None},
    {"model": "gpt-4o-mini"}, {"seed": None}, {"n": 1.0}, {"user": "me", "metadata": {"a": "b"}},
    {"temperature": -1}, {"functions": [], "function_call": "auto"}, {"modalities": ["text"]},
    {"prediction": {"type": "content", "content": "hello there"}},
    {"response_format": {"type": "json_object", "schema": {"type": "object"}}, "max_tokens": 20},
    {"nonsense": {"deep": [1]}, "messages": [{"role": "user", "content": "x", "odd": 1}]},
]  # fmt: skip


@pytest.mark.parametrize("fields", ANSWERED, ids=lambda fields: ",".join(fields)[:40])
def test_what_clients_send_is_answered(stack, fields):
    found = ask(stack, **fields)
    assert found.status_code == 200, found.text


def test_what_was_ignored_is_told(stack):
    found = ask(stack, nonsense={"deep": [1]}, messages=[{"role": "user", "content": "x", "odd": 1}], model="gpt-4o")
    assert found.headers["x-hetero-ignored"] == "nonsense, messages.N.odd"
    assert found.headers["x-hetero-model"] == "builtin" and found.json()["model"] == "builtin"
    assert "x-hetero-ignored" not in ask(stack).headers


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
REFUSED = [
    ({"messages": [HI[0], {"role": "user", "content": [IMAGE]}]}, "messages.1.content.0: images are not supported"),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        "messages.0.content.0: audio is not supported",
    ),
    ({"messages": [{"role": "user"}]}, "messages.0: content is missing"),
    ({"messages": [{"role": "boss", "content": "x"}]}, "messages.0.role must be 'system'"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content must be a list"),
    ({"messages": []}, "messages must not be empty"),
    ({"messages": "x"}, "messages must be a list"),
    ({"temperature": "warm"}, "temperature must be a number"),
    ({"temperature": 101}, "temperature must be at most 100"),
    ({"n": "many"}, "n must be a whole number"),
    ({"stream": "perhaps"}, "stream must be true or false"),
    ({"tools": [{"type": "function"}]}, "tools.0.function is missing"),
    ({"tool_choice": "required"}, "tool_choice: it needs tools"),
    (
        {"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [TOOL]},
        "tool_choice: no tool is called g",
    ),
    ({"tools": [TOOL, TOOL]}, "tools: two functions have one name"),
    ({"functions": [{"name": "f"}]}, "functions: this server cannot do that"),
    ({"mirostat": 2}, "mirostat: this server cannot do that"),
    ({"continue_final_message": True}, "continue_final_message: the last message must be the assistant's"),
    ({"response_format": {"type": "json_schema"}}, "response_format: json_schema is missing"),
]


@pytest.mark.parametrize("fields, words", REFUSED, ids=[words[:30] for _, words in REFUSED])
def test_what_cannot_be_done_is_told_in_words(stack, fields, words):
    found = ask(stack, **fields)
    assert found.status_code == 400, found.text
    error = found.json()["error"]
    assert error["message"].startswith(words), error
    field = re.split(r"[:. ]", words)[0]
    assert error["type"] == "invalid_request_error" and error["param"] in (None, field)


@pytest.mark.parametrize("seed", [-1, 4294967295, 18446744073709551615, None])
def test_a_seed_that_is_none_is_random(stack, seed):
    texts = {
        ask(stack, TEXT, temperature=1, seed=seed, max_tokens=24, ignore_eos=True).text.split('"text"')[1][:60]
        for _ in range(3)
    }
    assert len(texts) > 1
    same = {ask(stack, TEXT, temperature=1, seed=-2, max_tokens=24).json()["choices"][0]["text"] for _ in range(2)}
    assert len(same) == 1


def test_prompt_logprobs(stack):
    found = ask(stack, TEXT, prompt="def f(x):\n", max_tokens=1, echo=True, logprobs=1, temperature=0).json()[
        "choices"
    ][0]
    logprobs = found["logprobs"]
    tokens = len(logprobs["tokens"])
    assert found["text"].startswith("def f(x):\n") and logprobs["token_logprobs"][0] is None
    assert (
        tokens == len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == len(logprobs["text_offset"]) > 4
    )
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    assert all(max(top.values()) >= value - 1e-9 for top, value in
               zip(logprobs["top_logprobs"][1:], logprobs["token_logprobs"][1:], strict=True))  # fmt: skip
    none = ask(stack, TEXT, prompt="def f(x):\n", max_tokens=0, echo=True, logprobs=1).json()["choices"][0]
    assert none["text"] == "def f(x):\n" and len(none["logprobs"]["tokens"]) == tokens - 1
    # What comes of a long prompt in chunks is what comes of its beginning alone; a cached prefix hides nothing.
    long = ask(stack, TEXT, prompt="def f(x):\n" * 60, max_tokens=1, echo=True, logprobs=0).json()["choices"][0][
        "logprobs"
    ]
    again = ask(stack, TEXT, prompt="def f(x):\n" * 60, max_tokens=1, echo=True, logprobs=0).json()["choices"][0][
        "logprobs"
    ]
    assert len(long["tokens"]) > 256 and long["tokens"] == again["tokens"]
    for one, two in zip(long["token_logprobs"][1:], again["token_logprobs"][1:], strict=True):
        assert one == pytest.approx(two, abs=0.02)
    for one, two in zip(long["token_logprobs"][1 : tokens - 1], logprobs["token_logprobs"][1:-1], strict=False):
        assert one == pytest.approx(two, abs=0.02)
    streamed = httpx.post(stack.url + TEXT, json={"prompt": "def f(x):\n", "max_tokens": 3, "echo": True, "logprobs": 1,
                                                  "stream": True, "seed": 1}, timeout=60).text  # fmt: skip
    chunks = [json.loads(line[6:])["choices"][0] for line in streamed.splitlines() if line.startswith("data: {")]
    names = [token for chunk in chunks if chunk["logprobs"] for token in chunk["logprobs"]["tokens"]]
    assert names[: tokens - 1] == logprobs["tokens"][: tokens - 1] and len(names) == tokens + 2
    assert "".join(chunk["text"] for chunk in chunks).startswith("def f(x):\n")


def test_stop_tokens_and_least_tokens(stack):
    free = ask(stack, TEXT, max_tokens=30, seed=3, logprobs=0, ignore_eos=True).json()["choices"][0]
    assert free["finish_reason"] == "length" and len(free["logprobs"]["tokens"]) == 30
    ids = httpx.post(f"{stack.url}/tokenize", json={"content": free["text"]}).json()["tokens"]
    wanted = ids[9]
    cut = ask(stack, TEXT, max_tokens=30, seed=3, stop_token_ids=[wanted], logprobs=0, ignore_eos=True).json()[
        "choices"
    ][0]
    assert cut["finish_reason"] == "stop" and free["text"].startswith(cut["text"])
    late = ask(stack, TEXT, max_tokens=30, seed=3, stop_token_ids=[wanted], min_tokens=20, ignore_eos=True).json()
    assert late["usage"]["completion_tokens"] >= 20


def test_penalties_on_repetition(stack):
    free = ask(stack, TEXT, prompt="x x x x x x", max_tokens=40, temperature=0, logprobs=0, ignore_eos=True).json()
    for fields in ({"repetition_penalty": 1.5}, {"repeat_penalty": 1.5, "repeat_last_n": -1}):
        spread = ask(
            stack, TEXT, prompt="x x x x x x", max_tokens=40, temperature=0, logprobs=0, ignore_eos=True, **fields
        ).json()
        kinds = [len(set(found["choices"][0]["logprobs"]["tokens"])) for found in (free, spread)]
        assert kinds[1] > kinds[0]
    off = ask(
        stack,
        TEXT,
        prompt="x x x x x x",
        max_tokens=40,
        temperature=0,
        ignore_eos=True,
        repeat_penalty=1.5,
        repeat_last_n=0,
    )
    assert off.json()["choices"][0]["text"] == free["choices"][0]["text"]


def test_the_best_of_several(stack):
    every = ask(stack, TEXT, n=5, best_of=5, seed=2, max_tokens=12, logprobs=0, ignore_eos=True).json()
    best = ask(stack, TEXT, n=2, best_of=5, seed=2, max_tokens=12, ignore_eos=True).json()
    mean = {c["text"]: sum(c["logprobs"]["token_logprobs"]) / 12 for c in every["choices"]}
    ranked = sorted(mean, key=lambda text: -mean[text])
    assert [choice["text"] for choice in best["choices"]] == ranked[:2]
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert best["usage"]["completion_tokens"] == 60
    assert ask(stack, TEXT, best_of=2, stream=True).status_code == 400


def test_predictions_become_drafts(stack):
    free = ask(stack, TEXT, prompt="def f(x):\n", max_tokens=120, seed=5, ignore_eos=True, speculation=False).json()
    text = free["choices"][0]["text"]
    edited = text[:100] + "something else" + text[100:]
    found = ask(stack, TEXT, prompt="def f(x):\n", max_tokens=120, seed=5, ignore_eos=True,
                prediction={"type": "content", "content": edited}).json()  # fmt: skip
    assert found["timings"]["draft_sources"]["prediction"]["accepted"] > 30
    assert found["timings"]["target_forwards_n"] < free["timings"]["target_forwards_n"] / 2


def test_usage_while_it_streams(stack):
    found = ask(
        stack,
        stream=True,
        seed=1,
        ignore_eos=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    ).text
    chunks = [json.loads(line[6:]) for line in found.splitlines() if line.startswith("data: {")]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")]
    assert counts == sorted(counts) and counts[-1] == 6
    first = chunks[0]["choices"][0]["delta"]
    assert first == {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?!x).*$"}}},
        {"type": "object", "properties": {"a": {"type": "string", "format": "path"}}},
        {"type": "object", "propertyNames": {"pattern": "^a"}},
        {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}},
        {"type": "object", "properties": {"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}},
        {"type": "object", "properties": {"a": {"not": {}}}},
        {"type": "no"},
    ],
)
def test_no_request_fails_for_a_tools_schema(stack, parameters):
    tool = {"type": "function", "function": {"name": "odd", "parameters": parameters}}
    found = ask(stack, tools=[tool], tool_choice="auto")
    assert found.status_code == 200 and found.headers["x-hetero-relaxed"].startswith("odd: "), found.headers
    fine = {"type": "function", "function": {"name": "f", "parameters": None}}
    assert "x-hetero-relaxed" not in ask(stack, tools=[fine]).headers


def test_many_tools_and_any_names(stack, monkeypatch):
    """The built-in model's context is small, so its template tells of the tools by their names only."""
    source = "{% for t in tools or [] %}{{ t.function.name[:9] }} {% endfor %}{{ messages[-1].content }}"
    template = ChatTemplate(SimpleNamespace(chat_templates={"default": source}, bos="", eos=""))
    template.abilities = lambda tools: asyncio.sleep(0, Abilities(tools=True, calls=True))
    monkeypatch.setattr(stack.served, "template", template)
    text = {"type": "string", "description": "what this is for " * 20}
    big = {"type": "object", "properties": {f"p{n}": text for n in range(4)}}
    names = ["server/read file " + "x" * 63, *(f"mcp__tools-{n}__do.it" for n in range(59))]
    tools = [{"type": "function", "function": {"name": name, "parameters": big}} for name in names]
    assert len(json.dumps(tools)) > 60 * 1200
    found = ask(stack, tools=tools)
    assert found.status_code == 200 and "x-hetero-relaxed" not in found.headers, found.text
    tools = [{"type": "function", "function": {"name": name, "parameters": TRUTH}} for name in names]
    named = {"type": "function", "function": {"name": names[0]}}
    called = ask(stack, tools=tools, tool_choice=named, max_tokens=80)
    assert called.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == names[0]
    asyncio.run_coroutine_threadsafe(template.close(), stack._loop).result(30)


def test_tools_together_with_a_schema(stack):
    shaped = {"type": "json_schema", "json_schema": {"name": "x", "schema": TOOL["function"]["parameters"]}}
    kinds = set()
    for seed in range(12):
        found = ask(stack, tools=[TOOL], response_format=shaped, seed=seed, max_tokens=60, temperature=2.0)
        message = found.json()["choices"][0]["message"]
        calls = message.get("tool_calls")
        assert set(json.loads(calls[0]["function"]["arguments"] if calls else message["content"])) == {"ok"}
        kinds.add(bool(calls))
    assert len(kinds) == 2


def test_a_call_streams_and_may_be_cut_short(stack):
    tool = {"type": "function", "function": {"name": "say", "parameters": {
        "type": "object", "properties": {"w": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 40}},
        "required": ["w"], "additionalProperties": False}}}  # fmt: skip
    body = {"messages": HI, "tools": [tool], "tool_choice": "required", "max_tokens": 40, "seed": 1}
    whole = httpx.post(stack.url + CHAT, json=body, timeout=60).json()["choices"][0]
    assert whole["finish_reason"] == "length" and whole["message"]["content"] is None
    call = whole["message"]["tool_calls"][0]["function"]
    assert call["name"] == "say" and call["arguments"].startswith('{"w":["')
    with httpx.stream("POST", stack.url + CHAT, json={**body, "stream": True}, timeout=60) as found:
        deltas = [json.loads(line[6:])["choices"][0] for line in found.iter_lines() if line.startswith("data: {")]
    calls = [delta["delta"]["tool_calls"][0] for delta in deltas if delta["delta"].get("tool_calls")]
    assert calls[0]["function"]["name"] == "say" and calls[0]["id"] and len(calls) > 1
    assert "".join(c["function"]["arguments"] for c in calls) == call["arguments"]
    assert deltas[-1]["finish_reason"] == "length"


def test_strictness_can_be_had(stack, monkeypatch):
    from dataclasses import replace

    monkeypatch.setattr(stack.served, "options", replace(stack.served.options, strict=True))
    for fields in ({"nonsense": 1}, {"max_tokens": -1}, {"max_tokens": 6.0}, {"stream": "yes"}, {"top_p": -1}):
        found = ask(stack, **fields)
        assert found.status_code == 400 and next(iter(fields)) in found.json()["error"]["message"], found.text
    assert ask(stack, model="gpt-4o").status_code == 404 and ask(stack).status_code == 200


def test_sampling_defaults(stack):
    props = httpx.get(f"{stack.url}/props").json()["default_generation_settings"]["params"]
    assert {k: props[k] for k in ("temperature", "top_k", "top_p", "min_p")} == {
        "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}  # fmt: skip
    said = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
    one, two = ask(stack, TEXT, seed=9, max_tokens=40), ask(stack, TEXT, seed=9, max_tokens=40, **said)
    assert one.json()["choices"][0]["text"] == two.json()["choices"][0]["text"]


def test_arguments_are_an_object_whatever_the_schema(stack):
    for parameters in ({}, {"properties": {"ok": {"type": "boolean"}}}):
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        named = {"type": "function", "function": {"name": "f"}}
        for seed in range(4):
            found = ask(stack, tools=[tool], tool_choice=named, seed=seed, max_tokens=30)
            message = found.json()["choices"][0]["message"]
            assert message["content"] is None and message["tool_calls"][0]["function"]["arguments"].startswith("{")


def test_a_prompt_is_weighed_once(stack):
    body = {"prompt": "def f(x):\n" * 20, "echo": True, "logprobs": 2, "n": 4, "max_tokens": 2, "seed": 1}
    choices = ask(stack, TEXT, **body).json()["choices"]
    first = choices[0]["logprobs"]["token_logprobs"]
    assert len(first) > 80 and all(c["logprobs"]["token_logprobs"][:-2] == first[:-2] for c in choices)
    much = ask(stack, TEXT, prompt=[body["prompt"] * 4] * 64, echo=True, logprobs=20, max_tokens=1)
    assert much.status_code == 400 and "524288 is the most" in much.json()["error"]["message"]


def test_nothing_but_the_prompt(stack):
    found = ask(stack, TEXT, max_tokens=0).json()
    assert found["choices"][0]["text"] == "" and found["usage"]["completion_tokens"] == 0
    warm = httpx.post(f"{stack.url}/completion", json={"prompt": "a b", "n_predict": 0}, timeout=60).json()
    assert warm["content"] == "" and warm["tokens_predicted"] == 0
