"""litellm: its openai/, hosted_vllm/, text-completion-openai/, anthropic/ and ollama_chat/ providers, and its Responses
API."""

import litellm
import pytest
from common import ASKED, ENDS, FORCED, PLAIN, RESULT, SCHEMA, TOOL, check

SAID = [{"role": "user", "content": ASKED}]
PROVIDERS = ["openai", "hosted_vllm", "anthropic", "ollama_chat"]
FORCING = PROVIDERS[:3]  # Ollama's API has no tool_choice


@pytest.fixture(scope="module")
def ask(url, key, model):
    def asked(provider, **fields):
        base = f"{url}/v1" if provider in ("openai", "hosted_vllm") else url
        return litellm.completion(
            **{
                "model": f"{provider}/{model}",
                "messages": SAID,
                "api_base": base,
                "api_key": key,
                "max_tokens": PLAIN,
                "num_retries": 0,
                "max_retries": 0,
                "timeout": 120,
                **fields,
            }
        )

    return asked


@pytest.mark.parametrize("provider", PROVIDERS)
def test_chat(ask, provider):
    answer = ask(provider)
    assert answer.choices[0].message.role == "assistant" and isinstance(answer.choices[0].message.content, str)
    assert answer.choices[0].finish_reason in ENDS
    assert answer.usage.prompt_tokens > 0 and answer.usage.completion_tokens > 0


@pytest.mark.parametrize("provider", PROVIDERS)
def test_chat_streamed(ask, provider):
    chunks = list(ask(provider, stream=True, stream_options={"include_usage": True}))
    built = litellm.stream_chunk_builder(chunks, messages=SAID)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == (built.choices[0].message.content or "")
    assert built.choices[0].finish_reason in ENDS and built.usage.completion_tokens > 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("provider", FORCING)
def test_tools(ask, provider, stream):
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        first = ask(
            provider, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False, max_tokens=FORCED, stream=stream
        )
        if stream:
            first = litellm.stream_chunk_builder(list(first), messages=SAID)
        (call,) = first.choices[0].message.tool_calls
        assert first.choices[0].finish_reason == "tool_calls" and call.function.name == "weather" and call.id
        check(call.function.arguments)
    said = [*SAID, first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
    second = ask(provider, messages=said, tools=[TOOL], tool_choice="none")
    assert second.choices[0].finish_reason in ENDS


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "ollama_chat"])
def test_structured(ask, provider):
    """anthropic/ makes a tool call of it where it does not know the model, and then reads it back."""
    fmt = {"type": "json_schema", "json_schema": {"name": "report", "schema": SCHEMA, "strict": True}}
    check(ask(provider, response_format=fmt, max_tokens=FORCED).choices[0].message.content)


def test_text_completion(url, key, model):
    answer = litellm.text_completion(
        model=f"text-completion-openai/{model}", prompt="import", api_base=f"{url}/v1", api_key=key, max_tokens=5
    )
    assert isinstance(answer.choices[0].text, str) and answer.usage.completion_tokens > 0


def test_responses(url, key, model):
    asked = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": key}
    tool = {"type": "function", **TOOL["function"]}
    said = [{"role": "user", "content": ASKED}]
    first = litellm.responses(
        **asked, input=said, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_output_tokens=FORCED
    )
    (call,) = [item for item in first.output if item.type == "function_call"]
    check(call.arguments)
    said.append({"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments})
    said.append({"type": "function_call_output", "call_id": call.call_id, "output": RESULT})
    events = list(litellm.responses(**asked, input=said, max_output_tokens=PLAIN, stream=True))
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert events[-1].response.usage.output_tokens > 0
