"""OpenAI's Responses requests, as chats. Nothing is stored: each request brings the whole conversation."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from hetero.errors import RequestError
from hetero.gateway.requests.fields import Budget, Reasoning, ResponseFormat, Tokens
from hetero.gateway.requests.reading import Body, meaning_none
from hetero.workers.wire.messages import MAX_LOGPROBS

_STORED = ("previous_response_id", "conversation", "prompt")
# Items of a conversation that only say what a server did; models were told of it in the messages after.
_NO_MATTER = ("web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "mcp_list_tools",
              "mcp_approval_request", "mcp_approval_response", "compaction")  # fmt: skip
_CALLS = ("function_call", "custom_tool_call", "local_shell_call", "mcp_call")


def _format(value: Any) -> Any:
    """The Responses API has a schema's fields beside its type."""
    if isinstance(value, dict) and value.get("type") == "json_schema" and "json_schema" not in value:
        inner = {key: value[key] for key in ("name", "description", "schema", "strict") if key in value}
        return {"type": "json_schema", "json_schema": inner}
    return value


class TextSettings(Body):
    format: Annotated[ResponseFormat | None, BeforeValidator(_format)] = None
    verbosity: str | None = None


class ResponsesRequest(Body):
    """POST /v1/responses. Input and tools are looked at when they are made a chat's."""

    model: str = ""
    input: str | Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=16384)] = ""
    instructions: str | None = None
    max_output_tokens: Annotated[Tokens, meaning_none(-1, 0)] = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] = 0
    stream: bool = False
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=512)] = []
    tool_choice: Any = "auto"
    parallel_tool_calls: bool = True
    text: TextSettings | None = None
    reasoning: Reasoning | None = None
    reasoning_budget: Budget = None
    metadata: dict[str, Any] = {}
    store: bool | None = None
    include: list[str] = []
    truncation: str | None = None
    background: bool = False
    user: str | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    service_tier: str | None = None
    stream_options: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    max_tool_calls: int | None = None


def as_chat(asked: ResponsesRequest) -> tuple[dict[str, Any], list[str], list[str]]:
    """The body of the same chat in OpenAI's older words; the path that each of its messages came from; and what was
    ignored. Raises RequestError."""
    for field in _STORED:
        if getattr(asked, field):
            raise RequestError(f"{field}: nothing is stored here: send the whole conversation as input", field)
    if asked.background:
        raise RequestError(
            "background: nothing is stored here: leave it out, and take the answer at once", "background"
        )
    messages: list[dict[str, Any]] = []
    paths: list[str] = []
    if asked.instructions:
        messages.append({"role": "system", "content": asked.instructions})
        paths.append("instructions")
    items = [{"role": "user", "content": asked.input}] if isinstance(asked.input, str) else asked.input
    for n, item in enumerate(items):
        made = _message(item, f"input.{n}")
        if made is None:
            continue
        if messages and messages[-1]["role"] == made["role"] == "assistant" and not _answered(messages[-1], made):
            _join(messages[-1], made)
            continue
        messages.append(made)
        paths.append(f"input.{n}")
    if not any(message["role"] != "system" for message in messages):
        raise RequestError("input: it is empty", "input")
    tools, ignored = [], []
    for n, tool in enumerate(asked.tools):
        if tool.get("type") == "function":
            tools.append(tool)
        else:
            ignored.append(f"tools.{n}")
    chat: dict[str, Any] = {
        "model": asked.model,
        "messages": messages,
        "max_completion_tokens": asked.max_output_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "stream": asked.stream,
        "tools": tools,
        "tool_choice": asked.tool_choice if tools else None,
        "parallel_tool_calls": asked.parallel_tool_calls,
        "reasoning_budget": asked.reasoning_budget,
    }
    if asked.reasoning is not None:
        chat["reasoning"] = asked.reasoning.model_dump(exclude_none=True)
    if asked.text is not None and asked.text.format is not None:
        chat["response_format"] = asked.text.format.model_dump(exclude_none=True)
    if asked.top_logprobs or "message.output_text.logprobs" in asked.include:
        chat |= {"logprobs": True, "top_logprobs": asked.top_logprobs}
    return chat, paths, ignored


def _message(item: dict[str, Any], path: str) -> dict[str, Any] | None:
    """One item as a message; None for those that say nothing."""
    kind = item.get("type", "message" if "role" in item else None)
    if kind == "message":
        return {"role": item.get("role"), "content": item.get("content")}
    if kind in _CALLS:
        arguments = item.get("arguments", item.get("input", item.get("action", "")))
        function = {"name": item.get("name", kind.removesuffix("_call")), "arguments": arguments}
        call = {"id": item.get("call_id") or item.get("id"), "function": function}
        return {"role": "assistant", "tool_calls": [call]}
    if isinstance(kind, str) and kind.endswith("_call_output"):
        output = item.get("output", "")
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": "" if output is None else output}
    if kind == "reasoning":
        thought = item.get("content") or item.get("summary") or []
        text = "".join(str(part.get("text", "")) for part in thought if isinstance(part, dict))
        return {"role": "assistant", "reasoning_content": text} if text else None
    if kind == "item_reference":
        raise RequestError(f"{path}: nothing is stored here: send the item itself", "input")
    if kind in _NO_MATTER:
        return None
    raise RequestError(f"{path}.type: items of type {kind!s:.40} are not supported", "input")


def _answered(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether two items of the assistant's are turns of their own: a text after calls is."""
    return bool(before.get("tool_calls")) and "content" in after


def _join(message: dict[str, Any], more: dict[str, Any]) -> None:
    """Items of one turn, reasoning, text and calls, as one message."""
    message["tool_calls"] = [*message.get("tool_calls", []), *more.get("tool_calls", [])]
    if "reasoning_content" in more:
        message["reasoning_content"] = message.get("reasoning_content", "") + more["reasoning_content"]
    if "content" in more:
        parts = [message[key] for message, key in ((message, "content"), (more, "content")) if message.get(key)]
        lists = [[part] if isinstance(part, str) else part for part in parts]
        message["content"] = [part for each in lists if isinstance(each, list) for part in each]
