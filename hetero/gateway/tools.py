"""Function calls: what the model is told of the tools, the grammar of its calls, and reading them back.

Calls are written as Hermes and Qwen models do, ``<tool_call>{"name": ..., "arguments": ...}</tool_call>``. With
``tool_choice`` "auto" the model may write free text around them; "required" or a named tool allows calls only.
"""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hetero.gateway.schema import ChatMessage, ChatRequest, NamedTool, Tool
from hetero.workers.sampling.grammar import calls_grammar, tagged_grammar

_LONGEST = 1 << 20  # characters of a call's arguments that are read
_BEGIN, _END = "<tool_call>", "</tool_call>"


def rendered(message: ChatMessage) -> dict[str, Any]:
    """A message as chat templates want it: the arguments of calls as objects, since templates write them as JSON."""
    found = message.model_dump(exclude_none=True)
    for call in found.get("tool_calls", []):
        if len(call["function"]["arguments"]) > _LONGEST:
            continue
        with suppress(ValueError, RecursionError):
            if isinstance(arguments := json.loads(call["function"]["arguments"]), dict):
                call["function"]["arguments"] = arguments
    return found


def offered(request: ChatRequest) -> list[Tool]:
    """The tools the model may call."""
    choice = request.tool_choice
    if choice == "none":
        return []
    if isinstance(choice, NamedTool):
        return [tool for tool in request.tools if tool.function.name == choice.function.name]
    return request.tools


def grammar_of(request: ChatRequest) -> str:
    """The grammar of an answer that may call tools; "" where none are offered."""
    tools = offered(request)
    if not tools:
        return ""
    calls = []
    for tool in tools:
        head = f'\n{{"name": {json.dumps(tool.function.name)}, "arguments": '
        calls.append((head, tool.function.parameters, f"}}\n{_END}"))
    if request.tool_choice == "auto":
        return tagged_grammar(_BEGIN, calls)
    several = request.parallel_tool_calls and request.tool_choice == "required"
    return calls_grammar([(_BEGIN + head, schema, tail) for head, schema, tail in calls], several)


def instructions(tools: list[Tool]) -> str:
    """What a model is told whose chat template does not speak of tools."""
    listed = "\n".join(json.dumps(tool.model_dump(exclude_none=True), ensure_ascii=False) for tool in tools)
    return (
        f"You may call these functions:\n<tools>\n{listed}\n</tools>\nTo call one, answer with\n{_BEGIN}\n"
        f'{{"name": <function name>, "arguments": <arguments as JSON>}}\n{_END}'
    )


@dataclass
class CallReader:
    """Reads calls out of an answer as it grows: what is text may be shown at once, calls only when complete."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    _held: str = ""
    _after: bool = False  # a call: the line ends between it and what follows are not shown

    def feed(self, text: str) -> str:
        """Take more of the answer, return what of it is text."""
        self._held += text
        shown = ""
        while (begin := self._held.find(_BEGIN)) >= 0:
            shown += self._text(self._held[:begin])
            self._held = self._held[begin:]
            end = self._held.find(_END)
            if end < 0:
                return shown
            inside, rest = self._held[len(_BEGIN) : end], self._held[end + len(_END) :]
            if self._call(inside):
                self._after = True
            else:
                shown += self._text(self._held[: end + len(_END)])
            self._held = rest
        keep = next((n for n in range(len(_BEGIN) - 1, 0, -1) if self._held.endswith(_BEGIN[:n])), 0)
        shown += self._text(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return shown

    def finish(self) -> str:
        """What is left when the answer ends: a call cut short is text."""
        rest, self._held = self._held, ""
        return self._text(rest)

    def _text(self, text: str) -> str:
        text = text.lstrip("\n") if self._after else text
        self._after = self._after and not text
        return text

    def _call(self, inside: str) -> bool:
        try:
            found = json.loads(inside)
            name, arguments = found["name"], json.dumps(found["arguments"], ensure_ascii=False)
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        self.calls.append(
            {
                "id": f"call_{secrets.token_hex(12)}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
        )
        return True
