"""openai-agents: over responses and over chat completions. Its runner sets tool_choice back after a call."""

import asyncio
from typing import Literal

import pytest
from agents import (
    Agent,
    AgentOutputSchema,
    ModelBehaviorError,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from common import ASKED, FORCED, PLAIN, RESULT
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)
CALLED = []


class Report(BaseModel):
    city: Literal["Rome", "Oslo"]
    celsius: bool


@function_tool
def weather(city: Literal["Rome", "Oslo"], celsius: bool) -> str:
    """The weather of a city."""
    CALLED.append((city, celsius))
    return RESULT


@pytest.fixture(params=[OpenAIResponsesModel, OpenAIChatCompletionsModel], ids=["responses", "chat"])
def llm(request, url, key, model):
    return lambda: request.param(model, AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0))


def agent(llm, **fields):
    settings = {"max_tokens": FORCED, "parallel_tool_calls": None, "include_usage": True, **fields.pop("settings", {})}
    return Agent(name="a", instructions="Be brief.", model=llm(), model_settings=ModelSettings(**settings), **fields)


def run(made, said, stream=False, turns=1):
    """A run's result. Over responses the runner refuses one that is incomplete, so a free answer of a toy model is
    none."""

    async def told():
        if not stream:
            return await Runner.run(made, said, max_turns=turns), []
        running = Runner.run_streamed(made, said, max_turns=turns)
        return running, [event async for event in running.stream_events()]

    return asyncio.run(told())


def test_chat(llm):
    made = agent(llm, settings={"max_tokens": PLAIN})
    try:
        found, _ = run(made, ASKED)
    except ModelBehaviorError as exc:
        assert isinstance(made.model, OpenAIResponsesModel) and "incomplete" in str(exc)
        return
    assert isinstance(found.final_output, str)
    assert found.raw_responses[0].usage.output_tokens > 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("choice", ["required", "weather"])
def test_tools(llm, choice, stream):
    """The forced call and the tool's run; then its result goes back, and the answer is JSON, which a toy model ends."""
    CALLED.clear()
    settings = {"tool_choice": choice, "parallel_tool_calls": False}
    made = agent(llm, tools=[weather], tool_use_behavior="stop_on_first_tool", settings=settings)
    found, events = run(made, ASKED, stream)
    assert len(CALLED) == 1 and CALLED[0][0] in ("Rome", "Oslo") and isinstance(CALLED[0][1], bool)
    assert [item.type for item in found.new_items] == ["tool_call_item", "tool_call_output_item"]
    assert found.final_output == RESULT
    if stream:
        raw = [event.data for event in events if event.type == "raw_response_event"]
        deltas = "".join(each.delta for each in raw if each.type == "response.function_call_arguments.delta")
        assert deltas == found.new_items[0].raw_item.arguments
    answer = agent(llm, output_type=AgentOutputSchema(Report, strict_json_schema=True))
    second, events = run(answer, found.to_input_list(), stream)
    assert isinstance(second.final_output, Report) and second.raw_responses[0].usage.output_tokens > 0
    if stream:
        raw = [event.data for event in events if event.type == "raw_response_event"]
        text = "".join(each.delta for each in raw if each.type == "response.output_text.delta")
        assert Report.model_validate_json(text) == second.final_output
