"""The page at /, in a headless Chromium, as large as a desk's screen and as small as a phone's."""

from __future__ import annotations

import re
import shutil

import pytest
from helpers.running_server import RunningServer
from playwright.sync_api import expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
SIZES = {"desk": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 780}}
KEY = {"username": "me", "password": "sesame"}

pytestmark = [pytest.mark.long, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]


@pytest.fixture(scope="module")
def stack():
    made = RunningServer(exact=True, strategy="serial", port=0, api_key="sesame", context=600)
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(params=SIZES)
def page(browser, stack, request):
    yield from opened(browser, stack.url, SIZES[request.param])


@pytest.fixture
def desk(browser, stack):
    yield from opened(browser, stack.url, SIZES["desk"])


def opened(browser, url, size):
    context = browser.new_context(http_credentials=KEY, viewport=size)
    found = context.new_page()
    found.problems = []
    found.on("pageerror", lambda error: found.problems.append(str(error)))
    found.on("console", lambda said: found.problems.append(said.text) if "Content Security" in said.text else None)
    found.goto(url)
    expect(found.locator("body[data-ready]")).to_be_attached()
    yield found
    assert found.problems == []
    context.close()


def say(page, text: str, tokens: int = 60, **fields: str) -> None:
    page.evaluate("document.getElementById('settings').open = true")
    page.fill("#tokens", str(tokens))
    for name, value in fields.items():
        page.fill(f"#{name}", value)
    page.fill("#text", text)
    page.press("#text", "Enter")
    idle(page)


def idle(page) -> None:
    expect(page.locator("#send")).to_be_visible(timeout=60_000)


def answers(page, texts: list[str], slow: int = 0, reasoning: str = "") -> None:
    """Have the server's part played: each of its answers a stream of these texts."""
    deltas = [{"reasoning_content": reasoning}] * bool(reasoning) + [{"content": text} for text in texts]
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    page.evaluate(
        """([chunks, slow]) => { const real = window.fetch; window.fetch = async (url, asked) => {
             if (!String(url).includes("chat/completions")) return real(url, asked);
             window.asked = JSON.parse(asked.body);
             const lines = [...chunks.map(c => "data: " + JSON.stringify(c) + "\\n\\n"), "data: [DONE]\\n\\n"];
             const body = new ReadableStream({async start(to) { for (const line of lines) {
               if (asked.signal.aborted) { to.error(new DOMException("", "AbortError")); return; }
               to.enqueue(new TextEncoder().encode(line)); if (slow) await new Promise(r => setTimeout(r, slow)); }
               to.close(); }});
             return new Response(body, {headers: {"Content-Type": "text/event-stream"}}); }; }""",
        [chunks, slow],
    )


def painted(page) -> float:
    """The share of the lanes' picture that is."""
    return page.evaluate(
        "() => { const c = document.getElementById('lanes');"
        " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;"
        " for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n / (d.length / 4); }"
    )


def test_a_chat_with_its_lanes(page):
    phone = page.viewport_size["width"] < 500
    expect(page.locator("#model")).to_contain_text("builtin, 600 tokens")
    assert page.locator("#lanes").is_visible() is not phone  # folded where there is little room
    if phone:
        page.click("#lanes-box summary")
    empty = painted(page)
    say(page, "def fibonacci(n):\n<b>&amp;</b>", 80, seed="5", temperature="1.2", top_k="0")
    assert page.locator(".user .body").first.text_content() == "def fibonacci(n):\n<b>&amp;</b>"
    assert len(page.locator(".assistant .body").first.text_content().strip()) > 10
    assert float(page.text_content("#with")) > 0 and float(page.text_content("#length")) > 1
    assert int(page.text_content("#accepted")) > 0 and int(page.text_content("#rejected")) > 0
    assert re.search(r"(drafter|lookup|past) \d+ of \d+", page.text_content("#sources"))
    assert page.text_content("#state") == "on"
    assert painted(page) > empty + 0.05  # lanes, as long as the work took
    box = page.locator("#lanes").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 20, box["y"] + 60)
    expect(page.locator("#at")).to_contain_text("draft tokens checked in")
    width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]  # nothing sticks out


