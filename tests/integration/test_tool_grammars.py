"""Whatever a grammar of calls lets a model write, the reader reads: random walks through it, over the built-in
vocabulary."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from helpers.builtin_pair import TARGET

from hetero.gateway.chat import formats
from hetero.gateway.chat.formats import Format
from hetero.gateway.chat.lark import calls_grammar, output_grammar, text_parameters
from hetero.gateway.chat.reader import reader
from hetero.gateway.requests.tools import Function
from hetero.workers.models.grammar_probe import objection, usable
from hetero.workers.models.tokenizer import GgufTokenizer
from hetero.workers.sampling.grammar import Grammars

PERSON = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["cat", "dog"]}, "n": {"type": "integer", "maximum": 9}},
    "required": ["ok", "kind", "n"],
    "additionalProperties": False,
}
TOOLS = [
    Function(name="feed", parameters=PERSON), Function(name="server/read file " + "x" * 60, parameters={"type":
    "object", "properties": {"way": {"enum": ["a", "b"]}}, "required": ["way"], "additionalProperties": False}),
]  # fmt: skip
NESTED = {"type": "object", "properties": {"done": {"$ref": "#/$defs/truth"}}, "required": ["done"],
          "additionalProperties": False, "$defs": {"truth": {"type": "boolean"}}}  # fmt: skip
ANSWER = {
    "type": "object",
    "properties": {"done": {"type": "boolean"}},
    "required": ["done"],
    "additionalProperties": False,
}
CALLS = {
    "hermes": formats.HERMES, "xml": formats.XML, "mistral": formats.MISTRAL, "named": formats.MISTRAL_NAMED,
    "llama": formats.LLAMA,
}  # fmt: skip


@pytest.fixture(scope="module")
def words():
    return GgufTokenizer(TARGET).vocabulary


@pytest.fixture(scope="module")
def marked(words):
    """The vocabulary with two tokens more, which have no bytes: Mistral's markers."""
    size = len(words)
    names = {**words.names, size: b"[TOOL_CALLS]", size + 1: b"[ARGS]"}
    return replace(words, pieces=[*words.pieces, b"", b""], names=names)


def walk(vocabulary, grammar: str, rng: random.Random, most: int = 400) -> tuple[str, bool]:
    """A random output under a grammar, and whether it came to its end. Ends are taken where they may come."""
    found = Grammars(vocabulary.pieces, vocabulary.ends, vocabulary.encode).start(grammar)
    text = b""
    for _ in range(most):
        allowed = np.flatnonzero(found.allowed(len(vocabulary)))
        ends = [token for token in allowed if token in vocabulary.ends]
        if ends and (len(ends) == len(allowed) or rng.random() < 0.5):
            return text.decode(errors="replace"), True
        token = int(rng.choice([token for token in allowed if token not in vocabulary.ends]))
        text += vocabulary.named(token)
        found.commit(token)
        if found.complete:
            return text.decode(errors="replace"), True
    return text.decode(errors="replace"), False


def read(form: Format, text: str) -> tuple[str, list[tuple[str, object]]]:
    found = reader(form, tools={tool.name: text_parameters(tool) for tool in TOOLS})
    pieces = [*found.feed(text), *found.finish()]
    calls: list[list[str]] = []
    for piece in pieces:
        if piece.kind == "call":
            calls.append([piece.text, ""])
        elif piece.kind == "arguments":
            calls[piece.call][1] += piece.text
    shown = "".join(piece.text for piece in pieces if piece.kind == "text")
    return shown, [(name, json.loads(arguments)) for name, arguments in calls]


def check(calls) -> None:
    for name, arguments in calls:
        if name == "feed":
            assert set(arguments) == {"ok", "kind", "n"} and arguments["kind"] in ("cat", "dog")
            assert isinstance(arguments["ok"], bool) and arguments["n"] <= 9
        else:
            assert name == TOOLS[1].name and arguments["way"] in ("a", "b")


@pytest.mark.parametrize("style", CALLS)
@pytest.mark.parametrize("several", [False, True])
def test_calls_that_are_needed_are_all_there_is(words, marked, style, several):
    own = style in ("mistral", "named")
    vocabulary = marked if own else words
    tokens = {"[TOOL_CALLS]": len(words), "[ARGS]": len(words) + 1} if own else {}
    form = Format(CALLS[style], tokens=tokens)
    grammar = calls_grammar(form, TOOLS, True, several, False)
    assert objection(vocabulary, grammar) is None
    ended = 0
    for seed in range(12):
        text, whole = walk(vocabulary, grammar, random.Random(seed))
        if not whole:
            continue
        ended += 1
        shown, calls = read(form, text)
        assert not shown and len(calls) >= 1 and (several or len(calls) == 1), text
        check(calls)
    assert ended > 2


