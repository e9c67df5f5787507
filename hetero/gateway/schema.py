"""Request bodies, checked field by field; what is not supported is refused by name."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from workers.wire.messages import MAX_TOKENS, Sampling

_SEED = (1 << 63) - 1
# Fields of OpenAI's API with the values that ask for nothing special; others are refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "logprobs": (None, False, 0),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "suffix": (None, ""),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "store": (None, False),
}
_IGNORED = ("user", "metadata")  # they do not change an answer


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    include_usage: bool = False


Text = Annotated[str, Field(max_length=1 << 24)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]


class _Request(_Strict):
    """What both completion routes share."""

    model: str = ""
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=(1 << 31) - 1)] = 0
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    seed: Annotated[int, Field(ge=-_SEED - 1, le=_SEED)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _unsupported(cls, body: Any) -> Any:
        """Drop fields that ask for nothing; the strict check then names any other as not supported."""
        if not isinstance(body, dict):
            return body
        kept = {}
        for key, value in body.items():
            if key in _IGNORED or (
                key in _NEUTRAL and any((value == v and type(value) is not bool) or value is v for v in _NEUTRAL[key])
            ):
                continue
            kept[key] = value
        # An explicit null asks for the default, as with OpenAI.
        return {key: value for key, value in kept.items() if value is not None}

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    def sampling(self) -> Sampling:
        """The request's sampling; without a seed it gets one from the OS, kept for replays."""
        seed = secrets.randbits(63) if self.seed is None else self.seed & _SEED
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, seed, 0)


class CompletionRequest(_Request):
    """POST /v1/completions."""

    prompt: Text


class TextPart(_Strict):
    type: Literal["text"]
    text: Text


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(max_length=4096)]
    name: str | None = None

    @field_validator("content", mode="after")
    @classmethod
    def _joined(cls, content: str | list[TextPart]) -> str:
        return content if isinstance(content, str) else "".join(part.text for part in content)


class ChatRequest(_Request):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
