"""Another user of the same machine: whoever has no key of this session's can neither ask, read, cancel nor pose."""

from __future__ import annotations

import pytest
from helpers.meddling import meddle
from helpers.running_server import RunningServer
from helpers.streams import streams


@pytest.fixture(scope="module")
def stack():
    made = RunningServer(exact=True, strategy="serial", port=0)
    yield made
    made.close()


@pytest.mark.parametrize("keys", ["none", "own"])
def test_a_stranger_on_the_loopback_changes_nothing_and_hears_nothing(stack, keys):
    calm = streams(stack, 300, [7])
    where, _, key = stack.status("target").endpoint.partition("#")
    assert where.startswith("tcp://127.0.0.1:") and len(key) == 64
    epoch, heard = stack.status("target").epoch, []

    def try_it() -> None:
        (seq,) = list(stack.session.verifiers._live)
        heard.append(meddle(where if keys == "none" else f"{where}#{key}", epoch, seq, keys == "own"))

    stormy = streams(stack, 300, [7], meanwhile=try_it)
    assert stormy[0][0] == calm[0][0] and heard == [0]
    assert len(stack.status("target").drafters) == 1
    stack.settled()
