"""What strangers' templates and schemas can do: nothing, beyond the process they are given."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from helpers.builtin_pair import TARGET

from hetero.errors import Busy, RequestError
from hetero.gateway.chat.grammars import GrammarProbe
from hetero.gateway.chat.sandbox import Overstrained, Sandbox
from hetero.gateway.chat.template import ChatTemplate

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
ENDS = "{% endfor %}" * 3


@pytest.mark.parametrize(
    "source, words",
    [
        (f"{LOOP}{ENDS}", "takes more than"),
        (
            "{% set x = namespace(a='x' * 1000) %}" + LOOP + "{% set x.a = x.a + x.a %}" + ENDS,
            "MemoryError",
        ),
        (f"{LOOP}xxxxxxxxxx{ENDS}", "makes more than 2000000 characters"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "RecursionError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ 1.0e308 ** 2 }}", "OverflowError"),
        ("{{ 10 ** (10 ** 10) }}", "takes more than"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% break %}", "cannot be used (SyntaxError"),
        ("{% if %}", "cannot be used"),
        ("{" * 500_000, "cannot be used"),
        ("{{ messages[7].content.x }}", "no element 7"),
        ("{{ raise_exception('no system\nrole') }}", "refuses them: no system role"),
        ("{{ strftime_now('%Y' * 1000000) }}", ""),
    ],
)
def test_no_template_holds_up_the_server(source, words, monkeypatch):
    monkeypatch.setattr("hetero.gateway.chat.template._SECONDS", 1.5)

    async def play() -> None:
        template = ChatTemplate(SimpleNamespace(chat_templates={"default": source}, bos="", eos=""))
        turns = 0

        async def tick() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.01)
                turns += 1

        ticking = asyncio.create_task(tick())
        try:
            text = await template.render([[{"role": "user", "content": "x"}]])
            assert not words, text[:100]
        except RequestError as error:
            assert words in str(error) and error.param == "messages", error
        assert turns > 5  # others were served meanwhile
        ticking.cancel()
        await template.close()

    asyncio.run(play())


def test_a_template_that_hung_is_there_for_the_next_chat(monkeypatch):
    monkeypatch.setattr("hetero.gateway.chat.template._SECONDS", 1.5)
    source = "{% if messages[0].content == 'slow' %}" + LOOP + ENDS + "{% endif %}{{ messages[0].content }}"

    async def play() -> None:
        template = ChatTemplate(SimpleNamespace(chat_templates={"default": source}, bos="", eos=""))
        asked = [template.render([[{"content": word}]]) for word in ("a", "slow", "b")]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert found[0] == "a" and isinstance(found[1], RequestError) and found[2] == "b"
        await template.close()

    asyncio.run(play())


def test_too_many_questions_at_once_are_refused():
    async def play() -> None:
        sandbox = Sandbox("hetero.gateway.chat.template_process", ["{{ messages }}", {}], 5.0, 32)
        found = await asyncio.gather(*[sandbox.ask([[n], None]) for n in range(40)], return_exceptions=True)
        assert found[:32] == [[f"[{n}]", ""] for n in range(32)]
        assert all(isinstance(each, Busy) for each in found[32:])
        await sandbox.close()

    asyncio.run(play())


def test_what_nests_too_deeply_is_the_requests_fault():
    async def play() -> None:
        template = ChatTemplate(SimpleNamespace(chat_templates={"default": "{{ messages }}"}, bos="", eos=""))
        deep: list[object] = []
        for _ in range(5000):
            deep = [deep]
        with pytest.raises(RequestError, match="nested so deeply"):
            await template.render([[{"role": "user", "content": deep}]])
        assert await template.render([[{"content": "1"}]]) == "[{'content': '1'}]"
        await template.close()

    asyncio.run(play())


def test_a_process_that_hangs_ends_with_the_server():
    code = (
        "import asyncio; from types import SimpleNamespace; from hetero.gateway.chat.template import ChatTemplate\n"
        f"t = ChatTemplate(SimpleNamespace(chat_templates={{'default': {LOOP + ENDS!r}}}, bos='', eos=''))\n"
        "async def play():\n"
        "    task = asyncio.create_task(t.render([[]]))\n"
        "    while t._sandboxes[0]._process is None: await asyncio.sleep(0.01)\n"
        "    print(t._sandboxes[0]._process.pid, flush=True); await task\n"
        "asyncio.run(play())"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    child = psutil.Process(int(server.stdout.readline()))
    time.sleep(1.0)  # it has come to its endless loop
    server.kill()
    server.wait(10)
    child.wait(10)


def test_a_grammar_that_died_of_others_is_asked_again():
    async def play() -> None:
        probe = GrammarProbe(TARGET)
        answers = iter([Overstrained(slow=False), None, Overstrained(slow=True), Overstrained(slow=True), None])

        async def ask(question: object) -> str | None:
            answer = next(answers)
            if answer is not None:
                raise answer
            return None

        probe._sandbox.ask = ask
        assert await probe.objection("a") is None and await probe.objection("a") is None
        for _ in range(2):  # a slow moment is not remembered
            assert "takes more than" in (await probe.objection("b") or "")
        assert await probe.objection("b") is None

    asyncio.run(play())
