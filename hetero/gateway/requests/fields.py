"""Single fields of requests: how each may be written, and what that means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from hetero.gateway.requests.messages import Parts
from hetero.gateway.requests.reading import Body, meaning_none
from hetero.workers.wire.messages import MAX_STOPS, MAX_TOKENS

_RANDOM_SEEDS = (-1, (1 << 32) - 1, (1 << 64) - 1)  # -1, also as unsigned numbers have it
_MOST_BIASED = 1024  # tokens of logit_bias
_MOST_STOPS = 8192  # bytes of stop strings
MOST_CHOICES = 128  # of a request, over all its prompts


def _listed(value: Any) -> Any:
    """A text as a list of one; empty texts ask for nothing."""
    found = [value] if isinstance(value, str) else value
    return [each for each in found if each not in ("", None)] if isinstance(found, list) else found


def _stops(value: list[str]) -> list[str]:
    if sum(len(stop.encode(errors="replace")) for stop in value) > _MOST_STOPS:
        raise ValueError(f"the stop strings have more than {_MOST_STOPS} bytes together")
    return value


def _prompts(value: Any) -> Any:
    """A prompt of any kind as a list of prompts."""
    single = isinstance(value, str) or (isinstance(value, list) and value and type(value[0]) in (int, float, bool))
    return [value] if single else value


def _prompt(value: Any) -> str | list[int]:
    if isinstance(value, str):
        if len(value) > 1 << 24:
            raise ValueError(f"it has more than {1 << 24} characters")
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("a prompt must be text or a list of token ids")
    if len(value) > MAX_TOKENS:
        raise ValueError(f"it has more than {MAX_TOKENS} tokens")
    for token in value:
        whole = type(token) is int or (type(token) is float and token.is_integer())
        if not whole or not 0 <= token < 1 << 31:
            raise ValueError("token ids must be whole numbers of 0 and more")
    return [int(token) for token in value]


def _bias(value: Any) -> Any:
    """OpenAI's object or llama-server's list of pairs; false means never."""
    if isinstance(value, list):
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
            raise ValueError("must be an object of token ids and numbers")
        value = {str(token): bias for token, bias in value}
    if not isinstance(value, dict):
        raise ValueError("must be an object of token ids and numbers")
    if len(value) > _MOST_BIASED:
        raise ValueError(f"{len(value)} tokens are more than {_MOST_BIASED}")
    if not all(isinstance(token, str) and token.isdecimal() and len(token) < 10 for token in value):
        raise ValueError("its keys must be token ids")
    return {token: -100.0 if bias is False else bias for token, bias in value.items()}


Text = Annotated[str, Field(max_length=1 << 24)]
Prompt = Annotated[
    Any,
    AfterValidator(_prompt),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}]}
    ),
]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


Prompts = Annotated[
    list[Prompt], Field(fail_fast=True, min_length=1, max_length=MOST_CHOICES), BeforeValidator(_prompts)
]
Stops = Annotated[
    list[Annotated[str, Field(max_length=1024)]],
    Field(fail_fast=True, max_length=MAX_STOPS),
    BeforeValidator(_listed),
    AfterValidator(_stops),
]
Bias = Annotated[
    dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]],
    BeforeValidator(_bias),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}}),
]
Seed = Annotated[int | None, meaning_none(*_RANDOM_SEEDS), WithJsonSchema({"type": "integer"})]
Budget = Annotated[Annotated[int, Field(ge=-1, le=MAX_TOKENS)] | None, meaning_none(-1)]
Factor = Annotated[Annotated[float, Field(ge=0.01, le=100.0)] | None, meaning_none(0, -1)]
Share = Annotated[Annotated[float, Field(ge=0.0, le=1.0)] | None, meaning_none(-1)]


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_windows: Annotated[
        bool, Field(description="hetero's own: each chunk tells of the window that brought it")
    ] = False


class JsonSchema(Body):
    name: str = ""
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = {}
    strict: bool | None = None


class ResponseFormat(Body):
    """Plain text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None  # llama-server's

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None and self.schema_ is None:
            raise ValueError("json_schema is missing: type 'json_schema' needs it")
        return self

    def schema_of(self) -> dict[str, Any] | None:
        """The JSON schema the output must have; None for free text."""
        if self.type == "text":
            return None
        if self.json_schema is not None:
            return self.json_schema.schema_
        return self.schema_ if self.schema_ is not None else {"type": "object"}


class StructuredOutputs(Body):
    """vLLM's: one of them."""

    json_: Annotated[dict[str, Any] | Text | None, Field(alias="json")] = None
    regex: Text | None = None
    grammar: Text | None = None
    choice: Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=4096)] | None = None


class Prediction(Body):
    """What the output may be like; its tokens become drafts."""

    type: Literal["content"] = "content"
    content: Parts


class Reasoning(Body):
    """OpenRouter's and others'."""

    effort: str | None = None
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    enabled: bool | None = None


class ThinkingSwitch(Body):
    """Anthropic's and others'."""

    type: str = ""
    budget_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None


def predicted(prediction: Prediction | None) -> str:
    """The text of a prediction."""
    return "".join(part.text for part in prediction.content) if prediction is not None else ""
