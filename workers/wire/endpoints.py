"""A worker's end of the wire: frames in and out of its socket, and what wakes it."""

from __future__ import annotations

import math
import os
from typing import Any

import zmq

from hetero.workers.errors import WireError
from hetero.workers.wire.sockets import Doorkeeper, Keys, bind_router, connect_dealer


class Listening:
    """The verifier's end: a ROUTER that peers dial."""

    def __init__(self, context: zmq.Context[Any], host: str, ports: tuple[int, int] | None, keys: Keys | None) -> None:
        """Raises WireError where no port can be had."""
        self.door = Doorkeeper(context) if keys is not None else None
        try:
            self._socket, self.endpoint = bind_router(context, host, keys, ports)
        except WireError:
            if self.door is not None:
                self.door.close()
            raise
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)

    def wait(self, wake_fd: int, seconds: float) -> None:
        _wait(self._poller, wake_fd, seconds)

    def receive(self, most: int) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        while len(found) < most:
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if len(parts) == 2:
                found.append((parts[0], parts[1]))
            else:
                found.append((parts[0], b""))
        return found

    def send(self, peer: bytes, frame: bytes) -> bool:
        """False when the peer is gone, or so far behind that it counts as gone."""
        try:
            self._socket.send_multipart([peer, frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True

    def close(self) -> None:
        self._socket.close(0)
        if self.door is not None:
            self.door.close()


class Dialling:
    """The drafter's end: a DEALER to each of its verifiers, by their index."""

    endpoint = ""
    door = None

    def __init__(self, context: zmq.Context[Any], identity: bytes, keys: Keys | None) -> None:
        self._context = context
        self._keys = keys
        self._identity = identity
        self._poller = zmq.Poller()
        self._sockets: dict[bytes, zmq.Socket[Any]] = {}
        self._endpoints: dict[bytes, str] = {}

    def dial(self, endpoint: str, index: int) -> bytes:
        """Connect to the verifier of an index, leaving its last incarnation; returns its name as a peer."""
        peer = b"verifier-%d" % index
        if self._endpoints.get(peer) == endpoint:
            return peer
        self._hang_up(peer)
        self._endpoints[peer] = endpoint
        socket = self._sockets[peer] = connect_dealer(self._context, endpoint, self._identity, self._keys)
        self._poller.register(socket, zmq.POLLIN)
        return peer

    def wait(self, wake_fd: int, seconds: float) -> None:
        _wait(self._poller, wake_fd, seconds)

    def receive(self, most: int) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        for peer, socket in self._sockets.items():
            for _ in range(most):
                try:
                    found.append((peer, socket.recv(zmq.NOBLOCK)))
                except zmq.Again:
                    break
        return found

    def send(self, peer: bytes, frame: bytes) -> bool:
        socket = self._sockets.get(peer)
        if socket is None:
            return False
        try:
            socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        for peer in list(self._sockets):
            self._hang_up(peer)

    def _hang_up(self, peer: bytes) -> None:
        socket = self._sockets.pop(peer, None)
        if socket is not None:
            self._poller.unregister(socket)
            socket.close(0)


def _wait(poller: zmq.Poller, wake_fd: int, seconds: float) -> None:
    """Until the socket has input, the pipe was written to, or the time has come."""
    if wake_fd not in dict(poller.sockets):
        poller.register(wake_fd, zmq.POLLIN)
    limit = 1000 if math.isinf(seconds) else max(0, min(1000, math.ceil(seconds * 1e3)))
    if wake_fd in dict(poller.poll(limit)):
        os.read(wake_fd, 4096)
