"""Connections that do not ask, or do not read their answer: how long they may wait, and how many there may be."""

from __future__ import annotations

import asyncio
import asyncio.constants as constants
from collections import OrderedDict
from contextlib import suppress
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE = 20.0  # seconds in which a new connection's request, without its body, must have come
KEPT = 75.0  # the same of the next one: clients keep connections, and ask again by them
STALLED = 60.0  # seconds without room for more of an answer
_HANDSHAKE = 10.0  # seconds TLS may take to begin
_MOST = 16_384  # connections
_OTHERS = 1024  # files that may be open beside them


def most_connections() -> int:
    """Connections this process takes; asks the system for more files than it gives at first."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return _MOST
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST + _OTHERS if hard == resource.RLIM_INFINITY else min(hard, _MOST + _OTHERS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # a system may have a limit beside the one it tells
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return _MOST if soft == resource.RLIM_INFINITY else min(_MOST, max(soft - _OTHERS, soft // 2))


class Connection(H11Protocol):
    """uvicorn's, which asks nothing of a client that has connected. One without a request is closed after ``IDLE``
    seconds (``KEPT`` where it had one before), one that reads nothing of its answer after ``STALLED``. Where another
    needs its place, first the one goes whose whole request has been awaited longest."""

    most = _MOST
    waiting: ClassVar[OrderedDict[Connection, None]] = OrderedDict()  # of the process, those without a whole request
    _idle: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(IDLE)
        if len(self.connections) > self.most:
            next(iter(self.waiting)).hang_up()  # there is one: this

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:  # how long its body may take is the guard's affair
            _cancel(self._idle)
        if self.cycle is not None and not (self.cycle.more_body or self.cycle.response_complete):
            self.waiting.pop(self, None)

    def on_response_complete(self) -> None:
        self._wait(KEPT)
        super().on_response_complete()  # which goes on to a request that came meanwhile

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self._later(STALLED)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)

    def hang_up(self) -> None:
        """Close it at once."""
        self._leave()
        self.connections.discard(self)
        self.transport.abort()

    def _wait(self, seconds: float) -> None:
        _cancel(self._idle)
        self.waiting[self] = None
        self._idle = self._later(seconds)

    def _later(self, seconds: float) -> asyncio.TimerHandle:
        """Hang up in so many seconds, unless more of what was written has been read by then."""
        unread = self.transport.get_write_buffer_size()

        def look() -> None:
            left = self.transport.get_write_buffer_size()
            if left >= unread:
                self.hang_up()
            elif self._stalled is timer:
                self._stalled = self._later(seconds)
            else:
                self._idle = self._later(seconds)

        timer = self.loop.call_later(seconds, look)
        return timer

    def _leave(self) -> None:
        self.waiting.pop(self, None)
        _cancel(self._idle)
        _cancel(self._stalled)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def options() -> dict[str, Any]:
    """What to tell uvicorn.Config."""
    Connection.most = most_connections()
    constants.SSL_HANDSHAKE_TIMEOUT = _HANDSHAKE  # uvicorn has no setting for it
    return {"http": Connection, "timeout_keep_alive": int(KEPT)}
