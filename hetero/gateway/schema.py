"""Request bodies, checked field by field; what is not supported is refused by name."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hetero.workers.wire.messages import MAX_LOGPROBS, MAX_TOKENS, Sampling

_SEED = (1 << 63) - 1
_MOST_BIASED = 1024  # tokens of logit_bias
_MOST_CHOICES = 128  # of a request, over all its prompts
_MOST_PARTS = 100_000  # lists, objects and their fields, in a body
# Fields of OpenAI's API with the values that ask for nothing special; others are refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "suffix": (None, ""),
    "store": (None, False),
    "modalities": (None, ["text"]),
    "service_tier": (None, "auto", "default"),
}
_IGNORED = ("user", "metadata", "safety_identifier", "prompt_cache_key")  # they do not change an answer


class _Strict(BaseModel):
    """Unknown fields are refused. One complaint is enough: a body of a million mistakes must not make a million."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = next((key for key in body if key not in known), None)
        return {key: value for key, value in body.items() if key in known or key is unknown}


def _check_parts(body: dict[str, Any]) -> None:
    """Raise ValueError for a body of so many parts that looking at each would take seconds."""
    count, left = 0, [body]
    while left:
        part = left.pop()
        count += len(part) if isinstance(part, dict) else 0
        for each in part.values() if isinstance(part, dict) else part:
            if count > _MOST_PARTS:
                raise ValueError(f"more than {_MOST_PARTS} lists, objects and fields")
            if type(each) in (dict, list):
                count += 1
                left.append(each)


class StreamOptions(_Strict):
    include_usage: bool = False
    include_windows: bool = Field(False, description="hetero's own: each chunk tells of the window that brought it")


Text = Annotated[str, Field(max_length=1 << 24)]
Ids = Annotated[
    list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(fail_fast=True, min_length=1, max_length=MAX_TOKENS)
]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class JsonSchema(_Strict):
    name: str = ""
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = {}
    strict: bool | None = None


class ResponseFormat(_Strict):
    """Plain text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is wanted with type 'json_schema', and only there")
        return self

    def schema_of(self) -> dict[str, Any] | None:
        """The JSON schema the output must have; None for free text."""
        if self.type == "text":
            return None
        return self.json_schema.schema_ if self.json_schema is not None else {"type": "object"}


class OpenRequest(_Strict):
    """What both completion routes share."""

    model: str = ""
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=(1 << 31) - 1)] = 0
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100.0, le=100.0)]] = {}
    seed: Annotated[int, Field(ge=-_SEED - 1, le=_SEED)] | None = None
    n: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] = 1
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=16)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    speculation: bool = Field(True, description="hetero's own: false decodes plainly, for comparison")

    @model_validator(mode="before")
    @classmethod
    def _unsupported(cls, body: Any) -> Any:
        """Drop fields that ask for nothing; the strict check then names any other as not supported."""
        if not isinstance(body, dict):
            return body
        _check_parts(body)
        kept = {}
        for key, value in body.items():
            if key in _IGNORED or (
                key in _NEUTRAL and any((value == v and type(value) is not bool) or value is v for v in _NEUTRAL[key])
            ):
                continue
            kept[key] = value
        bias = kept.get("logit_bias")
        if isinstance(bias, dict) and len(bias) > _MOST_BIASED:
            raise ValueError(f"logit_bias: {len(bias)} tokens are more than {_MOST_BIASED}")
        # An explicit null asks for the default, as with OpenAI.
        return {key: value for key, value in kept.items() if value is not None}

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def wanted_logprobs(self) -> int:
        """How many likeliest tokens to report beside each; -1: no logprobs."""
        return -1

    def samplings(self, prompts: int) -> list[list[Sampling]]:
        """Per prompt the sampling of each choice; without a seed they get one from the OS, kept for replays."""
        seed = secrets.randbits(63) if self.seed is None else self.seed & _SEED
        bias = [(int(token), value) for token, value in self.logit_bias.items()]
        one = (self.temperature, self.top_k, self.top_p, self.min_p, seed)
        more = (self.presence_penalty, self.frequency_penalty, bias, self.wanted_logprobs)
        return [[Sampling(*one, choice, *more) for choice in range(self.n)] for _ in range(prompts)]


class CompletionRequest(OpenRequest):
    """POST /v1/completions."""

    prompt: (
        Text
        | Ids
        | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=_MOST_CHOICES)]
        | Annotated[list[Ids], Field(fail_fast=True, min_length=1, max_length=_MOST_CHOICES)]
    )
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each as text or as token ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    @property
    def wanted_logprobs(self) -> int:
        return -1 if self.logprobs is None else self.logprobs

    @model_validator(mode="after")
    def _together(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs is not supported: a prompt's own logprobs are not computed")
        if len(self.prompts) * self.n > _MOST_CHOICES:
            raise ValueError(f"n times the prompts exceeds {_MOST_CHOICES} choices")
        return self


class TextPart(_Strict):
    type: Literal["text"]
    text: Text


class FunctionCall(_Strict):
    name: Annotated[str, Field(max_length=256)]
    arguments: Text


class ToolCall(_Strict):
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True, max_length=4096)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=1024)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None

    @field_validator("content", mode="after")
    @classmethod
    def _joined(cls, content: str | list[TextPart] | None) -> str | None:
        return "".join(part.text for part in content) if isinstance(content, list) else content

    @model_validator(mode="after")
    def _said(self) -> ChatMessage:
        if self.content is None:
            if not self.tool_calls:
                raise ValueError("content is missing")
            self.content = ""  # templates join it to other text
        return self


class Function(_Strict):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] = {"type": "object", "properties": {}}
    strict: bool | None = None


class Tool(_Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(_Strict):
    name: str


class NamedTool(_Strict):
    type: Literal["function"]
    function: NamedFunction


class ChatRequest(OpenRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=128)] = []
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True

    @property
    def wanted_logprobs(self) -> int:
        return (self.top_logprobs or 0) if self.logprobs else -1

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs = true")
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("tools: two functions have one name")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice: 'required' needs tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError("tool_choice: no tool has that name")
        if names and self.tool_choice != "none" and self.response_format and self.response_format.type != "text":
            raise ValueError("response_format: not together with tools; set tool_choice to 'none'")
        return self
