"""The sockets: ZeroMQ, bounded, nothing dropped in silence; plain on the loopback, CURVE everywhere else.

An endpoint is ``tcp://HOST:PORT``, with ``#`` and the listener's public key in hex where CURVE is spoken. Both ends
prove who they are: a dialler knows the listener's key, a listener lets in the keys it was told (``Doorkeeper``).
"""

from __future__ import annotations

import ipaddress
import threading
from dataclasses import dataclass
from typing import Any

import zmq
import zmq.auth.thread
from zmq.utils import z85

from hetero.workers.errors import WireError
from hetero.workers.wire.messages import MAX_FRAME

_HIGH_WATER = 100_000  # messages; a peer this far behind does not read any more
_HEARTBEAT, _DEAF = 2000, 10_000  # milliseconds between them, and without one until a connection is made anew


@dataclass(frozen=True)
class Keys:
    """A CURVE key pair of one incarnation. ``public`` in hex, as it is published."""

    public: str
    secret: bytes

    @property
    def pair(self) -> tuple[bytes, bytes]:
        """(public, secret) as ZeroMQ wants them."""
        return z85.encode(bytes.fromhex(self.public)), self.secret


def make_keys() -> Keys:
    """New keys, never written down."""
    public, secret = zmq.curve_keypair()
    return Keys(z85.decode(public).hex(), secret)


class Doorkeeper:
    """Lets only known keys in to the sockets of a context; keys may change at any time, from any thread."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self.turned_away = 0
        self._known: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self._thread = zmq.auth.thread.ThreadAuthenticator(context)
        self._thread.start()
        self._thread.configure_curve_callback(domain="*", credentials_provider=self)

    def admit(self, keys: frozenset[str]) -> None:
        """From now on these public keys, and no others."""
        self._known = keys

    def callback(self, domain: str, key: bytes) -> bool:
        """ZeroMQ asks: may the owner of this key come in?"""
        known = z85.decode(key).hex() in self._known
        if not known:
            with self._lock:
                self.turned_away += 1
        return known

    def close(self) -> None:
        """Before its context ends."""
        self._thread.stop()


def bind_router(
    context: zmq.Context[Any], host: str = "127.0.0.1", keys: Keys | None = None, ports: tuple[int, int] | None = None
) -> tuple[zmq.Socket[Any], str]:
    """A ROUTER on a free port of ``host``, within ``ports`` (both included); returns it with its endpoint.

    Raises WireError off the loopback without ``keys``, and where no port is free.
    """
    if keys is None and not ipaddress.ip_address(host).is_loopback:
        raise WireError(f"{host} is not a loopback address: there workers listen with keys only")
    socket = context.socket(zmq.ROUTER)
    _bound(socket)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    if keys is not None:
        socket.curve_publickey, socket.curve_secretkey = keys.pair
        socket.curve_server = True
    first, last = ports or (49152, 65535)
    where = f"[{host}]" if ":" in host else host
    try:
        port = socket.bind_to_random_port(f"tcp://{where}", first, last + 1, max_tries=max(100, 2 * (last - first + 1)))
    except zmq.ZMQError as error:
        socket.close(0)
        raise WireError(f"worker_ports: no port of {host} within {first}-{last} can be had ({error})") from error
    return socket, f"tcp://{where}:{port}" + (f"#{keys.public}" if keys else "")


def connect_dealer(context: zmq.Context[Any], endpoint: str, identity: bytes, keys: Keys | None = None) -> Any:
    """A DEALER to a verifier's endpoint (of the same kind as ``context``: plain or asyncio)."""
    where, _, public = endpoint.partition("#")
    socket = context.socket(zmq.DEALER)
    _bound(socket)
    socket.setsockopt(zmq.IDENTITY, identity)
    if where.startswith("tcp://["):
        socket.setsockopt(zmq.IPV6, 1)
    if public:
        own = keys or make_keys()
        socket.curve_publickey, socket.curve_secretkey = own.pair
        socket.curve_serverkey = z85.encode(bytes.fromhex(public))
    socket.connect(where)
    return socket


def _bound(socket: zmq.Socket[Any]) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    # A frame up to twice the limit is read, dropped and counted; beyond, ZeroMQ hangs up on its sender.
    socket.setsockopt(zmq.MAXMSGSIZE, 2 * MAX_FRAME)
    socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
    # None for what has come: a reader that is so far behind does not hear heartbeats, its connection is made anew, and
    # the room it then makes ends the process (libzmq's issue 3937).
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _DEAF)
