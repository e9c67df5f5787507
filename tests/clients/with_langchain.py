"""langchain-openai: ChatOpenAI over chat completions and over responses."""

from typing import Literal

import pytest
from common import ASKED, FORCED, PLAIN, RESULT, check
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict


class Report(BaseModel):
    """What is told of a city."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Rome", "Oslo"]
    celsius: bool


@tool(args_schema=Report)
def weather(city: str, celsius: bool) -> str:
    """The weather of a city."""
    return RESULT


@pytest.fixture(scope="module", params=[False, True], ids=["chat", "responses"])
def make(request, url, key, model):
    def made(tokens, **fields):
        return ChatOpenAI(
            model=model,
            base_url=f"{url}/v1",
            api_key=key,
            max_tokens=tokens,
            max_retries=0,
            timeout=120,
            use_responses_api=request.param,
            **fields,
        )

    return made


def test_chat(make):
    answer = make(PLAIN).invoke(ASKED)
    assert isinstance(answer.text, str) and not answer.tool_calls
    assert answer.usage_metadata["input_tokens"] > 0 and answer.usage_metadata["output_tokens"] > 0


def test_chat_streamed(make):
    parts = list(make(PLAIN, stream_usage=True).stream(ASKED))
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    assert "".join(part.text for part in parts) == whole.text
    assert whole.usage_metadata["output_tokens"] > 0


@pytest.mark.parametrize("choice", ["any", "weather"])
def test_tools(make, choice):
    bound = make(FORCED).bind_tools([weather], tool_choice=choice, parallel_tool_calls=False)
    said = [HumanMessage(ASKED), bound.invoke(ASKED)]
    (call,) = said[-1].tool_calls
    assert call["name"] == "weather" and call["id"]
    check(call["args"])
    parts = list(bound.stream(ASKED))
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    check(whole.tool_calls[0]["args"])
    said.append(weather.invoke(call))
    assert isinstance(said[-1], ToolMessage)
    answer = make(PLAIN).bind_tools([weather], tool_choice="none").invoke(said)
    assert isinstance(answer.text, str) and not answer.tool_calls


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured(make, method):
    assert isinstance(make(FORCED).with_structured_output(Report, method=method).invoke(ASKED), Report)


def test_completions(url, key, model):
    answer = OpenAI(model=model, base_url=f"{url}/v1", api_key=key, max_tokens=5, max_retries=0).invoke("import")
    assert isinstance(answer, str)
