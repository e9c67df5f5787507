"""Anthropic's Messages requests, as chats."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field

from hetero.errors import RequestError
from hetero.gateway.requests.fields import ThinkingSwitch
from hetero.gateway.requests.messages import Parts
from hetero.gateway.requests.reading import Body
from hetero.workers.wire.messages import MAX_STOPS, MAX_TOKENS


class AnthropicTool(Body):
    name: str
    description: str | None = None
    input_schema: dict[str, Any] = {"type": "object", "properties": {}}


class OutputFormat(Body):
    type: str = "text"
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class OutputConfig(Body):
    format: OutputFormat | None = None
    effort: str | None = None


class MessagesRequest(Body):
    """POST /v1/messages. Messages and tools are looked at when they are made a chat's."""

    model: str = ""
    messages: Annotated[list[dict[str, Any]], Field(fail_fast=True, min_length=1, max_length=8192)]
    system: Parts = []
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] = 4096
    stop_sequences: Annotated[list[str], Field(fail_fast=True, max_length=MAX_STOPS)] = []
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=512)] = []
    tool_choice: dict[str, Any] = {"type": "auto"}
    thinking: ThinkingSwitch | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    thread: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None


def as_chat(asked: MessagesRequest) -> tuple[dict[str, Any], list[str], list[str]]:
    """The body of the same chat in OpenAI's words; the path that each of its messages came from; and what was ignored.
    Raises RequestError."""
    if asked.thread is not None:  # clients send all of it when they are told so
        details = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
        raise RequestError("thread: nothing is stored here: send the whole conversation", "thread", details=details)
    messages: list[dict[str, Any]] = []
    paths: list[str] = []
    if text := "\n\n".join(part.text for part in asked.system):
        messages.append({"role": "system", "content": text})
        paths.append("system")
    for n, message in enumerate(asked.messages):
        for each in _messages(message, f"messages.{n}"):
            messages.append(each)
            paths.append(f"messages.{n}")
    if messages[-1]["role"] == "assistant" and messages[-1].get("content"):
        messages[-1]["prefix"] = True
    tools, ignored = _tools(asked.tools)
    chat: dict[str, Any] = {
        "model": asked.model,
        "messages": messages,
        "max_tokens": asked.max_tokens,
        "stop": asked.stop_sequences,
        "stream": asked.stream,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "tools": tools,
        "tool_choice": asked.tool_choice if tools else None,
        "parallel_tool_calls": not asked.tool_choice.get("disable_parallel_tool_use", False),
    }
    if asked.thinking is not None and asked.thinking.type in ("enabled", "disabled"):
        chat["enable_thinking"] = asked.thinking.type == "enabled"
        chat["reasoning_budget"] = asked.thinking.budget_tokens if chat["enable_thinking"] else 0
    config = asked.output_config or OutputConfig()
    form = asked.output_format or config.format
    if form is not None and form.schema_ is not None:
        chat["response_format"] = {"type": "json_schema", "json_schema": {"schema": form.schema_}}
    if config.effort:
        chat["reasoning_effort"] = config.effort
    return chat, paths, ignored


def _tools(asked: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The functions among them; tools that Anthropic runs itself, and whose schemas it knows, are left out."""
    tools, ignored = [], []
    for n, tool in enumerate(asked):
        if "input_schema" not in tool and tool.get("type", "custom") != "custom":
            ignored.append(f"tools.{n}")
            continue
        function = {"name": tool.get("name"), "description": tool.get("description")}
        tools.append({"type": "function", "function": {**function, "parameters": tool.get("input_schema")}})
    return tools, ignored


def _messages(message: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """One message as one or more of a chat: results of tools are messages of their own there."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise RequestError(f"{path}.role: must be 'user' or 'assistant'", "messages")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise RequestError(f"{path}.content: must be text or a list of blocks", "messages")
    found: list[dict[str, Any]] = []
    parts: list[Any] = []
    calls: list[dict[str, Any]] = []
    reasoning = ""
    for n, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use":
            function = {
                "name": block.get("name"),
                "arguments": json.dumps(block.get("input") or {}, ensure_ascii=False),
            }
            calls.append({"id": block.get("id"), "function": function})
        elif kind == "tool_result":
            inner = block.get("content")
            if block.get("is_error") and isinstance(inner, str):
                inner = f"Error: {inner}"
            found.append(
                {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": "" if inner is None else inner}
            )
        elif kind in ("thinking", "redacted_thinking"):
            reasoning += block.get("thinking") or ""
        elif isinstance(block, dict):
            parts.append(block)
        else:
            raise RequestError(f"{path}.content.{n}: must be an object with a type", "messages")
    if role == "assistant":
        return [{"role": role, "content": parts, "tool_calls": calls, "reasoning_content": reasoning or None}]
    return [*found, {"role": role, "content": parts}] if parts or not found else found
