"""The page at /, in a headless Chromium."""

from __future__ import annotations

import shutil

import pytest
from helpers.running_server import RunningServer
from playwright.sync_api import expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


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


@pytest.fixture
def page(browser, stack):
    context = browser.new_context(http_credentials={"username": "me", "password": "sesame"})
    opened = context.new_page()
    opened.problems = []
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.on("requestfailed", lambda request: opened.problems.append(request.url))
    opened.goto(stack.url)
    yield opened
    context.close()


def idle(page) -> None:
    expect(page.locator("#send")).to_be_enabled(timeout=60_000)


def test_a_chat_with_its_lanes_and_the_comparison(page):
    expect(page.locator("#model")).to_contain_text("builtin")
    page.fill("#seed", "5")
    page.fill("#tokens", "80")
    page.fill("#text", "def fibonacci(n):\n<b>&amp;</b>")
    page.press("#text", "Enter")
    idle(page)
    assert page.locator(".user").first.text_content() == "def fibonacci(n):\n<b>&amp;</b>"
    first = page.locator(".assistant").first.text_content()
    assert len(first) > 40
    assert float(page.text_content("#with")) > 0 and float(page.text_content("#length")) > 1
    assert int(page.text_content("#accepted")) > 0 and int(page.text_content("#rejected")) > 0
    assert page.text_content("#state") == "on"
    assert "draft tokens checked" in page.locator(".assistant span[title]").first.get_attribute("title")
    painted = page.evaluate(
        "() => { const c = document.getElementById('lanes');"
        " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;"
        " for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n / (d.length / 4); }"
    )
    assert painted > 0.2  # both lanes are drawn
    page.click("#compare")
    idle(page)
    assert float(page.text_content("#without")) > 0
    assert "is the same" in page.text_content("#same")
    page.uncheck("#speculation")
    page.fill("#text", "and now?")
    page.click("#send")
    idle(page)
    assert page.locator(".assistant").count() == 2 and page.text_content("#state") == "off"
    assert page.problems == []


def test_stop_and_errors_are_shown(page, stack):
    page.fill("#tokens", "500")
    page.fill("#text", "x = 1")
    page.press("#text", "Enter")
    expect(page.locator(".assistant").first).not_to_be_empty()
    page.click("#stop")
    idle(page)
    stack.settled()
    page.fill("#text", "word " * 700)
    page.click("#send")
    idle(page)
    assert "shorten it" in page.locator(".failed").first.text_content()


def test_the_page_asks_nothing_of_others(page):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    expect(page.locator("#model")).to_contain_text("builtin")
    assert asked and all(url.startswith(page.url) for url in asked)
