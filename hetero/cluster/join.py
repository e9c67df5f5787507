"""``hetero join``: lend this machine to a hetero that runs on another one, until Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from hetero.cluster.cluster import Cluster
from hetero.cluster.raynode import RayNode, address_towards, check_head, split_address
from hetero.cluster.token import use_token
from hetero.errors import ClusterError
from hetero.workers.models.cache import cache_root, disk_error
from hetero.workers.runtime.build import build

_KNOCK = 3.0  # seconds the other machine may take to answer
_STOPPED = 6  # refusals in a row, one a second, after which Ray there counts as stopped
_RETRY = 5.0  # seconds between tries to come back


class Leaving(BaseException):
    """A signal asked this machine to leave."""


def join(address: str, token: str, role: str, once: bool, say: Callable[[str], None]) -> None:
    """Be a machine of the cluster at ``address`` (HOST:PORT), with its ``role`` ("" for any), and again after each
    absence. ``once``: until Ray there stops, else until a signal. Raises ClusterError where it cannot be joined at
    all."""
    with _alone():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _leave)
        stays = _Stay(address, token, role, say)
        try:
            stays.enter()
            while True:
                why = stays.last()
                say(f"{why}{'' if once else '; waiting for it to come back (Ctrl-C leaves)'}")
                if once and stays.stopped:
                    return
                stays.come_back()
        except Leaving:
            say("leaving")
        finally:
            stays.leave()


class _Stay:
    """This machine's membership."""

    def __init__(self, address: str, token: str, role: str, say: Callable[[str], None]) -> None:
        self._host, self._port = split_address(address)
        self._address, self._token, self._role, self._say = address, token, role, say
        self._node: RayNode | None = None
        self.stopped = False  # whether Ray there has ended, as far as can be seen

    def enter(self) -> None:
        """Join, or say why not."""
        refused = self._knock()
        if refused is not None:
            raise ClusterError(
                f"{self._address} does not answer ({refused.strerror or refused}): is `hetero serve --cluster` running "
                f"there, and does its firewall let this machine in to port {self._port}?"
            )
        check_head(self._address, self._token)
        here = address_towards(self._host)
        self._node = RayNode(self._token, self._role, here, self._address)
        # Ray's own start does not look at what it joins: a wrong token, another hetero.
        others = _machines(self._address, self._token)
        head = next((node for node in others if node.address == self._host and node.build), None)
        if head is not None and head.build != build():
            raise ClusterError(f"{head.name} has hetero {head.build}, this machine {build()}: install the same on both")
        names = ", ".join(sorted(node.name for node in others if not node.here))
        self._say(f"joined as {here}: {names} may use this machine (Ctrl-C leaves)")

    def last(self) -> str:
        """Wait until the stay ends; returns why."""
        assert self._node is not None
        refusals = 0
        while True:
            time.sleep(1.0)
            refused = self._knock()
            refusals = refusals + 1 if isinstance(refused, ConnectionRefusedError) else 0
            self.stopped = refusals >= _STOPPED
            if self.stopped or not self._node.alive:
                self._node.end()
                return "Ray has stopped there" if self.stopped else "the connection was lost for too long"

    def come_back(self) -> None:
        """Join again, however long it takes."""
        while True:
            time.sleep(_RETRY)
            if self._knock() is not None:
                continue
            try:
                self.enter()
                return
            except ClusterError as error:
                self._say(f"not yet: {error}")

    def leave(self) -> None:
        if self._node is not None:
            self._node.end()

    def _knock(self) -> OSError | None:
        try:
            socket.create_connection((self._host, self._port), timeout=_KNOCK).close()
            return None
        except OSError as error:
            return error


def _machines(address: str, token: str) -> list[Any]:
    use_token(token)
    cluster = Cluster(address)
    cluster.join()
    try:
        return cluster.nodes()
    finally:
        cluster.leave()


def _leave(number: int, frame: object) -> None:
    raise Leaving


class _alone:
    """A machine joins once: the ports are fixed."""

    def __enter__(self) -> None:
        folder = cache_root()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / "joined", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise disk_error(folder, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise ClusterError("this machine is joined already: another `hetero join` runs here") from None

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
