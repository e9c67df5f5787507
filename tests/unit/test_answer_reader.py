"""Reading answers: the pieces they come in do not matter, and each family's calls and reasoning are found."""

from __future__ import annotations

import json
import random

import pytest
from helpers import templates
from hypothesis import given
from hypothesis import strategies as st

from hetero.gateway.answers.choice import Choice
from hetero.gateway.chat import formats
from hetero.gateway.chat.formats import Format, format_of
from hetero.gateway.chat.reader import Piece, reader
from hetero.gateway.verifiers.sequences import Delta
from hetero.workers.models.vocabulary import Vocabulary

THINK = ("<think>", "</think>")
WORDS = Vocabulary([b"a", b"b"], frozenset())
FORMS = {
    "plain": Format(),
    "hermes": Format(formats.HERMES, THINK),
    "xml": Format(formats.XML, THINK),
    "mistral": Format(formats.MISTRAL),
    "named": Format(formats.MISTRAL_NAMED, ("[THINK]", "[/THINK]")),
    "llama": Format(formats.LLAMA),
    "gpt-oss": Format(formats.GPT_OSS),
}
ARGUMENTS = {"city": 'Ulm "}\\', "n": [1, {"x": None}], "ok": True}
DUMPED = json.dumps(ARGUMENTS)
# (format, whole answer, reasoning, text, calls)
ANSWERS = [
    ("plain", "\nhi <think> no", "", "\nhi <think> no", []),
    ("hermes", "<think>\nhm\n\nso\n</think>\n\nhello\n", "hm\n\nso", "hello\n", []),
    ("hermes", "  <think>never ends", "never ends", "", []),
    (
        "hermes",
        f'<think>a</think>\n\nI call:\n<tool_call>\n{{"name": "f", "arguments": {DUMPED}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>\n\nand more',
        "a",
        "I call:\nand more",
        [("f", ARGUMENTS), ("g", {})],
    ),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", "", [("f", {"a": 1})]),
    ("hermes", "<tool_call>no call</tool_call> x", "", "<tool_call>no call</tool_call> x", []),
    ("hermes", "<tool_call>no end", "", "<tool_call>no end", []),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', "", "", [("f", {})]),
    (
        "xml",
        '<tool_call>\n<function=f>\n<parameter=city>\nUlm\n"x"\n</parameter>\n<parameter=n>\n[1, 2]\n</parameter>\n'
        "</function>\n</tool_call>\n<tool_call>\n<function=g>\n</function>\n</tool_call>",
        "",
        "",
        [("f", {"city": 'Ulm\n"x"', "n": [1, 2]}), ("g", {})],
    ),
    (
        "mistral",
        f'[TOOL_CALLS] [{{"name": "f", "arguments": {DUMPED}, "id": "abcdefghi"}}, {{"name": "g", "arguments": {{}}}}]',
        "",
        "",
        [("f", ARGUMENTS), ("g", {})],
    ),
    (
        "named",
        f"[THINK]hm[/THINK]Well[TOOL_CALLS]f[ARGS]{DUMPED}[TOOL_CALLS]g[CALL_ID]x[ARGS]{{}}",
        "hm",
        "Well",
        [("f", ARGUMENTS), ("g", {})],
    ),
    ("llama", f'{{"name": "f", "parameters": {DUMPED}}}', "", "", [("f", ARGUMENTS)]),
    ("llama", f'<|python_tag|>{{"name": "f", "parameters": {DUMPED}}}', "", "", [("f", ARGUMENTS)]),
    ("llama", '{"city": "Ulm"}', "", '{"city": "Ulm"}', []),
    ("llama", "{ no json", "", "{ no json", []),
    ("llama", "plain { text", "", "plain { text", []),
    (
        "gpt-oss",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.f "
        f"<|constrain|>json<|message|>{DUMPED}",
        "hm",
        "",
        [("f", ARGUMENTS)],
    ),
    (
        "gpt-oss",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes",
        "hm",
        "yes",
        [],
    ),
]


