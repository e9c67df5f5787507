"""What an answer must obey, as a grammar that the library can do: a schema, calls of functions, or both.

What it cannot do is relaxed, and told.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hetero.errors import RequestError
from hetero.gateway.chat.formats import Format
from hetero.gateway.chat.grammars import GrammarProbe
from hetero.gateway.chat.lark import calls_grammar, output_grammar
from hetero.gateway.requests.openai import ChatRequest, OpenRequest
from hetero.gateway.requests.reading import printable
from hetero.gateway.requests.tools import Function
from hetero.workers.wire.messages import MAX_GRAMMAR

_ANY = {"type": "object"}
_LOOKED_AT = 6.0  # seconds in which a request's tools are looked at; the others' arguments are any JSON
_MOST_SAID = 400  # characters of a header on what was relaxed


@dataclass
class Relaxed:
    """What of the schemas could not be kept."""

    said: list[str] = field(default_factory=list)

    @property
    def headers(self) -> dict[str, str]:
        """Those that tell of it."""
        text = "; ".join(self.said)
        return {"x-hetero-relaxed": printable(text, _MOST_SAID)} if text else {}


async def constrained(probe: GrammarProbe, body: OpenRequest, relaxed: Relaxed, gap: bool = False) -> str:
    """The grammar of outputs under the request's own constraint, "" without one; ``gap``: reasoning may come first.
    Raises RequestError and Busy."""
    found = await _constraint(probe, body, relaxed)
    return "" if found is None else await _own(probe, found, gap)


async def answer_grammar(probe: GrammarProbe, body: ChatRequest, form: Format, relaxed: Relaxed) -> str:
    """The grammar a chat's answer must obey; "" for free text. Raises RequestError and Busy."""
    gap = bool(form.end_of_thinking())
    constraint = await _constraint(probe, body, relaxed)
    tools = [tool.function for tool in body.offered]
    if not tools:
        return "" if constraint is None else await _own(probe, constraint, gap)
    kept = []
    end = time.monotonic() + _LOOKED_AT
    for tool in tools:
        found = await probe.relaxed(tool.parameters) if time.monotonic() < end else ""
        schema, lost = (_ANY, ["all of it"]) if isinstance(found, str) else found
        if schema.get("type", "object") != "object":  # arguments are one
            schema, lost = _ANY, ["all of it"]
        schema = {"type": "object", **schema}
        if lost:
            relaxed.said.append(f"{tool.name}: {', '.join(lost)}")
        kept.append(Function(name=tool.name, parameters=schema))
    wanted = constraint[:2] if constraint is not None else None
    needed = body.tool_choice.mode == "required"
    several = body.parallel_tool_calls and not body.tool_choice.names  # a named function is called once
    for each in (kept, [Function(name=tool.name, parameters=_ANY) for tool in kept]):
        grammar = _built(lambda: calls_grammar(form, each, needed, several, gap, wanted), "tools")  # noqa: B023
        if grammar and len(grammar) <= MAX_GRAMMAR and await probe.objection(grammar) is None:
            return grammar
        if not grammar:
            break
        relaxed.said.append("all tools: their schemas are too much together")
    relaxed.said += ["tools: the model calls them as it likes"] + ["tool_choice"] * needed
    return "" if constraint is None else await _own(probe, constraint, gap)


async def _constraint(probe: GrammarProbe, body: OpenRequest, relaxed: Relaxed) -> tuple[str, Any, str] | None:
    """The request's own, in a form the library can do."""
    found = body.constraint
    if found is None or found[0] != "json":
        return found
    _, schema, field_ = found
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{field_}: it is not JSON: {error}", field_) from None
    if not isinstance(schema, dict):
        return "json", schema, field_  # what is wrong with it is told when it is compiled
    usable = await probe.relaxed(schema)
    if isinstance(usable, str):
        raise RequestError(f"{field_}: the schema cannot be used: {usable}", field_)
    if usable[1]:
        relaxed.said.append(f"{field_}: {', '.join(usable[1])}")
    return "json", usable[0], field_


def _built(make: Callable[[], str], param: str) -> str:
    try:
        found = make()
        found.encode()
    except (ValueError, RecursionError) as error:  # half a surrogate pair among them
        raise RequestError(f"{param}: the schema cannot be used: {error}", param) from None
    return found


async def _own(probe: GrammarProbe, constraint: tuple[str, Any, str], gap: bool) -> str:
    """The grammar of a constraint alone."""
    kind, value, param = constraint
    grammar = _built(lambda: output_grammar((kind, value), gap), param)
    if len(grammar) > MAX_GRAMMAR:
        raise RequestError(f"{param}: the schema's {len(grammar)} characters are more than {MAX_GRAMMAR}", param)
    if (wrong := await probe.objection(grammar)) is not None:
        raise RequestError(f"{param}: the schema cannot be used: {wrong}", param)
    return grammar