@pytest.mark.parametrize("style", CALLS)
def test_text_or_calls(words, style):
    form = Format(CALLS[style])
    grammar = calls_grammar(form, TOOLS, False, True, False)
    assert objection(words, grammar) is None
    start = Grammars(words.pieces, words.ends, words.encode).start(grammar)
    opening = {"hermes": "ok <tool_call>", "xml": "ok <tool_call>", "llama": '{"name": "'}.get(style, "ok [TOOL_CALLS]")
    for token in words.encode(opening):
        assert start.allowed(len(words))[token], opening
        start.commit(token)
    then = set(np.flatnonzero(start.allowed(len(words))).tolist())
    assert len(then) < 200  # a call has begun, and not anything may follow


@pytest.mark.parametrize("style", ["hermes", "llama", "xml"])
@pytest.mark.parametrize("schema", [ANSWER, NESTED])
def test_calls_or_an_answer_of_a_schema(words, style, schema):
    form = Format(CALLS[style])
    grammar = calls_grammar(form, TOOLS, False, True, True, ("json", schema))
    assert objection(words, grammar) is None
    kinds = set()
    for seed in range(40):
        text, whole = walk(words, grammar, random.Random(seed))
        if not whole:
            continue
        shown, calls = read(form, text)
        if calls:
            check(calls)
            assert not shown.strip()
        else:
            assert set(json.loads(shown)) == {"done"}
        kinds.add(bool(calls))
    assert kinds == {True, False}


@pytest.mark.parametrize(
    "constraint, fits",
    [
        (("json", ANSWER), lambda text: set(json.loads(text)) == {"done"}),
        (("json", json.dumps(ANSWER)), lambda text: set(json.loads(text)) == {"done"}),
        (("regex", "[a-c]{3}/x"), lambda text: len(text) == 5 and text.endswith("/x")),
        (("choice", ["red", 'gr"een']), lambda text: text in ("red", 'gr"een')),
        (("grammar", 'root ::= "yes" | "no" [0-9]'), lambda text: text == "yes" or text[:2] == "no"),
    ],
)
def test_constraints(words, constraint, fits):
    for gap in (False, True):
        grammar = output_grammar(constraint, gap and constraint[0] != "grammar")
        assert objection(words, grammar) is None
        for seed in range(5):
            text, whole = walk(words, grammar, random.Random(seed))
            assert whole and fits(text.lstrip("\n")), text


@pytest.mark.parametrize(
    "inner, lost",
    [
        ({"type": "string", "pattern": "^(?!x).*$"}, ["pattern"]),
        ({"type": "string", "format": "path"}, ["format"]),
        ({"type": "object", "propertyNames": {"pattern": "^a"}}, ["propertyNames"]),
        ({"type": "array", "uniqueItems": True}, ["uniqueItems"]),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, ["oneOf"]),
        ({"not": {}}, ["not"]),
        ({"type": "integer"}, []),
        ({"type": "string", "pattern": "^(?!x).*$", "format": "path"}, ["format", "pattern"]),
        ({"if": {"type": "string"}, "then": {"minLength": 2}}, ["if", "then"]),
    ],
)
def test_what_the_library_cannot_do_is_left_out_and_told(words, inner, lost):
    schema = {"type": "object", "properties": {"deep": {"type": "array", "items": inner}}, "required": ["deep"]}
    found, gone = usable(words, schema)
    assert gone == lost
    assert found["properties"]["deep"]["type"] == "array"
    assert objection(words, output_grammar(("json", found), False)) is None


def test_a_schema_that_is_none_is_told(words):
    assert isinstance(usable(words, {"type": "nothing"}), str)


def test_many_tools_are_one_grammar(words):
    """128 of 2 KB each, with names as gateways of tools make them."""
    big = {"type": "object", "required": ["p0"], "properties": {
        f"p{n}": {"type": "string", "description": "what this is for, at length " * 3, "enum": [f"v{n}", f"w{n}"]}
        for n in range(13)}}  # fmt: skip
    tools = [Function(name=f"mcp__server-{n}__tool.{n}", parameters=big) for n in range(128)]
    assert len(json.dumps(big)) > 2000
    grammar = calls_grammar(Format(), tools, False, True, False)
    assert objection(words, grammar) is None


@pytest.mark.parametrize("style", ["hermes", "xml"])
def test_one_call_where_several_are_not_wanted(words, style):
    grammar = calls_grammar(Format(CALLS[style]), TOOLS[:1], False, False, False)
    call = {
        "hermes": '<tool_call>\n{"name": "feed", "arguments": {"ok":true,"kind":"cat","n":3}}\n</tool_call>',
        "xml": "<tool_call>\n<function=feed>\n<parameter=ok>\ntrue\n</parameter>\n<parameter=kind>\ncat\n</parameter>\n"
        "<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>",
    }[style]
    found = Grammars(words.pieces, words.ends, words.encode).start(grammar)
    for token in words.encode(call):
        found.commit(token)
    assert found.complete or set(np.flatnonzero(found.allowed(len(words))).tolist()) <= words.ends


def test_calls_or_one_of_a_choice(words):
    grammar = calls_grammar(Format(), TOOLS, False, True, False, ("choice", ["yes", "no"]))
    texts = {walk(words, grammar, random.Random(seed))[0] for seed in range(40)}
    assert texts & {"yes", "no"} and any(text.startswith("<tool_call>") for text in texts)