def read(form: Format, parts: list[str], opened: bool = False) -> tuple[str, str, list[tuple[str, str]]]:
    """What is read of an answer: reasoning, text, calls."""
    found = reader(form, opened=opened, tools={"f": frozenset({"city"})})
    pieces: list[Piece] = []
    for part in parts:
        pieces += found.feed(part)
    pieces += found.finish()
    calls: list[list[str]] = []
    for piece in pieces:
        if piece.kind == "call":
            assert piece.call == len(calls) and piece.id.startswith("call_")
            calls.append([piece.text, ""])
        elif piece.kind == "arguments":
            calls[piece.call][1] += piece.text
    joined = {kind: "".join(p.text for p in pieces if p.kind == kind) for kind in ("reasoning", "text")}
    return joined["reasoning"], joined["text"], [(name, arguments) for name, arguments in calls]


@pytest.mark.parametrize("form, whole, reasoning, text, calls", ANSWERS)
def test_an_answer_is_read_as_it_is_meant(form, whole, reasoning, text, calls):
    for seed in range(20):
        rng, parts, rest = random.Random(seed), [], whole
        while rest:
            size = rng.choice([1, 2, 3, 7, 20]) if seed else len(rest)
            parts.append(rest[:size])
            rest = rest[size:]
        found = read(FORMS[form], parts)
        assert found[:2] == (reasoning, text)
        assert [(name, json.loads(arguments)) for name, arguments in found[2]] == calls


TOKENS = [
    "<tool_call>", "</tool_call>", "<think>", "</think>", "\n", " ", "text", '{"name": "f", "arguments": ', "{", "}",
    '"', "\\", "[TOOL_CALLS]", "[ARGS]", "[", "]", ", ", "<function=f>", "<parameter=a>", "</parameter>",
    "</function>", "<|channel|>", "<|message|>", "<|end|>", "analysis", "final", " to=functions.f ",
    '{"name": "f", "parameters": ', "<|python_tag|>", "<",
]  # fmt: skip


