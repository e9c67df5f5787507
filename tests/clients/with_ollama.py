"""ollama: /api/chat, /api/generate, /api/tags, /api/show, /api/ps. The client has no tool_choice, so a call is made
up."""

import json

import ollama
import pytest
from common import ASKED, FORCED, PLAIN, RESULT, SCHEMA, TOOL, check

ENDS = ("stop", "length")


@pytest.fixture(scope="module")
def client(url, key):
    return ollama.Client(host=url, headers={"Authorization": f"Bearer {key}"}, timeout=120)


def ask(client, model, **fields):
    options = {"num_predict": PLAIN, "temperature": 0, "seed": 1, **fields.pop("options", {})}
    return client.chat(
        **{"model": model, "messages": [{"role": "user", "content": ASKED}], "options": options, **fields}
    )


def test_models(client, model):
    names = [each.model for each in client.list().models]
    assert model in names or f"{model}:latest" in names
    shown = client.show(model)
    assert shown.details is not None and shown.capabilities is not None and "completion" in shown.capabilities
    assert client.ps().models is not None
    with pytest.raises(ollama.ResponseError) as caught:
        client.embed(model, "x")
    assert caught.value.status_code == 501 and caught.value.error


def test_chat(client, model):
    answer = ask(client, model)
    assert answer.message.role == "assistant" and isinstance(answer.message.content, str)
    assert answer.done is True and answer.done_reason in ENDS and answer.created_at and answer.model
    assert answer.prompt_eval_count > 0 and answer.eval_count > 0 and answer.total_duration > 0
    parts = list(ask(client, model, stream=True))
    assert "".join(part.message.content or "" for part in parts) == answer.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == answer.eval_count


def test_generate(client, model):
    asked = {"model": model, "prompt": ASKED, "options": {"num_predict": PLAIN, "temperature": 0, "seed": 1}}
    answer = client.generate(**asked)
    assert answer.done and isinstance(answer.response, str) and answer.eval_count > 0
    assert "".join(part.response for part in client.generate(**asked, stream=True)) == answer.response


def test_tools(client, model):
    first = ask(client, model, tools=[TOOL])
    assert first.done and isinstance(first.message.content, str)
    call = {"function": {"name": "weather", "arguments": {"city": "Rome", "celsius": True}}}
    said = [
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "weather", "content": RESULT},
    ]
    second = ask(client, model, messages=said, tools=[TOOL])
    assert second.done and second.done_reason in ENDS and second.eval_count > 0


def test_tools_forced(client, model):
    """tool_choice is no field of Ollama's; a server may take it as an extension (the JS client sends it on)."""
    answer = client._client.post(
        "/api/chat",
        json={
            "model": model,
            "messages": [{"role": "user", "content": ASKED}],
            "tools": [TOOL],
            "tool_choice": "required",
            "stream": False,
            "options": {"num_predict": FORCED},
        },
    ).json()
    if not answer["message"].get("tool_calls"):
        pytest.skip("tool_choice is not known on /api/chat")
    call = answer["message"]["tool_calls"][0]["function"]
    assert call["name"] == "weather"
    assert isinstance(call["arguments"], dict)
    check(call["arguments"])


def test_structured(client, model):
    answer = ask(client, model, format=SCHEMA, options={"num_predict": FORCED})
    check(answer.message.content)
    assert answer.done_reason == "stop"
    answer = client.generate(model=model, prompt=ASKED, format=SCHEMA, options={"num_predict": FORCED})
    check(answer.response)
    streamed = ask(client, model, format=SCHEMA, options={"num_predict": FORCED}, stream=True)
    assert check(json.loads("".join(part.message.content or "" for part in streamed)))
