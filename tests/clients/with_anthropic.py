"""anthropic: messages."""

from typing import Literal

import anthropic
import pytest
from common import ASKED, FORCED, PLAIN, RESULT, SCHEMA, check
from pydantic import BaseModel

TOOL = {"name": "weather", "description": "The weather of a city", "input_schema": SCHEMA}
ENDS = ("end_turn", "max_tokens", "stop_sequence")


class Report(BaseModel):
    city: Literal["Rome", "Oslo"]
    celsius: bool


@pytest.fixture(scope="module")
def client(url, key):
    with anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=120) as made:
        yield made


def ask(client, model, **fields):
    return client.messages.create(
        **{"model": model, "messages": [{"role": "user", "content": ASKED}], "max_tokens": PLAIN, **fields}
    )


def test_chat(client, model):
    answer = ask(client, model, system="Be brief.")
    assert answer.type == "message" and answer.role == "assistant" and answer.id and answer.stop_reason in ENDS
    assert [block.type for block in answer.content] == ["text"] and isinstance(answer.content[0].text, str)
    assert answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0


def test_bearer(url, key, model):
    """As ANTHROPIC_AUTH_TOKEN sends it: Authorization, no x-api-key."""
    with anthropic.Anthropic(base_url=url, auth_token=key, max_retries=0) as client:
        assert ask(client, model).stop_reason in ENDS


def test_chat_streamed(client, model):
    asked = {"model": model, "messages": [{"role": "user", "content": ASKED}], "max_tokens": PLAIN}
    asked["extra_body"] = {"temperature": 0}  # since anthropic 2 no argument of its own
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason and final.usage.output_tokens == whole.usage.output_tokens > 0
    kinds = [event.type for event in client.messages.create(**asked, stream=True)]
    kinds = [kind for kind in kinds if kind != "ping"]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) <= {"content_block_delta"}


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}], ids=["any", "named"])
def test_tools(client, model, choice):
    choice = {**choice, "disable_parallel_tool_use": True}
    first = ask(client, model, tools=[TOOL], tool_choice=choice, max_tokens=FORCED)
    (call,) = [block for block in first.content if block.type == "tool_use"]
    assert first.stop_reason == "tool_use" and call.name == "weather" and call.id
    check(call.input)
    said = [
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": RESULT}]},
    ]
    second = ask(client, model, messages=said, tools=[TOOL], tool_choice={"type": "none"})
    assert second.stop_reason in ENDS and second.content[-1].type == "text"
    # The result as blocks, an error, and text after it.
    said[2]["content"] = [
        {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "no"}], "is_error": True},
        {"type": "text", "text": "And in Oslo?", "cache_control": {"type": "ephemeral"}},
    ]
    assert ask(client, model, messages=said, tools=[TOOL], tool_choice={"type": "none"}).stop_reason in ENDS


def test_tools_streamed(client, model):
    with client.messages.stream(
        model=model,
        messages=[{"role": "user", "content": ASKED}],
        max_tokens=FORCED,
        tools=[TOOL],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    ) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    (call,) = [block for block in final.content if block.type == "tool_use"]
    assert check("".join(parts)) == check(call.input) and final.stop_reason == "tool_use"


@pytest.mark.parametrize("threads", [True, False], ids=["threads", "whole"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "unstreamed"])
def test_tool_runner(client, model, threads, stream):
    """By default the runner sends ``thread: {"type": "create"}`` and then only what is new; it sends all of it without
    that field once the server answers 400 with details.error_code = "thread_unsupported_request"."""
    called = []

    @anthropic.beta_tool
    def weather(celsius: bool) -> str:
        """The weather."""
        called.append(celsius)
        return RESULT

    fields = {} if threads else {"thread": False}
    runner = client.beta.messages.tool_runner(
        model=model,
        max_tokens=FORCED,
        messages=[{"role": "user", "content": ASKED}],
        tools=[weather],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        max_iterations=2,
        stream=stream,
        **fields,
    )
    messages = [each.get_final_message() if stream else each for each in runner]
    assert len(messages) == 2 and all(each.stop_reason == "tool_use" for each in messages)
    assert called and isinstance(called[0], bool)


def test_structured(client, model):
    answer = client.messages.parse(
        model=model, messages=[{"role": "user", "content": ASKED}], max_tokens=FORCED, output_format=Report
    )
    assert isinstance(answer.parsed_output, Report)


def test_count_tokens(client, model):
    said = [{"role": "user", "content": ASKED}]
    assert client.messages.count_tokens(model=model, messages=said, tools=[TOOL]).input_tokens > 0


def test_models(client, model):
    assert model in [each.id for each in client.models.list()]


def test_errors(client, model):
    with pytest.raises(anthropic.BadRequestError) as caught:
        ask(client, model, max_tokens=0)
    body = caught.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error" and body["error"]["message"]
