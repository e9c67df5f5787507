"""The sockets: ZeroMQ, bounded, loopback only, nothing dropped in silence."""

from __future__ import annotations

import ipaddress
from typing import Any

import zmq

from workers.errors import WireError
from workers.wire.messages import MAX_FRAME

_HIGH_WATER = 100_000  # messages; a peer this far behind does not read any more


def bind_router(context: zmq.Context[Any], host: str = "127.0.0.1") -> tuple[zmq.Socket[Any], str]:
    """A ROUTER on a free port of ``host``; returns it with its endpoint. Raises WireError off the loopback."""
    if not ipaddress.ip_address(host).is_loopback:
        raise WireError(f"{host} is not a loopback address: workers listen on 127.0.0.1 only")
    socket = context.socket(zmq.ROUTER)
    _bound(socket)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    port = socket.bind_to_random_port(f"tcp://{host}")
    return socket, f"tcp://{host}:{port}"


def connect_dealer(context: zmq.Context[Any], endpoint: str, identity: bytes) -> Any:
    """A DEALER to a verifier's endpoint (of the same kind as ``context``: plain or asyncio)."""
    socket = context.socket(zmq.DEALER)
    _bound(socket)
    socket.setsockopt(zmq.IDENTITY, identity)
    socket.connect(endpoint)
    return socket


def _bound(socket: zmq.Socket[Any]) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
    socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
    socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10000)
