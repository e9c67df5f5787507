"""Ollama's requests, as chats and completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from hetero.errors import RequestError
from hetero.gateway.requests.reading import Body, meaning_none

# Options of Ollama's, by the fields they are here; others (num_ctx, num_gpu, ...) are for loading a model.
_OPTIONS = {
    "temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "seed": "seed", "stop": "stop",
    "repeat_penalty": "repeat_penalty", "repeat_last_n": "repeat_last_n", "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty", "typical_p": "typical_p", "mirostat": "mirostat", "tfs_z": "tfs_z",
}  # fmt: skip


class _OllamaRequest(Body):
    model: str = ""
    stream: bool = True
    format: Annotated[str | dict[str, Any] | None, meaning_none("")] = None
    options: dict[str, Any] = {}
    think: bool | str | None = None
    keep_alive: Any = None
    logprobs: bool = False
    top_logprobs: int | None = None

    def shared(self) -> tuple[dict[str, Any], list[str]]:
        """The fields of OpenAI's that these are, and which options are ignored. Raises RequestError."""
        found: dict[str, Any] = {"model": self.model, "stream": self.stream}
        for name, own in _OPTIONS.items():
            if name in self.options:
                found[own] = self.options[name]
        if self.logprobs:
            found |= self.probable()
        most = self.options.get("num_predict")
        if isinstance(most, int | float) and most > 0:
            found["max_tokens"] = most
        if self.format == "json":
            found["response_format"] = {"type": "json_object"}
        elif isinstance(self.format, dict):
            found["response_format"] = {"type": "json_schema", "json_schema": {"schema": self.format}}
        elif self.format is not None:
            raise RequestError("format: must be 'json' or a JSON schema", "format")
        return found, [f"options.{name}" for name in self.options if name not in _OPTIONS and name != "num_predict"]

    def probable(self) -> dict[str, Any]:
        """The fields that ask for logprobs."""
        return {"logprobs": True, "top_logprobs": self.top_logprobs or 0}

    def thinking(self) -> dict[str, Any]:
        """What a chat's template is told of it."""
        if isinstance(self.think, bool):
            return {"enable_thinking": self.think}
        return {"reasoning_effort": self.think} if self.think else {}


class OllamaChat(_OllamaRequest):
    """POST /api/chat."""

    messages: Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=4096)] = []
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=512)] = []

    def as_chat(self) -> tuple[dict[str, Any], list[str], list[str]]:
        """The body of the same chat, the paths its messages came from, and what is ignored. Raises RequestError."""
        found, ignored = self.shared()
        messages = [_message(message, f"messages.{n}") for n, message in enumerate(self.messages)]
        if messages[-1].get("role") == "assistant" and messages[-1].get("content"):
            messages[-1]["prefix"] = True  # as Ollama does
        chat = {**found, **self.thinking(), "messages": messages, "tools": self.tools}
        return chat, [f"messages.{n}" for n in range(len(messages))], ignored


class OllamaGenerate(_OllamaRequest):
    """POST /api/generate."""

    prompt: str = ""
    suffix: Annotated[str | None, meaning_none("")] = None
    images: list[Any] = []
    system: str = ""
    template: str = ""
    context: list[int] = []
    raw: bool = False

    def as_chat(self) -> tuple[dict[str, Any], list[str], list[str]]:
        """As a chat of one question. Raises RequestError."""
        found, ignored = self._own()
        messages = [{"role": "system", "content": self.system}] * bool(self.system)
        messages.append({"role": "user", "content": self.prompt})
        return {**found, **self.thinking(), "messages": messages}, ["system", "prompt"][-len(messages) :], ignored

    def as_completion(self) -> tuple[dict[str, Any], list[str]]:
        """As a completion of the very prompt. Raises RequestError."""
        found, ignored = self._own()
        if self.logprobs:
            del found["top_logprobs"]
            found["logprobs"] = self.top_logprobs or 0
        return {"max_tokens": -1, **found, "prompt": self.prompt}, ignored

    def _own(self) -> tuple[dict[str, Any], list[str]]:
        for field in ("suffix", "images", "template", "context"):
            if getattr(self, field):
                raise RequestError(f"{field}: this server cannot do that: leave it out", field)
        return self.shared()


def _message(message: dict[str, Any], path: str) -> dict[str, Any]:
    if message.get("images"):
        raise RequestError(f"{path}.images: images are not supported: this model reads text only", "messages")
    found = {key: value for key, value in message.items() if key not in ("images", "thinking", "tool_name")}
    if message.get("thinking"):
        found["reasoning_content"] = message["thinking"]
    if message.get("tool_name"):
        found["name"] = message["tool_name"]
    return found