@given(
    st.sampled_from(sorted(FORMS)),
    st.lists(st.sampled_from(TOKENS), max_size=14),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_the_pieces_do_not_matter(form, parts, opened, rng):
    text = "".join(parts)
    opened = opened and FORMS[form].think is not None
    split, at = [], 0
    while at < len(text):
        size = rng.randint(1, 6)
        split.append(text[at : at + size])
        at += size
    assert read(FORMS[form], split, opened) == read(FORMS[form], [text], opened)


@pytest.mark.parametrize(
    "form, whole, begin",
    [
        ("hermes", f'<tool_call>\n{{"name": "f", "arguments": {DUMPED}}}', '"f"'),
        ("mistral", f'[TOOL_CALLS] [{{"name": "f", "arguments": {DUMPED}}}', '"f"'),
        ("named", f"[TOOL_CALLS]f[ARGS]{DUMPED}", "[ARGS]"),
        ("llama", f'{{"name": "f", "parameters": {DUMPED}}}', '"f"'),
        ("gpt-oss", f"<|channel|>commentary to=functions.f <|constrain|>json<|message|>{DUMPED}", "<|message|>"),
        ("xml", "<tool_call>\n<function=f>\n<parameter=city>\nUlm\n</parameter>\n<parameter=n>\n1\n</parameter>", "f>"),
    ],
)
def test_a_call_cut_short_is_a_part_of_it(form, whole, begin):
    """Its name first, then its arguments as far as they came; nothing of it is text."""
    lengths = set()
    for end in range(whole.index(begin) + len(begin), len(whole)):
        _, shown, found = read(FORMS[form], [whole[:end]])
        assert not shown and [name for name, _ in found] == ["f"], whole[:end]
        lengths.add(len(found[0][1]))
    assert len(lengths) > (20 if form != "xml" else 1)


def test_calls_are_shown_while_they_are_written():
    found = reader(FORMS["hermes"], tools={})
    assert found.feed('<tool_call>\n{"name": "f", ') == []
    name, arguments = found.feed('"arguments": {"a')
    assert (name.kind, name.text) == ("call", "f") and arguments.text == '{"a'
    assert [p.text for p in found.feed('": 1')] == ['": 1']
    assert [p.text for p in found.feed("}}\n</tool")] == ["}"]
    assert found.feed("_call>") == [] and found.finish() == []


@pytest.mark.parametrize(
    "template, pieces, style, think",
    [
        (templates.CHATML, [], "json", None),
        (templates.QWEN, [], "json", THINK),
        (templates.CHATML, [b"<think>", b"</think>"], "json", THINK),
        (templates.CHATML, [b"<think>"], "json", None),
        (templates.CODER, [], "xml", None),
        (templates.MISTRAL, [], "list", None),
        (templates.MISTRAL + "[ARGS][THINK][/THINK]", [], "named", ("[THINK]", "[/THINK]")),
        (templates.LLAMA, [], "bare", None),
        (templates.GPT_OSS, [], "harmony", None),
    ],
)
def test_a_models_format_is_told_from_its_template_and_vocabulary(template, pieces, style, think):
    found = format_of(template, Vocabulary([b"x", *pieces], frozenset()))
    assert found.calls.style == style and found.think == think
    assert found.begin == (1 if pieces and think else -1)


def test_markers_without_bytes_are_shown_by_their_tokens():
    vocabulary = Vocabulary(
        [b"x", b"", b"", b""], frozenset({3}), names={1: b"[TOOL_CALLS]", 2: b"[THINK]", 3: b"</s>"}
    )
    found = format_of(templates.MISTRAL + "[ARGS][/THINK]", vocabulary)
    assert found.tokens == {"[TOOL_CALLS]": 1, "[THINK]": 2} and found.begin == 2
    assert format_of(templates.CHATML, WORDS).tokens == {}


@pytest.mark.parametrize("form, whole, reasoning, text, calls", [a for a in ANSWERS if a[0] != "plain"])
def test_blocks_do_not_depend_on_the_pieces(form, whole, reasoning, text, calls):
    """A window may bring the end of a call and the text behind it at once."""

    def blocks(parts: list[str]) -> list[tuple[str, str, str]]:
        choice = Choice(0, WORDS, reader(FORMS[form], tools={"f": frozenset({"city"})}))
        for n, part in enumerate(parts):
            choice.take(Delta([1], part, reason="stop" if n == len(parts) - 1 else None))
        return [(block.kind, block.name, block.text) for block in choice.blocks.all]

    want = blocks([whole])
    assert [json.loads(block[2]) for block in want if block[0] == "call"] == [arguments for _, arguments in calls]
    for seed in range(20):
        rng, parts, rest = random.Random(seed), [], whole
        while rest:
            size = rng.choice([1, 3, 9, 40])
            parts.append(rest[:size])
            rest = rest[size:]
        assert blocks(parts) == want


def test_values_in_xml_are_what_the_schema_says():
    """Texts stay texts, and come as they are written; what is no JSON is no number."""
    found = reader(FORMS["xml"], tools={"write": frozenset({"path", "content"})})
    head = "<tool_call>\n<function=write>\n<parameter=path>\n123\n</parameter>\n<parameter=content>\n"
    pieces = [*found.feed(head), *found.feed('{"name": "pkg", \n'), *found.feed("x" * 100)]
    shown = "".join(piece.text for piece in pieces if piece.kind == "arguments")
    assert len(shown) > 100  # while it is written
    pieces += found.feed("}\n</parameter>\n<parameter=n>\nNaN\n</parameter>\n</function>\n</tool_call>")
    whole = "".join(piece.text for piece in pieces if piece.kind == "arguments")
    assert json.loads(whole) == {"path": "123", "content": '{"name": "pkg", \n' + "x" * 100 + "}", "n": "NaN"}


def test_a_long_value_takes_no_longer_by_its_length():
    """Of 16,000 tokens each is read once: no clock is asked, a counter of characters looked at is."""
    found = reader(FORMS["xml"], tools={"f": frozenset({"city"})})
    found.feed("<tool_call>\n<function=f>\n<parameter=city>\n")
    for _ in range(16_000):
        found.feed("word ")
        assert found._call is not None and len(found._call.taken) < 40


@pytest.mark.parametrize("go_on, text", [(True, "is Paris."), (False, "is Paris."), (False, "x" * 400)])
def test_a_channel_that_was_never_named_is_text(go_on, text):
    found = reader(FORMS["gpt-oss"], go_on=go_on)
    pieces = [*found.feed(text[:3]), *found.feed(text[3:]), *found.finish()]
    assert "".join(piece.text for piece in pieces if piece.kind == "text") == text