def test_the_plan_is_shown(desk):
    desk.locator("#plan-box summary").click()
    expect(desk.locator("#plan-box dt").nth(2)).to_be_visible()
    told = desk.locator("#plan-box").inner_text()
    assert "strategy" in told and "target" in told and "drafter" in told and "GiB" in told


def test_what_speculation_gains_is_measured_alike(desk):
    say(desk, "x = 1", 60, seed="5")
    desk.click("#compare")
    idle(desk)
    told = desk.text_content("#compared")
    assert "With speculation" in told and "times as fast" in told and "The text is the same" in told
    assert desk.locator(".turn").count() == 2  # the comparison is no turn
    desk.uncheck("#speculation")
    say(desk, "and now?", 30)
    assert desk.text_content("#state") == "off" and desk.locator("#compare").is_disabled()


def test_markdown_is_shown_and_nothing_of_it_runs(page):
    texts = [
        "# Title\n\nSome *words* and `code`.\n\n```python\nprint('<x>')\n``",
        "`\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
        "\n<img src=x onerror=alert(1)><script>alert(1)</script><a href='javascript:alert(1)'>x</a> [y](https://e.org)",
    ]
    answers(page, texts)
    say(page, "show me")
    body = page.locator(".assistant .body")
    assert body.locator("h1").text_content() == "Title" and body.locator("em").text_content() == "words"
    assert body.locator("pre code").text_content() == "print('<x>')\n" and body.locator("td").count() == 2
    assert "<script>" in body.text_content()
    assert body.locator("script, img, [onerror], a[href^=javascript]").count() == 0
    assert body.locator("a[href='https://e.org']").get_attribute("rel") == "noreferrer noopener"
    body.locator(".code .copy").click()
    expect(body.locator(".code .copy")).to_contain_text("opied")


def test_edit_again_and_history(page):
    phone = page.viewport_size["width"] < 500
    answers(page, ["one"])
    say(page, "first", system="Be short.")
    assert page.evaluate("window.asked.messages")[0] == {"role": "system", "content": "Be short."}
    say(page, "second")
    assert [m["content"] for m in page.evaluate("window.asked.messages")] == ["Be short.", "first", "one", "second"]
    page.locator(".assistant").last.get_by_role("button", name="Again").click()
    idle(page)
    assert page.locator(".turn").count() == 4 and page.evaluate("window.asked.messages.length") == 4
    page.locator(".user").first.get_by_role("button", name="Edit").click()
    assert page.input_value("#text") == "first" and page.locator(".turn").count() == 0
    page.fill("#text", "changed")
    page.press("#text", "Enter")
    idle(page)
    assert page.locator(".user .body").all_text_contents() == ["changed"]
    page.press("#text", "ArrowUp")
    assert page.input_value("#text") == "changed"
    page.press("#text", "Enter")
    idle(page)
    page.keyboard.press("Control+Shift+O")
    assert page.locator(".turn").count() == 0
    say(page, "another chat")
    page.reload()
    expect(page.locator("body[data-ready]")).to_be_attached()
    if phone:
        assert not page.locator("#side").is_visible()
        page.click("#menu")
    assert page.locator("#chats .open").all_text_contents() == ["another chat", "first"]
    page.locator("#chats .open").last.click()
    assert page.locator(".user .body").all_text_contents() == ["changed"] and page.input_value("#system") == "Be short."
    if phone:
        page.click("#menu")
    page.locator("#chats .gone").first.click()
    assert page.locator("#chats .open").all_text_contents() == ["first"]


def test_a_turn_that_fails_gives_its_text_back(desk):
    say(desk, "x = 1", 20)
    say(desk, "word " * 700)
    assert "maximum context length is 600 tokens" in desk.locator("#failed").text_content()
    assert desk.input_value("#text") == "word " * 700 and desk.locator(".turn").count() == 2
    say(desk, "y = 2", 20)  # what failed is no part of the chat
    assert desk.locator("#failed").is_hidden() and desk.locator(".turn").count() == 4


