"""instructor: structured output by tools and by JSON schema, over OpenAI's and Anthropic's APIs."""

from typing import Literal

import pytest
from common import ASKED, FORCED
from pydantic import BaseModel, ConfigDict

instructor = pytest.importorskip("instructor")
openai = pytest.importorskip("openai")


class Report(BaseModel):
    """What is told of a city."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Rome", "Oslo"]
    celsius: bool


SAID = [{"role": "user", "content": ASKED}]
MODES = [
    m
    for m in ("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "JSON", "MD_JSON", "RESPONSES_TOOLS")
    if hasattr(instructor.Mode, m)
]


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA", "RESPONSES_TOOLS"])
def test_structured(url, key, model, mode):
    raw = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    client = instructor.from_openai(raw, mode=getattr(instructor.Mode, mode))
    limit = {"max_output_tokens": FORCED} if mode.startswith("RESPONSES") else {"max_tokens": FORCED}
    found, answer = client.chat.completions.create_with_completion(
        model=model, response_model=Report, messages=SAID, max_retries=0, **limit
    )
    assert isinstance(found, Report)
    assert answer.usage.total_tokens > 0


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_partial(url, key, model, mode):
    raw = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    client = instructor.from_openai(raw, mode=getattr(instructor.Mode, mode))
    parts = list(
        client.chat.completions.create_partial(model=model, response_model=Report, messages=SAID, max_tokens=FORCED)
    )
    assert parts and parts[-1].city in ("Rome", "Oslo") and isinstance(parts[-1].celsius, bool)


def test_anthropic(url, key, model):
    anthropic = pytest.importorskip("anthropic")
    client = instructor.from_anthropic(anthropic.Anthropic(base_url=url, api_key=key, max_retries=0))
    found = client.messages.create(model=model, response_model=Report, messages=SAID, max_tokens=FORCED, max_retries=0)
    assert isinstance(found, Report)
