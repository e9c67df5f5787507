"""What crosses sockets: messages come back as they went, anything else is refused."""

from __future__ import annotations

import math

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero.workers.errors import WireError
from hetero.workers.wire.codec import decode, encode
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


def test_sockets_stay_on_the_loopback():
    with pytest.raises(WireError, match="loopback"):
        bind_router(None, "0.0.0.0")
