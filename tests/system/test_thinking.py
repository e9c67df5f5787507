"""A model that thinks: the built-in one under a template that opens reasoning, which it never closes by itself."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import httpx
import pytest
from helpers.running_server import RunningServer

from hetero.gateway.chat.template import ChatTemplate

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
)
HI = [{"role": "user", "content": "hi"}]
TRUTH = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
SHAPE = {"type": "json_schema", "json_schema": {"name": "x", "schema": TRUTH}}
TOOL = {"type": "function", "function": {"name": "feed", "parameters": TRUTH}}


@pytest.fixture(scope="module")
def stack():
    made = RunningServer(exact=True, strategy="serial", port=0)
    template = made.served.template = ChatTemplate(
        SimpleNamespace(chat_templates={"default": THINKING}, bos="", eos="")
    )
    yield made
    made.settled()
    asyncio.run_coroutine_threadsafe(template.close(), made._loop).result(30)
    made.close()


def ask(stack: RunningServer, **fields: object) -> dict:
    body = {"messages": HI, "max_tokens": 60, "seed": 1, "ignore_eos": True, **fields}
    found = httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=120)
    assert found.status_code == 200, found.text
    return found.json()


def test_reasoning_is_told_apart_and_ends_with_its_budget(stack):
    for budget in (0, 7):
        found = ask(stack, reasoning_budget=budget, chat_template_kwargs={"enable_thinking": True})
        message = found["choices"][0]["message"]
        assert bool(message.get("reasoning_content")) == (budget > 0) and message["content"]
        assert "think>" not in str(message)
        plain = ask(stack, reasoning_budget=budget, chat_template_kwargs={"enable_thinking": True}, speculation=False)
        assert plain["choices"][0]["message"] == message  # whatever the drafter
    endless = ask(stack)["choices"][0]
    assert endless["message"]["content"] == "" and endless["message"]["reasoning_content"]
    assert endless["finish_reason"] == "length"
    assert 50 < ask(stack)["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 60
    without = ask(stack, enable_thinking=False)["choices"][0]["message"]
    assert without["content"] and "reasoning_content" not in without


def test_grammars_and_tools_begin_after_it(stack):
    found = ask(stack, reasoning_budget=9, response_format=SHAPE, max_tokens=120)["choices"][0]
    assert set(json.loads(found["message"]["content"])) == {"ok"} and found["finish_reason"] == "stop"
    assert found["message"]["reasoning_content"]
    called = ask(
        stack, reasoning_budget=9, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "feed"}}
    )
    message = called["choices"][0]["message"]
    assert message["reasoning_content"] and message["content"] is None
    assert set(json.loads(message["tool_calls"][0]["function"]["arguments"])) == {"ok"}


def test_it_streams_in_every_dialect(stack):
    body = {"messages": HI, "max_tokens": 40, "seed": 1, "stream": True, "reasoning_budget": 9, "ignore_eos": True}
    text = httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=60).text
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in text.splitlines() if line.startswith("data: {")]
    kinds = [key for delta in deltas for key in ("reasoning_content", "content") if delta.get(key)]
    assert kinds == sorted(kinds, reverse=True) and {"reasoning_content", "content"} == set(kinds)
    thinking = {"type": "enabled", "budget_tokens": 9}
    found = httpx.post(
        f"{stack.url}/v1/messages", json={"messages": HI, "max_tokens": 40, "thinking": thinking}, timeout=60
    )
    assert [block["type"] for block in found.json()["content"]] == ["thinking", "text"]
    asked = {"input": "hi", "max_output_tokens": 40, "reasoning": {"max_tokens": 9}}
    items = httpx.post(f"{stack.url}/v1/responses", json=asked, timeout=60).json()["output"]
    assert [item["type"] for item in items] == ["reasoning", "message"]
    told = {"messages": HI, "stream": False, "options": {"num_predict": 20}}
    assert httpx.post(f"{stack.url}/api/chat", json=told, timeout=60).json()["message"]["thinking"]
