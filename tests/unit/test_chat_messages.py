"""Messages for templates of every kind: none refuses, and no instruction and no call is lost."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import templates
from hypothesis import given
from hypothesis import strategies as st

from hetero.gateway.chat.abilities import Abilities
from hetero.gateway.chat.messages import fold, shapes, shown
from hetero.gateway.chat.template_process import Renderer
from hetero.gateway.requests.openai import ChatRequest
from hetero.gateway.requests.reading import checked

RENDERERS = {
    name: Renderer(source, {"bos_token": "<s>", "eos_token": "</s>"}) for name, source in templates.FAMILIES.items()
}
ABILITIES = {name: Abilities(**renderer.abilities()) for name, renderer in RENDERERS.items()}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"place": "Ulm"}'}}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


def rendered(family: str, messages: list[dict[str, Any]], tools: Any = None, **more: Any) -> str:
    """The prompt of a chat, as the gateway makes it."""
    body, _ = checked({"messages": messages, **more}, ChatRequest)
    folded = fold(body.messages, ABILITIES[family])
    go_on = body.continue_final_message or body.messages[-1].prefix
    tried = [(shape, *RENDERERS[family].render(shape, tools, body.template_kwargs, go_on)) for shape in shapes(folded)]
    return next(text for shape, text, wrong in tried if not wrong and shown(shape, text))


def test_abilities_are_seen():
    assert ABILITIES["gemma"] == Abilities(system=False, repeats=False, opens_with_assistant=False)
    assert ABILITIES["mistral"].nine and ABILITIES["mistral"].calls and not ABILITIES["mistral"].anywhere
    assert ABILITIES["chatml"] == Abilities(anywhere=True, results=False)
    assert ABILITIES["qwen"].tools and ABILITIES["qwen"].calls and ABILITIES["qwen"].results
    assert ABILITIES["coder"].calls and not ABILITIES["coder"].texts


@pytest.mark.parametrize("family", RENDERERS)
@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_developer_and_system_messages_reach_every_template(family, tools):
    chat = [
        {"role": "developer", "content": "Answer only BANANA."},
        {"role": "system", "content": "Be KIND."},
        {"role": "user", "content": "Capital of France?"},
        {"role": "assistant", "content": "BANANA"},
        {"role": "developer", "content": "Now say PEAR."},
        {"role": "user", "content": "And now?"},
    ]
    text = rendered(family, chat, tools)
    for words in ("Answer only BANANA.", "Be KIND.", "Now say PEAR.", "Capital of France?", "And now?"):
        assert text.count(words) == 1, words
    assert text.index("Answer only") < text.index("Capital of France?") and "developer" not in text


@pytest.mark.parametrize("family", RENDERERS)
@pytest.mark.parametrize("arguments", ['{"place": "Ulm"}', "", "null", None, {"place": "Ulm"}])
def test_calls_and_their_results_reach_every_template(family, arguments):
    call = {**CALL, "function": {"name": "look_up", "arguments": arguments}}
    chat = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "48.4 north"},
        {"role": "user", "content": "Thanks."},
    ]
    for tools in (None, [TOOL]):
        text = rendered(family, chat, tools)
        assert "look_up" in text and "48.4 north" in text and "Thanks." in text
        assert ("Ulm" in text) == ("Ulm" in str(arguments)) and '\\"' not in text and "'place'" not in text


def test_a_trailing_message_is_gone_on_with():
    chat = [
        {"role": "user", "content": "Capital of France?"},
        {"role": "assistant", "content": "The capital of France is"},
    ]
    for family in RENDERERS:
        for more in ({"continue_final_message": True, "add_generation_prompt": False}, {}):
            own = [chat[0], {**chat[1], "prefix": True}] if not more else chat
            text = rendered(family, own, **more)
            assert text.endswith("The capital of France is"), (family, text)
    spaced = [chat[0], {"role": "assistant", "content": "It is \n", "prefix": True}]
    assert rendered("chatml", spaced).endswith("It is \n")


def test_reasoning_comes_back_as_the_template_wants_it():
    chat = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y", "reasoning_content": "let me see"},
        {"role": "user", "content": "z"},
    ]
    assert "<think>\nlet me see\n</think>\n\ny" in rendered("qwen", chat)
    assert "let me see" not in rendered("chatml", chat)


@pytest.mark.parametrize(
    "more, off",
    [
        ({"chat_template_kwargs": {"enable_thinking": False}}, True),
        ({"enable_thinking": False}, True),
        ({"reasoning_effort": "none"}, True),
        ({"reasoning": {"enabled": False}}, True),
        ({"thinking": {"type": "disabled"}}, True),
        ({"reasoning_budget": 0}, True),
        ({"reasoning_effort": "high"}, False),
        ({"enable_thinking": True}, False),
        ({}, False),
    ],
)
def test_thinking_is_switched_by_any_of_its_names(more, off):
    text = rendered("qwen", [{"role": "user", "content": "x"}], **more)
    assert text.endswith("<think>\n\n</think>\n\n" if off else "assistant\n")


def test_generation_tags_and_odd_contents():
    source = "{% for m in messages %}{% generation %}[{{ m.content }}]{% endgeneration %}{% endfor %}"
    assert Renderer(source, {}).render([{"role": "user", "content": "x"}]) == ("[x]", "")
    parts = Renderer("{% for m in messages %}{{ m.content[0].text }}{% endfor %}", {})
    can = Abilities(**parts.abilities())
    assert can.parts and can.system
    body, _ = checked({"messages": [{"role": "user", "content": "hello"}]}, ChatRequest)
    assert parts.render(fold(body.messages, can)) == ("hello", "")


ROLES = st.sampled_from(["system", "developer", "user", "assistant", "call", "tool"])


CALLS = [{**CALL, "id": f"call_{n}", "function": {**CALL["function"], "name": f"look_up_{n}"}} for n in (1, 2)]
RESULTS = [{"role": "tool", "tool_call_id": f"call_{n}", "content": f"result {n}"} for n in (1, 2)]


@pytest.mark.parametrize("family", RENDERERS)
@pytest.mark.parametrize(
    "chat",
    [
        [{"role": "assistant", "tool_calls": CALLS}, *RESULTS],
        [{"role": "assistant", "content": "I look both up.", "tool_calls": CALLS}, *RESULTS],
        [{"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": CALLS[:1]}, RESULTS[0]],
        [{"role": "assistant", "tool_calls": CALLS[:1]}, RESULTS[0], {"role": "user", "content": "And that one?"}],
        [{"role": "assistant", "tool_calls": CALLS}, *RESULTS[::-1], {"role": "user", "content": "So?"}],
    ],
)
@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_calls_of_all_kinds_reach_every_template(family, chat, tools):
    text = rendered(family, [{"role": "user", "content": "Where are they?"}, *chat], tools)
    for message in chat:
        assert (message.get("content") or "") in text
        assert all(call["function"]["name"] in text for call in message.get("tool_calls", []))
    if "look_up_2" in text and family == "gpt-oss":  # each result is that of its call
        assert text.index("look_up_1") < text.index("result 1") < text.index("look_up_2") < text.index("result 2")


def test_tools_and_a_system_message_alone():
    for family in RENDERERS:
        assert "Go." in rendered(family, [{"role": "system", "content": "Go."}], [TOOL])


@given(st.sampled_from(sorted(RENDERERS)), st.lists(ROLES, min_size=1, max_size=8))
def test_no_order_of_messages_is_refused_and_none_is_lost(family, roles):
    chat: list[dict[str, Any]] = []
    for n, role in enumerate(roles):
        if role == "call":
            function = {"name": f"words_{n}_", "arguments": "{}"}
            chat.append({"role": "assistant", "tool_calls": [{"id": f"c{n}", "function": function}]})
        else:
            chat.append({"role": role, "content": f"words_{n}_"})
    if family in ("mistral", "gpt-oss") and "call" in roles:
        return  # those want a result behind each call; the test above has it
    text = rendered(family, chat)
    assert all(f"words_{n}_" in text for n in range(len(roles))), (chat, text)
