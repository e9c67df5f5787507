"""Connections that do not ask, or do not read their answer: how long they may wait, and how many there may be."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE = 20.0  # seconds in which a connection's request, without its body, must have come
STALLED = 60.0  # seconds without room for more of an answer
_MOST = 4096  # connections
_FILES = 2  # a connection for so many files that may be open


def most_connections() -> int:
    """Connections this process takes; asks the system for more files than it gives at first."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return _MOST
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES * _MOST if hard == resource.RLIM_INFINITY else min(hard, _FILES * _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return _MOST if soft == resource.RLIM_INFINITY else min(_MOST, soft // _FILES)


class Connection(H11Protocol):
    """uvicorn's, which asks nothing of a client that has connected. One without a request is closed after ``IDLE``
    seconds, or earlier, the one that waits longest first, where another needs its place; one that does not read its
    answer after ``STALLED``."""

    most = _MOST
    waiting: ClassVar[OrderedDict[Connection, None]] = OrderedDict()  # of the process, those without a request
    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self.most:
            next(iter(self.waiting)).hang_up()  # there is one: this

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        before = self.cycle
        self._wait()
        super().on_response_complete()  # which goes on to a request that came meanwhile
        if self.cycle is not before:
            self._stop_waiting()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED, self.hang_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._read_on()
        super().connection_lost(exc)

    def hang_up(self) -> None:
        """Close it at once."""
        self._stop_waiting()
        self.connections.discard(self)
        self.transport.abort()

    def _read_on(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _wait(self) -> None:
        self._stop_waiting()
        self.waiting[self] = None
        self._timer = self.loop.call_later(IDLE, self.hang_up)

    def _stop_waiting(self) -> None:
        self.waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def options() -> dict[str, Any]:
    """What to tell uvicorn.Config."""
    Connection.most = most_connections()
    return {"http": Connection}