def test_what_was_said_is_kept_until_it_is_replaced(desk):
    answers(desk, ["one"])
    say(desk, "first")
    say(desk, "second")
    desk.press("#text", "ArrowUp")
    assert desk.locator(".turn").count() == 2 and desk.input_value("#text") == "second"
    desk.keyboard.press("Escape")
    assert desk.locator(".turn").count() == 4 and desk.input_value("#text") == ""
    desk.evaluate('window.fetch = async () => new Response(\'{"error": {"message": "no"}}\', {status: 500})')
    desk.locator(".assistant").last.get_by_role("button", name="Again").click()
    expect(desk.locator("#failed")).to_have_text("no")
    desk.click("#unsaid")
    assert desk.locator(".turn").count() == 4


def test_stop(desk, stack):
    desk.evaluate("document.getElementById('settings').open = true")
    desk.fill("#tokens", "500")
    desk.fill("#text", "x = 1")
    desk.press("#text", "Enter")
    expect(desk.locator(".assistant .body").first).not_to_be_empty()
    expect(desk.locator("#live")).to_contain_text("tokens/s")
    desk.keyboard.press("Escape")
    idle(desk)
    assert desk.locator(".turn").count() == 2 and desk.locator("#failed").is_hidden()
    stack.settled()


def test_who_reads_above_is_not_pulled_down(page):
    answers(page, ["line\n\n"] * 60, slow=25)
    page.fill("#text", "go")
    page.press("#text", "Enter")
    while page.evaluate("document.getElementById('said').scrollTop") < 150:  # it follows the end
        page.wait_for_timeout(20)
    page.evaluate("document.getElementById('said').scrollTop = 20")
    page.wait_for_timeout(400)
    assert page.evaluate("document.getElementById('said').scrollTop") == 20
    expect(page.locator("#down")).to_be_visible()
    page.click("#down")
    idle(page)
    assert page.evaluate("(s => s.scrollHeight - s.scrollTop - s.clientHeight < 40)(document.getElementById('said'))")


def test_reasoning_is_folded(desk):
    answers(desk, ["yes"], reasoning="let me see")
    say(desk, "why?")
    thought = desk.locator(".assistant details")
    assert desk.locator(".assistant .body").text_content().strip() == "yes"
    assert thought.is_visible() and not thought.locator(".thought").is_visible()
    thought.locator("summary").click()
    assert thought.locator(".thought").text_content() == "let me see"


def test_without_a_drafter_there_is_nothing_of_it(desk):
    """Of a server that says it has none."""
    told = desk.evaluate("fetch('props').then(answer => answer.json())")
    assert told["drafter"] is True
    desk.route("**/props", lambda route: route.fulfill(json={**told, "drafter": False}))
    desk.reload()
    expect(desk.locator("body[data-ready]")).to_be_attached()
    assert desk.locator("#work").is_hidden() and desk.locator("#speculation").is_hidden()
    say(desk, "x = 1", 20)
    assert desk.locator(".assistant .body").first.text_content()


def test_the_page_asks_nothing_of_others(desk):
    asked: list[str] = []
    desk.on("request", lambda request: asked.append(request.url))
    desk.reload()
    expect(desk.locator("#model")).to_contain_text("builtin")
    assert len(asked) > 5 and all(url.startswith((desk.url, "data:")) for url in asked)


def test_the_documents_of_the_api_need_nobody_else(desk, stack):
    desk.goto(f"{stack.url}/docs")
    expect(desk.locator("body[data-ready]")).to_be_attached()
    chat = desk.locator("details").filter(has=desk.locator("summary code", has_text="/v1/chat/completions"))
    chat.locator("summary").click()
    assert "temperature" in chat.text_content() and desk.locator("details").count() > 20
