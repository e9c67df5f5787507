"""What happens when a worker is killed: the same texts, a pause at most. Real processes, ``--exact``."""

from __future__ import annotations

import os
import signal
import time

import httpx
import psutil
import pytest
from helpers.running_server import RunningServer
from helpers.streams import from_drafter, streams

from hetero.workers.wire.messages import Cancel


@pytest.fixture(scope="module")
def exact():
    stack = RunningServer(exact=True, strategy="serial", lookup=False, port=0)
    yield stack
    stack.close()


@pytest.mark.parametrize("role", [pytest.param("drafter", marks=pytest.mark.long), "target"])
def test_killed_in_mid_stream_the_texts_stay_the_same(exact, role):
    calm = streams(exact, 300, [11, 12, 13, 14])
    assert sum(from_drafter(last["timings"]) for _, last in calm) > 30
    before = exact.status(role)
    stormy = streams(exact, 300, [11, 12, 13, 14], meanwhile=lambda: exact.kill(role))
    assert [text for text, _ in stormy] == [text for text, _ in calm]
    end = time.monotonic() + 30
    while exact.session.coordinator.statuses[role].epoch == before.epoch:
        assert time.monotonic() < end, exact.events
        time.sleep(0.05)
    # It is back for good: drafts are accepted again.
    again = streams(exact, 100, [11, 12])
    assert [text for text, _ in again] == [text[: len(again[n][0])] for n, (text, _) in enumerate(calm[:2])]
    assert sum(from_drafter(last["timings"]) for _, last in again) > 5
    exact.settled()


@pytest.mark.long
def test_a_verifier_that_hangs_is_noticed_and_replaced(exact):
    """Stopped for ever, as by a driver that hangs: /health says so meanwhile, the text is the same."""
    calm = streams(exact, 300, [21])
    before, seen = exact.status("target"), []

    def hang() -> None:
        os.kill(before.pid, signal.SIGSTOP)
        end = time.monotonic() + 60
        while (found := httpx.get(f"{exact.url}/health")).status_code == 200:
            assert time.monotonic() < end, exact.events
            time.sleep(0.2)
        seen.append(found.json()["error"]["message"])

    stormy = streams(exact, 300, [21], meanwhile=hang)
    assert stormy[0][0] == calm[0][0]
    assert "has not answered" in seen[0] or "another one is being started" in seen[0]
    assert any("has not answered for 15 s" in event for event in exact.events)
    assert not psutil.pid_exists(before.pid) or psutil.Process(before.pid).status() == psutil.STATUS_ZOMBIE
    assert httpx.get(f"{exact.url}/health").status_code == 200
    exact.settled()


@pytest.mark.long
def test_penalties_and_grammars_are_taken_up_where_they_were(exact):
    """The verifier that comes back counts what was said and knows how far the JSON had come."""
    schema = {"type": "object", "properties": {"text": {"type": "string", "minLength": 400}}, "required": ["text"]}
    shaped = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for fields in ({"frequency_penalty": 0.7, "logit_bias": {"0": -100, "2": -100}}, {"response_format": shaped}):
        calm = streams(exact, 300, [31, 32], **fields)
        stormy = streams(exact, 300, [31, 32], meanwhile=lambda: exact.kill("target"), **fields)
        assert [text for text, _ in stormy] == [text for text, _ in calm]
        assert len(calm[0][0]) > 100
    assert calm[0][0].startswith('{"text": "') or calm[0][0].startswith('{"text":"')
    exact.settled()


@pytest.mark.long
def test_a_worker_that_ends_by_itself_is_started_again(exact):
    """Not only a kill: its loop may end while its process lives on."""
    before = exact.status("target")
    calm = streams(exact, 200, [3])
    exact.session.coordinator.restart("target")
    again = streams(exact, 200, [3])
    assert again[0][0] == calm[0][0]
    assert exact.status("target").epoch != before.epoch
    exact.settled()


def test_another_strategy_in_mid_stream_changes_no_text(exact):
    """As a plan that is revised does; whoever is born again goes on by it."""
    calm = streams(exact, 400, [41, 42])
    drafted = exact.status("drafter").forwards

    def revise() -> None:
        for name, gamma in (("ahead", 0), ("off", 0), ("pearl", 0), ("serial", 2)):
            exact.session.coordinator.follow(name, gamma)
            before = exact.status("target").forwards
            while exact.status("target").active and exact.status("target").forwards < before + 10:
                time.sleep(0.02)
        exact.kill("drafter")

    stormy = streams(exact, 400, [41, 42], meanwhile=revise)
    assert [text for text, _ in stormy] == [text for text, _ in calm]
    exact.settled()
    again = streams(exact, 100, [41])
    assert again[0][0] == calm[0][0][: len(again[0][0])]
    timings = again[0][1]["timings"]
    assert timings["draft_sources"]["drafter"]["n"] <= 2 * timings["target_forwards_n"]  # of two each
    assert drafted > 0 and exact.status("drafter").forwards > 0
    exact.session.coordinator.follow("serial", 4)


def test_a_gateway_that_was_silent_resumes_what_the_verifier_let_go(exact):
    calm = streams(exact, 400, [5])
    client = exact.session.verifiers

    def forget() -> None:
        # The verifier hears that the gateway is gone: it frees the sequence without a word.
        sequences = list(client._live)
        exact.on_loop(lambda: [client._links[0]._send(Cancel(seq)) for seq in sequences])

    again = streams(exact, 400, [5], meanwhile=forget)
    assert again[0][0] == calm[0][0]
    exact.settled()
