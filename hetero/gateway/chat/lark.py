"""The grammars of answers, as llguidance's dialect of Lark has them: JSON of a schema, calls, or text with calls in
it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from hetero.gateway.chat.formats import CallFormat, Format
from hetero.gateway.requests.tools import Function

_HEAD = "%llguidance {}\n"
_TEXT = "TEXT: /(.|\\n)*/"
_XML_END = "\n</parameter>\n"


def output_grammar(constraint: tuple[str, Any], gap: bool) -> str:
    """The grammar of outputs under a constraint (``OpenRequest.constraint``); ``gap``: after reasoning, where empty
    lines may come first. It may be invalid: ask ``Grammars.objection``. Raises ValueError."""
    kind, value = constraint
    if kind == "grammar":
        try:
            return str(LLMatcher.grammar_from_lark(any_to_lark(value)))
        except GbnfToLarkError as error:
            raise ValueError(str(error)) from None
    return _made([f"start: {_gap(gap)}answer", _answer(kind, value), _gap_rule(gap)])


def _answer(kind: str, value: Any) -> str:
    """The rule of an answer under a constraint. Raises ValueError."""
    match kind:
        case "json":
            return f"answer: {_json(json.loads(value) if isinstance(value, str) else value)}"
        case "regex":
            return f"answer: /{_regex(value)}/"
        case "choice":
            return "answer: " + " | ".join(json.dumps(each) for each in value)
    raise ValueError("a grammar of your own does not go together with tools: set tool_choice to 'none'")


def calls_grammar(
    form: Format,
    tools: Sequence[Function],
    needed: bool,
    several: bool,
    gap: bool,
    constraint: tuple[str, Any] | None = None,
) -> str:
    """The grammar of an answer that may call functions, or (``needed``) only calls them; otherwise free text, or what a
    ``constraint`` allows. "" where nothing can be told of how a model calls. Raises ValueError."""
    calls = form.calls
    if calls.style == "harmony":
        return ""
    if calls.style == "bare" and constraint is not None and constraint[0] == "json" and not needed:
        return _made([f"start: {_gap(gap)}answer", f"answer: {_json(_either(tools, constraint[1]))}", _gap_rule(gap)])
    heads = [_body(form, n, tool) for n, tool in enumerate(tools)]
    rules = [rule for rules in heads for rule in rules]
    every = "call: " + " | ".join(f"call_{n}" for n in range(len(tools)))
    begin = _literal(form, calls.begin)
    if needed or constraint is not None:
        if calls.style == "list":
            more = f" ({_literal(form, calls.gap)} call)*" if several else ""
            sequence = f'{begin} " "? "[" call{more} "]"'
        else:
            one = f"{begin} call" if begin else "call"
            sequence = f"{one} ({_literal(form, calls.gap)} {one})*" if several else one
        start = f"start: {_gap(gap)}calls" + ("" if needed else f" | {_gap(gap)}answer")
        answer = [] if constraint is None or needed else [_answer(*constraint)]
        return _made([start, f"calls: {sequence}", every, *answer, _gap_rule(gap), *rules])
    if calls.style == "bare":
        sequence = f"call ({_literal(form, calls.gap)} call)*" if several else "call"
        other = r"other: /([^{\s](.|\n)*)?/"
        return _made(
            [f"start: {_gap(gap)}calls | {_gap(gap)}other", f"calls: {sequence}", every, other, _gap_rule(gap), *rules]
        )
    if calls.style == "list":
        more = f" ({_literal(form, calls.gap)} call)*" if several else ""
        trigger = f"TEXT {begin}" if calls.begin in form.tokens else "begun"
        begun = "" if calls.begin in form.tokens else f"begun[lazy]: TEXT {json.dumps(calls.begin)}"
        return _made([f'start: {trigger} " "? "[" call{more} "]" | TEXT', begun, _TEXT, every, *rules])
    if calls.begin in form.tokens:
        return _made([f"start: TEXT ({begin} call){'*' if several else '?'}", _TEXT, every, *rules])
    return _made(
        [
            f"start: {'(begun call)*' if several else '(begun call) |'} TEXT",
            f"begun[lazy]: TEXT {json.dumps(calls.begin)}",
            _TEXT,
            every,
            *rules,
        ]
    )


def _body(form: Format, n: int, tool: Function) -> list[str]:
    """The rules of one call, without what it begins with."""
    calls, name = form.calls, json.dumps(tool.name)
    value = _json(tool.parameters)
    match calls.style:
        case "json":
            head, tail = f'\n{{"name": {name}, "{calls.arguments}": ', f"}}\n{calls.end}"
        case "list":
            head, tail = f'{{"name": {name}, "{calls.arguments}": ', "}"
        case "bare":
            head, tail = f'{{"name": {name}, "{calls.arguments}": ', "}"
        case "named":
            return [f"call_{n}: {json.dumps(tool.name)} {_literal(form, '[ARGS]')} {value}"]
        case _:
            return _xml(calls, n, tool)
    return [f"call_{n}: {json.dumps(head)} {value} {json.dumps(tail)}"]


def _either(tools: Sequence[Function], schema: Any) -> dict[str, Any]:
    """The schema of bare calls, or of an answer. As alternatives of a grammar they would not do: the library's lexer
    takes the longest word it can, here the beginning of a call."""
    schemas = [schema, *(tool.parameters for tool in tools)]
    found: list[dict[str, Any]] = [{"$ref": "#/$defs/s0"}]
    for n, tool in enumerate(tools, 1):
        properties = {"name": {"const": tool.name}, "parameters": {"$ref": f"#/$defs/s{n}"}}
        required = ["name", "parameters"]
        found.append({"type": "object", "properties": properties, "required": required, "additionalProperties": False})
    kept = {f"s{n}": _moved(each, f"#/$defs/s{n}") for n, each in enumerate(schemas)}
    return {"anyOf": found, "$defs": kept}


def _moved(schema: Any, to: str) -> Any:
    """A schema whose root lies elsewhere now."""
    if isinstance(schema, list):
        return [_moved(each, to) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _moved(value, to) for key, value in schema.items()}
    if isinstance(ref := schema.get("$ref"), str) and ref.startswith("#"):
        found["$ref"] = to + ref[1:]
    return found


def text_parameters(tool: Function) -> frozenset[str]:
    """The parameters whose values XML has as they are."""
    properties = tool.parameters.get("properties")
    named = properties.items() if isinstance(properties, dict) else ()
    return frozenset(name for name, kind in named if _is_text(kind))


def _is_text(kind: Any) -> bool:
    if not isinstance(kind, dict):
        return True
    if isinstance(choices := kind.get("enum"), list):
        return all(isinstance(each, str) for each in choices)
    shaped = not {"anyOf", "oneOf", "allOf", "$ref", "const"}.isdisjoint(kind)
    return str(kind.get("type", "" if shaped else "string")) == "string"


def _xml(calls: CallFormat, n: int, tool: Function) -> list[str]:
    """Qwen3-Coder's: texts as they are, other values as JSON, the parameters in their order."""
    schema = tool.parameters
    properties = schema.get("properties")
    required = schema.get("required")
    needed = required if isinstance(required, list) else []
    parts, rules = [], []
    for m, (name, kind) in enumerate(properties.items() if isinstance(properties, dict) else ()):
        kind = kind if isinstance(kind, dict) else {}
        inner = f"p_{n}_{m}"
        head = json.dumps(f"<parameter={name}>\n")
        if _is_text(kind) and "enum" in kind:
            value = "(" + " | ".join(json.dumps(each) for each in kind["enum"]) + f") {json.dumps(_XML_END)}"
        elif _is_text(kind):
            rules.append(f"{inner}_text[lazy]: TEXT {json.dumps(_XML_END)}")
            value = f"{inner}_text"
        else:
            more = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
            value = f"{_json({**kind, **more})} {json.dumps(_XML_END)}"
        rules.append(f"{inner}: {head} {value}")
        parts.append(inner if name in needed else f"{inner}?")
    head, tail = json.dumps(f"\n<function={tool.name}>\n"), json.dumps(f"</function>\n{calls.end}")
    return [f"call_{n}: {head} {' '.join(parts)} {tail}", *rules]


def _made(rules: list[str]) -> str:
    if any("TEXT " in rule or rule.endswith("TEXT") for rule in rules) and _TEXT not in rules:
        rules = [*rules, _TEXT]
    return str(LLMatcher.grammar_from_lark(_HEAD + "\n".join(rule for rule in rules if rule)))


def _json(schema: Any) -> str:
    # Free white space invites small models to write nothing else for ever.
    if isinstance(schema, dict):
        schema = {**schema, "x-guidance": {"whitespace_flexible": False}}
    return f"%json {json.dumps(schema)}"


def _literal(form: Format, text: str) -> str:
    """A text of the grammar; a marker without bytes is its token."""
    if text in form.tokens:
        return f"<[{form.tokens[text]}]>"
    return json.dumps(text) if text else ""


def _gap(gap: bool) -> str:
    return "GAP " if gap else ""


def _gap_rule(gap: bool) -> str:
    return r"GAP: /\n{0,2}/" if gap else ""


def _regex(text: str) -> str:
    """A regular expression between Lark's slashes."""
    return text.replace("\\/", "/").replace("/", "\\/").replace("\n", "\\n")
