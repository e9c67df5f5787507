"""Chat messages as clients write them, or give back what an SDK made of an answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from hetero.gateway.requests.reading import Body

_LONGEST = 1 << 24  # characters
_PARTS = 4096
# Kinds of parts that carry text, by the field that holds it.
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_UNSEEN = {
    "image_url": "images are", "input_image": "images are", "image": "images are",
    "input_audio": "audio is", "audio": "audio is", "audio_url": "audio is",
    "file": "files are", "input_file": "files are", "document": "files are",
    "video_url": "videos are", "video": "videos are",
}  # fmt: skip
_REASONED = ("thinking", "reasoning", "reasoning_text", "redacted_thinking")


class Part(Body):
    """A part of a message; only text can be read."""

    type: str = "text"
    text: str = ""

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, part: Any) -> Any:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        if not isinstance(part, dict):
            raise ValueError("a part must be an object with a type")
        kind = part.get("type", "text" if "text" in part else None)
        if not isinstance(kind, str):
            raise ValueError("type is missing")
        if kind in _UNSEEN:
            raise ValueError(f"{_UNSEEN[kind]} not supported: this model reads text only")
        if kind in _REASONED:
            return {"type": kind, "text": part.get("thinking") or part.get("text") or ""}
        if kind not in _TEXTS:
            raise ValueError(f"parts of type {kind:.40} are not supported: send text")
        if not isinstance(text := part.get(_TEXTS[kind]), str):
            raise ValueError(f"{_TEXTS[kind]} is missing, or no text")
        return {**{key: value for key, value in part.items() if key != "cache_control"}, "type": "text", "text": text}


def _as_parts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _length(parts: list[Part]) -> list[Part]:
    if sum(len(part.text) for part in parts) > _LONGEST:
        raise ValueError(f"it has more than {_LONGEST} characters")
    return parts


_TEXT_SCHEMA = {"type": "object", "properties": {"type": {"const": "text"}, "text": {"type": "string"}}}
Parts = Annotated[
    list[Part],
    Field(fail_fast=True, max_length=_PARTS),
    BeforeValidator(_as_parts),
    AfterValidator(_length),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {**_TEXT_SCHEMA, "required": ["text"]}}]}),
]


class FunctionCall(Body):
    name: Annotated[str, Field(max_length=256)]
    arguments: Any = ""


class ToolCall(Body):
    id: Annotated[str, BeforeValidator(str)] = ""
    type: str = "function"
    index: int | None = None
    function: FunctionCall


Role = Literal["system", "developer", "user", "assistant", "tool"]


class ChatMessage(Body):
    """One message. ``text`` is what it says; ``reasoned`` what was thought before."""

    role: Annotated[Role, BeforeValidator(lambda role: "tool" if role == "function" else role)]
    content: Parts | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=1024)] = []
    tool_call_id: Annotated[str, BeforeValidator(str)] | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: str | None = None
    prefix: bool = False  # DeepSeek's and Mistral's: go on with it

    @model_validator(mode="before")
    @classmethod
    def _kept_out(cls, body: Any) -> Any:
        """What SDKs give back of an answer and that says nothing."""
        if not isinstance(body, dict):
            return body
        found = {k: v for k, v in body.items() if k not in ("annotations", "audio", "parsed", "id", "index")}
        if isinstance(call := found.pop("function_call", None), dict) and not found.get("tool_calls"):
            found["tool_calls"] = [{"function": call}]
        return found

    @model_validator(mode="after")
    def _said(self) -> ChatMessage:
        if self.content is None and self.refusal is None and self.role in ("system", "developer", "user"):
            raise ValueError("content is missing")
        return self

    @property
    def text(self) -> str:
        parts = self.content if self.content is not None else []
        return "".join(part.text for part in parts if part.type not in _REASONED) or self.refusal or ""

    @property
    def reasoned(self) -> str:
        given = next((each for each in (self.reasoning_content, self.reasoning) if isinstance(each, str)), "")
        return given or "".join(part.text for part in self.content or [] if part.type in _REASONED)
