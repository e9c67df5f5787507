"""Another user of the same machine: whoever has no key of this session's can neither ask, read, cancel nor pose."""

from __future__ import annotations

import time

import pytest
import zmq
from helpers.real_workers import opening
from helpers.running_server import RunningServer
from helpers.streams import streams

from hetero.workers.wire.codec import encode
from hetero.workers.wire.messages import Cancel, Draft, Ping
from hetero.workers.wire.sockets import connect_dealer, make_keys


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

    def meddle() -> None:
        context = zmq.Context()
        names = (b"stranger", f"drafter-0-{epoch:x}".encode(), b"gateway-0")
        endpoint = where if keys == "none" else f"{where}#{key}"
        sockets = [connect_dealer(context, endpoint, name, make_keys() if keys == "own" else None) for name in names]
        (seq,) = list(stack.session.client._live)
        frames = [Ping("drafter", 1, []), Ping("gateway", 0, [(seq, 5)]), opening(77, [1, 2, 3]), Cancel(seq)]
        frames += [Draft(seq, epoch, 10, [-1], [5], [1.0], 0.1)]
        for socket in sockets:
            for frame in frames:
                try:
                    socket.send(encode(frame), zmq.NOBLOCK)
                except zmq.Again:
                    break
        time.sleep(1.0)
        heard.extend(socket for socket in sockets if socket.poll(0))
        for socket in sockets:
            socket.close(0)
        context.term()

    stormy = streams(stack, 300, [7], meanwhile=meddle)
    assert stormy[0][0] == calm[0][0] and not heard
    assert len(stack.status("target").drafters) == 1
    stack.settled()
