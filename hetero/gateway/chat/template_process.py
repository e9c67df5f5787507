"""A process that renders chats by a model's template, sandboxed, and may die of it (``chat.template``)."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hetero.placement.errors import one_line
from hetero.workers.models.confined import answer_lines, limit_memory
from hetero.workers.models.tokenizer import LONGEST_TEXT

_LARGEST = 1 << 20  # characters of a template
_MEMORY = 512 << 20  # bytes it may take


class _Generation(Extension):
    """``{% generation %}`` marks what a model says itself, for its training: here it is only what is inside."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Renderer:
    """One compiled template."""

    def __init__(self, source: str, names: dict[str, str]) -> None:
        """``names``: variables it always has. What is wrong with it is told of each chat."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_raise, strftime_now=lambda form: datetime.now().strftime(form))
        self._names, self._template, self._broken = names, None, ""
        try:
            if len(source) > _LARGEST:
                raise jinja2.TemplateError(f"it has {len(source)} characters, more than {_LARGEST}")
            self._template = environment.from_string(source)
        except Exception as error:  # jinja2 hands Python what it then cannot compile, too
            self._broken = f"cannot be used ({_said(error)}): ask /v1/completions"

    def render(
        self, messages: list[dict[str, Any]], tools: Any = None, more: dict[str, Any] | None = None, go_on: bool = False
    ) -> tuple[str, str]:
        """(The prompt, what is wrong): one of them is ""."""
        if self._template is None:
            return "", self._broken
        given = {
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": not go_on,
            **self._names,
            **(more or {}),
        }
        parts, size = [], 0
        try:
            for part in self._template.generate(**given):
                parts.append(part)
                size += len(part)
                if size > LONGEST_TEXT:
                    return "", f"makes more than {LONGEST_TEXT} characters of them"
        except Exception as error:  # whatever its program does
            return "", f"refuses them: {_said(error)}"
        text = "".join(parts)
        if not go_on:
            return text, ""
        last = messages[-1].get("content")
        last = last if isinstance(last, str) else "".join(part["text"] for part in last or [])
        at = text.rfind(last.strip())
        if at < 0:
            return "", "does not show the last message as it is, so it cannot be gone on with"
        end = at + len(last.strip())
        tail = last[len(last.rstrip()) :]
        return text[:end] + (tail if text[end:].startswith(tail) else ""), ""

    def abilities(self) -> dict[str, bool]:
        """What it does with small chats (``template.Abilities``)."""
        user: dict[str, Any] = {"role": "user", "content": "PROBE-USER"}
        said = {"role": "assistant", "content": "PROBE-SAID"}
        system = {"role": "system", "content": "PROBE-SYSTEM"}

        def shown(chat: list[dict[str, Any]], *words: str, tools: Any = None) -> bool:
            text, wrong = self.render(chat, tools)
            return not wrong and all(word in text for word in words)

        parts = not shown([user], "PROBE-USER") and shown([_in_parts(user)], "PROBE-USER")
        if parts:
            user, said, system = _in_parts(user), _in_parts(said), _in_parts(system)
        found = {
            "parts": parts,
            "system": shown([system, user], "PROBE-SYSTEM", "PROBE-USER"),
            "anywhere": shown([user, said, system, user], "PROBE-SYSTEM", "PROBE-SAID"),
            "repeats": shown([user, user], "PROBE-USER") and shown([user, said, said, user], "PROBE-SAID"),
            "opens_with_assistant": shown([said, user], "PROBE-SAID", "PROBE-USER"),
        }
        tool = {"type": "function", "function": {"name": "probe_tool", "description": "", "parameters": _PARAMETERS}}
        found["tools"] = shown([user], "probe_tool", tools=[tool])
        result: dict[str, Any] = {"role": "tool", "name": "probe_tool", "content": "PROBE-RESULT"}
        arguments: list[Any] = [{"probe_key": "probe value"}, '{"probe_key": "probe value"}']
        # How a call may be written, likeliest first: arguments as an object or as text, ids of any kind or of nine.
        for nine in (False, True):
            name = "abcdefghi" if nine else "call_0123456789abcdef"
            for texts in (False, True):
                function = {"name": "probe_tool", "arguments": arguments[texts]}
                call = {"id": name, "type": "function", "function": function}
                chat: list[dict[str, Any]] = [user, {"role": "assistant", "content": "", "tool_calls": [call]}]
                answered = [*chat, {**result, "tool_call_id": name}]
                for offered in ([tool], None):
                    if shown(answered, "probe_tool", '"probe_key"', tools=offered) or (
                        shown(answered, "probe_tool", "probe_key", "probe value", tools=offered)
                        and not shown(answered, "'probe_key'", tools=offered)
                    ):
                        results = shown(answered, "PROBE-RESULT", tools=offered)
                        return {**found, "calls": True, "results": results, "texts": texts, "nine": nine}
        return {**found, "calls": False, "results": False, "texts": False, "nine": False}


_PARAMETERS = {"type": "object", "properties": {"probe_key": {"type": "string"}}, "required": ["probe_key"]}


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _said(error: Exception) -> str:
    return one_line(str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    """JSON as models were trained on it, as transformers writes it: not escaped for HTML, keys in their order."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def _begin(greeting: Any) -> Callable[[Any], tuple[Any, str]]:
    renderer = Renderer(*greeting)
    limit_memory(_MEMORY)
    return lambda question: (renderer.abilities(), "") if question is None else renderer.render(*question)


if __name__ == "__main__":
    answer_lines(_begin)
