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
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Leaving(BaseException):
    """A signal asked this machine to leave."""


def join(address: str, token: str, role: str, once: bool, say: Callable[[str], None]) -> None:
    """Be a machine of the cluster at ``address`` (HOST:PORT), with its ``role`` ("" for any), and again after each
    absence. ``once``: until Ray there stops, else until a signal. Raises ClusterError where it cannot be joined at
    all."""
    with _alone():
        for number in _SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, _leave)
        stay = _Stay(address, token, role, say)
        try:
            stay.enter()
            while True:
                why = stay.last()
                say(f"{why}{'' if once and stay.stopped else '; waiting for it to come back (Ctrl-C leaves)'}")
                if not stay.come_back(once):
                    return
        except Leaving:
            say("leaving")
        finally:
            stay.leave()


class _Stay:
    """This machine's membership."""

    def __init__(self, address: str, token: str, role: str, say: Callable[[str], None]) -> None:
        self._host, self._port = split_address(address)
        self._address, self._token, self._role, self._say = address, token, role, say
        self._node: RayNode | None = None
        self._refusals = 0  # in a row: its machine is there, Ray is not

    @property
    def stopped(self) -> bool:
        """Whether Ray there has ended, as far as can be seen."""
        return self._refusals >= _STOPPED

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
        try:
            others = _machines(self._address, self._token)
            known = {found[4][0] for found in socket.getaddrinfo(self._host, self._port)}
            head = next((node for node in others if node.address in known and node.build), None)
            if head is not None and head.build != build():  # Ray's own start does not look at that
                raise ClusterError(
                    f"{head.name} has hetero {head.build}, this machine {build()}: install the same on both"
                )
        except BaseException:
            self._node.end()
            raise
        names = ", ".join(sorted(node.name for node in others if not node.here))
        self._say(f"joined as {here}: {names} may use this machine (Ctrl-C leaves)")

    def last(self) -> str:
        """Wait until the stay ends; returns why."""
        assert self._node is not None
        while True:
            time.sleep(1.0)
            self._knock()
            if self.stopped or not self._node.alive:
                self._node.end()
                return "Ray has stopped there" if self.stopped else "the connection was lost for too long"

    def come_back(self, once: bool) -> bool:
        """Join again, however long it takes; with ``once`` only until Ray there is seen to have stopped: False."""
        while True:
            if once and self.stopped:
                return False
            time.sleep(1.0 if once else _RETRY)
            if self._knock() is not None:
                continue
            try:
                self.enter()
                return True
            except ClusterError as error:
                self._say(f"not yet: {error}")
                time.sleep(_RETRY)

    def leave(self) -> None:
        if self._node is not None:
            self._node.end()

    def _knock(self) -> OSError | None:
        try:
            socket.create_connection((self._host, self._port), timeout=_KNOCK).close()
            self._refusals = 0
            return None
        except OSError as error:
            self._refusals = self._refusals + 1 if isinstance(error, ConnectionRefusedError) else 0
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
    for other in _SIGNALS:  # once is enough: what follows must not be cut short
        signal.signal(other, signal.SIG_IGN)
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
