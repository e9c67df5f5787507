"""What crosses sockets: messages come back as they went, anything else is refused."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero.workers.errors import WireError
from hetero.workers.wire.codec import Drops, decode, encode
from hetero.workers.wire.messages import (
    Commit,
    Draft,
    Failed,
    Finished,
    Hint,
    Open,
    Ping,
    Pong,
    Resume,
    Sampling,
    Stats,
    Tokens,
)
from hetero.workers.wire.sockets import bind_router

SAMPLING = Sampling(0.8, 0, 1.0, 0.0, 2**63 - 1, 0)
OPENING = Open(1, 2, [1, 2, 3], [4], SAMPLING, 10, ["stop"])
MESSAGES = [
    OPENING,
    Resume(OPENING),
    Commit(1, 2, 3, [4, 5], 0.0),
    Hint(1, 2, 3, [-1, 0], [4, 5], [[6, 7], []]),
    Draft(1, 2, 3, [-1, 0], [5, 6], [0.5, 1.0], 0.25),
    Tokens(1, 2, 3, [4], "né"),
    Finished(1, 2, 3, "stop", "", Stats(1, 2.0, 3, 4.0, 5, 6, 7, 0, 8, 9.5)),
    Failed(1, 2, "code", "why"),
    Ping("drafter", 1, [(1, 2)]),
    Pong(4),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_messages_come_back_as_they_went(message):
    assert decode(encode(message)) == message


def raw(**fields):
    return msgpack.packb(fields)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\x80\x04\x95",  # a pickle
        raw(type="Nope"),
        raw(type="Pong"),
        raw(type="Pong", epoch=1, more=2),
        raw(type="Pong", epoch=-1),
        raw(type="Pong", epoch=2**63),
        raw(type="Pong", epoch="1"),
        raw(type="Pong", epoch=1.0),
        raw(type="Commit", seq=1, epoch=1, base=2**40, tokens=[], due=0.0),
        raw(type="Commit", seq=1, epoch=1, base=0, tokens=[-1], due=0.0),
        raw(type="Commit", seq=1, epoch=1, base=0, tokens=[2**31], due=0.0),
        raw(type="Commit", seq=1, epoch=1, base=0, tokens=[1], due=-1.0),
        raw(type="Commit", seq=1, epoch=1, base=0, tokens=[1], due=math.inf),
        raw(type="Draft", seq=1, epoch=1, base=0, parents=[-2], tokens=[1], chances=[1.0], seconds=0.0),
        raw(type="Draft", seq=1, epoch=1, base=0, parents=[-1] * 1025, tokens=[1], chances=[1.0], seconds=0.0),
        raw(type="Draft", seq=1, epoch=1, base=0, parents=[-1], tokens=[1], chances=[math.nan], seconds=0.0),
        raw(type="Draft", seq=1, epoch=1, base=0, parents=[-1], tokens=[1], chances=[1.5], seconds=0.0),
        raw(type="Draft", seq=1, epoch=1, base=0, parents=[-1], tokens=[1], chances=[1.0], seconds=1e9),
        raw(type="Hint", seq=1, epoch=1, base=0, parents=[-1], tokens=[1], likely=[[1] * 17]),
        msgpack.packb([1, 2, 3]),
        msgpack.packb({"type": "Pong", "epoch": msgpack.ExtType(5, b"x")}),
        b"\x81" * 2000,
        encode(OPENING) + b"x",
    ],
)
def test_anything_else_is_refused(frame):
    with pytest.raises(WireError):
        decode(frame)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_bytes_never_do_more_than_fail(data):
    with pytest.raises(WireError):
        decode(data)


def _list(count: int, item: bytes) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big") + item * count


MANY = 14 << 20  # bytes: within the limit of a frame


@pytest.mark.parametrize(
    "frame",
    [
        b"\x82\xa4type\xa6Commit\xa6tokens" + _list(MANY, b"\x90"),  # empty lists
        b"\x82\xa6tokens" + _list(MANY, b"\x90") + b"\xa4type\xa6Commit",  # its kind at last
        b"\x83\xa1x" + _list(MANY, b"\x90") + b"\xa4type\xa6Commit\xa6tokens\x90",  # a field it has not
        _list(MANY, b"\x80"),
        b"\x82\xa4type\xa6Commit\xa6tokens" + b"\x91" * MANY,  # deep
        b"\x82\xa6tokens" + b"\x91" * MANY,
        b"\x82\xa4type\xa6Commit\xa6tokens" + b"\xdd\xff\xff\xff\xff",  # a length that is not there
        b"\x82\xa4type\xa4Pong\xa5epoch" + b"\xc9" + MANY.to_bytes(4, "big") + b"\x05" + b"x" * MANY,
    ],
    ids=["lists", "kind last", "strange field", "maps", "deep", "deep kind", "lie", "extension"],
)
def test_a_large_frame_costs_no_more_than_its_bytes(frame):
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            decode(frame)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_dropped_frames_are_told_of_once_in_a_while(caplog):
    drops = Drops(logging.getLogger("x"))
    for _ in range(1000):
        drops.add(b"abc", WireError("no"))
    assert drops.count == 1000 and len(caplog.records) == 1


def test_sockets_stay_on_the_loopback():
    with pytest.raises(WireError, match="loopback"):
        bind_router(None, "0.0.0.0")


_BEHIND = """
import time, zmq
from hetero.workers.wire import sockets
sockets._HEARTBEAT, sockets._DEAF, sockets._HIGH_WATER = 50, 150, 1000
context = zmq.Context()
router, endpoint = sockets.bind_router(context)
dealer = sockets.connect_dealer(context, endpoint, b"slow")
dealer.send(b"here")
router.recv_multipart()
sent = got = 0
while sent < 50_000:
    try:
        router.send_multipart([b"slow", b"x" * 1000], zmq.NOBLOCK)
    except zmq.Again:
        break
    sent += 1
time.sleep(1)
while dealer.poll(1000):
    dealer.recv()
    got += 1
print(sent > 1000, got >= min(sent, 1000))
"""


def test_a_reader_far_behind_is_not_ended():
    """In a process of its own: libzmq aborted where the reader's queue was full for longer than heartbeats may lack."""
    done = subprocess.run([sys.executable, "-P", "-c", _BEHIND], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "True True\n"), done.stderr[-500:]
