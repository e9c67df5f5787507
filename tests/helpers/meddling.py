"""What somebody without a key of the session may try at a verifier's socket."""

from __future__ import annotations

import time

import zmq

from helpers.real_workers import opening
from hetero.workers.wire.codec import encode
from hetero.workers.wire.messages import Cancel, Draft, Ping
from hetero.workers.wire.sockets import connect_dealer, make_keys


def meddle(endpoint: str, epoch: int, seq: int, keys: bool = True) -> int:
    """Pose as all there are, with keys of one's own or none, to a verifier that decodes ``seq``: returns how many of
    the sockets were answered."""
    context = zmq.Context()
    names = (b"stranger", f"drafter-0-{epoch:x}".encode(), b"gateway-0")
    sockets = [connect_dealer(context, endpoint, name, make_keys() if keys else None) for name in names]
    frames = [Ping("drafter", 1, []), Ping("gateway", 0, [(seq, 5)]), opening(77, [1, 2, 3]), Cancel(seq)]
    frames += [Draft(seq, epoch, 10, [-1], [5], [1.0], 0.1)]
    for socket in sockets:
        for frame in frames:
            try:
                socket.send(encode(frame), zmq.NOBLOCK)
            except zmq.Again:
                break
    time.sleep(1.0)
    heard = sum(bool(socket.poll(0)) for socket in sockets)
    for socket in sockets:
        socket.close(0)
    context.term()
    return heard
