"""openai: chat completions, completions and responses."""

from typing import Literal

import openai
import pytest
from common import ASKED, ENDS, FORCED, PLAIN, RESULT, SCHEMA, TOOL, check
from pydantic import BaseModel

R_TOOL = {"type": "function", "strict": True, **TOOL["function"]}


class Report(BaseModel):
    city: Literal["Rome", "Oslo"]
    celsius: bool


@pytest.fixture(scope="module")
def client(url, key):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120) as made:
        yield made


def ask(client, model, **fields):
    return client.chat.completions.create(
        **{"model": model, "messages": [{"role": "user", "content": ASKED}], "max_completion_tokens": PLAIN, **fields}
    )


def test_models(client, model):
    assert model in [each.id for each in client.models.list()]
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_chat(client, model):
    answer = ask(client, model)
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert choice.finish_reason in ENDS and answer.object == "chat.completion"
    assert answer.usage.prompt_tokens > 0 and answer.usage.completion_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_streamed(client, model):
    whole = ask(client, model, temperature=0, seed=1).choices[0].message.content
    chunks = list(ask(client, model, temperature=0, seed=1, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert next(c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason) in ENDS
    assert not chunks[-1].choices and chunks[-1].usage.completion_tokens > 0
    assert len({c.id for c in chunks}) == 1


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_chat_tools(client, model, choice):
    asked = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False, "max_completion_tokens": FORCED}
    first = ask(client, model, **asked).choices[0]
    (call,) = first.message.tool_calls
    assert (
        first.finish_reason == "tool_calls" and call.type == "function" and call.function.name == "weather" and call.id
    )
    check(call.function.arguments)
    said = [
        {"role": "user", "content": ASKED},
        first.message,
        {"role": "tool", "tool_call_id": call.id, "content": RESULT},
    ]
    second = ask(client, model, messages=said, tools=[TOOL], tool_choice="none")
    assert isinstance(second.choices[0].message.content, str) and second.choices[0].finish_reason in ENDS


def test_chat_tools_streamed_through_the_clients_accumulator(client, model):
    said = [{"role": "user", "content": ASKED}]
    with client.chat.completions.stream(
        model=model,
        messages=said,
        tools=[TOOL | {"function": {**TOOL["function"], "strict": True}}],
        tool_choice="required",
        parallel_tool_calls=False,
        max_completion_tokens=FORCED,
    ) as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    (call,) = answer.choices[0].message.tool_calls
    check(call.function.parsed_arguments)
    assert answer.choices[0].finish_reason == "tool_calls"


def test_chat_structured(client, model):
    answer = client.chat.completions.parse(
        model=model, messages=[{"role": "user", "content": ASKED}], response_format=Report, max_completion_tokens=FORCED
    )
    assert answer.choices[0].finish_reason == "stop" and isinstance(answer.choices[0].message.parsed, Report)


def test_completions(client, model):
    asked = {"model": model, "prompt": "import", "max_tokens": 5, "temperature": 0, "seed": 1}
    answer = client.completions.create(**asked, logprobs=1)
    assert answer.object == "text_completion" and answer.usage.completion_tokens > 0
    assert len(answer.choices[0].logprobs.tokens) == len(answer.choices[0].logprobs.token_logprobs) > 0
    streamed = client.completions.create(**asked, stream=True)
    assert "".join(c.choices[0].text for c in streamed if c.choices) == answer.choices[0].text


def test_responses(client, model):
    answer = client.responses.create(model=model, input=ASKED, instructions="Be brief.", max_output_tokens=PLAIN)
    assert answer.object == "response" and answer.status in ("completed", "incomplete")
    assert answer.output[0].type == "message" and answer.output[0].content[0].type == "output_text"
    assert answer.output_text == answer.output[0].content[0].text
    assert answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_responses_streamed(client, model):
    said = [{"role": "user", "content": [{"type": "input_text", "text": ASKED}]}]
    with client.responses.stream(model=model, input=said, max_output_tokens=PLAIN) as stream:
        events = list(stream)
    final = events[-1].response  # get_final_response() knows response.completed only
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == final.output_text
    for kind in (
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ):
        assert kinds.count(f"response.{kind}") == 1


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_responses_tools(client, model, choice):
    said = [{"role": "user", "content": ASKED}]
    asked = {"model": model, "tools": [R_TOOL], "parallel_tool_calls": False, "max_output_tokens": FORCED}
    first = client.responses.create(**asked, input=said, tool_choice=choice)
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert first.status == "completed" and call.name == "weather" and call.call_id
    check(call.arguments)
    said += first.output
    said.append({"type": "function_call_output", "call_id": call.call_id, "output": RESULT})
    second = client.responses.create(**asked | {"max_output_tokens": PLAIN}, input=said, tool_choice="none")
    assert second.output[-1].type == "message" and isinstance(second.output_text, str)


def test_responses_tools_streamed(client, model):
    with client.responses.stream(
        model=model,
        input=ASKED,
        tools=[R_TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=FORCED,
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    deltas = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
    (done,) = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert deltas == done.arguments == final.output[-1].arguments
    check(deltas)


def test_responses_structured(client, model):
    answer = client.responses.parse(model=model, input=ASKED, text_format=Report, max_output_tokens=FORCED)
    assert isinstance(answer.output_parsed, Report)
    fmt = {"type": "json_schema", "name": "report", "schema": SCHEMA, "strict": True}
    check(client.responses.create(model=model, input=ASKED, text={"format": fmt}, max_output_tokens=FORCED).output_text)


def test_errors(client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, model, temperature="warm")
    assert caught.value.status_code == 400 and isinstance(caught.value.body, dict) and caught.value.body["message"]
