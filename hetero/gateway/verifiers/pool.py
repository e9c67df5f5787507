"""The gateway's end of the wire: asks verifiers for sequences, and survives the end of any of them without a gap."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator

import zmq.asyncio

from hetero.errors import SequenceFailed
from hetero.gateway.verifiers.link import Link
from hetero.gateway.verifiers.routing import Router
from hetero.gateway.verifiers.sequences import SILENCE, Delta, Live
from hetero.workers.wire.codec import Drops
from hetero.workers.wire.messages import Open
from hetero.workers.wire.sockets import make_keys

QUIET = 15.0  # seconds without a word after which a stream gets a comment, so that proxies keep it
_log = logging.getLogger("hetero.gateway.verifiers")


class Verifiers:
    """Any number of verifiers of one model, by their index. All methods belong to one event loop."""

    def __init__(self, places: int = 1, patience: float = 300.0) -> None:
        """``places``: sequences each decodes at once; ``patience``: seconds a sequence waits while there is no verifier
        before it fails."""
        self._patience = patience
        self.keys = make_keys()
        self.drops = Drops(_log)
        self._context = zmq.asyncio.Context()
        self._router = Router(places)
        self._links: dict[int, Link] = {}
        self._live: dict[int, Live] = {}
        self._waiting: dict[int, Live] = {}  # those of them that no verifier has
        self._lost_at = time.monotonic()
        self._places, self._closed = places, False

    @property
    def live(self) -> int:
        """Sequences under way."""
        return len(self._live)

    async def link(self, index: int, endpoint: str) -> None:
        """A verifier listens at ``endpoint`` now: dial it, give it what waits, wait for its first sign."""
        if self._closed:
            return
        self.lost(index)
        link = self._links[index] = Link(self._context, endpoint, self.keys, self.drops)
        waiting, self._waiting = list(self._waiting.values()), {}
        for live in waiting:
            self._place(live)
        await link.answered.wait()

    def lost(self, index: int) -> None:
        """A verifier is gone: its sequences go to another, or wait for the next ``link``."""
        link = self._links.pop(index, None)
        if link is None:
            return
        self._router.forget(index)
        if not self._links:
            self._lost_at = time.monotonic()
        for n, live in enumerate(link.close()):  # the first ones had a place there, the others waited for one
            if live.bereft(n < self._places):
                self._place(live)

    def give_up(self, why: str) -> None:
        """No verifier will come back: all sequences under way fail."""
        for live in self._live.values():
            live.fail("unavailable", why)

    async def close(self) -> None:
        """Hang up; sequences under way are the verifiers' to free."""
        self._closed = True
        links, self._links = list(self._links.values()), {}
        for link in links:
            link.close()
        await asyncio.sleep(0)  # their tasks end
        self._context.destroy(0)

    async def generate(self, opening: Open, seconds: float = 0.0) -> AsyncGenerator[Delta]:
        """The deltas of one sequence (``ask``), SILENCE where none comes for ``QUIET`` seconds. Leaving the iterator
        early cancels it; it fails after ``seconds`` (0: never), also when nobody reads it then. Raises
        SequenceFailed."""
        live = self._live[opening.seq] = Live(opening)
        timer = asyncio.get_running_loop().call_later(seconds, self._expire, live, seconds) if seconds else None
        done = False
        try:
            self._place(live)
            while True:
                delta = await self._next(live)
                yield delta
                if delta.reason is not None:
                    done = True
                    return
        except SequenceFailed:
            done = True
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._leave(live, cancel=not done)

    def _place(self, live: Live) -> None:
        """Give it to a verifier, or have it wait for one."""
        if live.seq not in self._live:  # it ended meanwhile
            return
        if not self._links:
            self._waiting[live.seq] = live
            return
        tokens = [*live.opening.prompt, *live.tokens]
        self._links[self._router.choose(tokens, {n: len(link.live) for n, link in self._links.items()})].take(live)

    def _leave(self, live: Live, cancel: bool) -> None:
        """It is over."""
        if self._live.pop(live.seq, None) is None:
            return
        self._waiting.pop(live.seq, None)
        for index, link in self._links.items():
            if live.seq in link.live:
                self._router.note(index, [*live.opening.prompt, *live.tokens])
                link.leave(live, cancel)

    def _expire(self, live: Live, seconds: float) -> None:
        self._leave(live, cancel=True)
        live.fail("request_timeout", f"request_timeout: the request took more than {seconds:g} s (--timeout)")

    def _lost_for(self) -> float:
        """Seconds without a verifier."""
        return 0.0 if self._links else time.monotonic() - self._lost_at

    async def _next(self, live: Live) -> Delta:
        try:
            async with asyncio.timeout(min(QUIET, self._patience - self._lost_for())):
                found = await live.deltas.get()
        except TimeoutError:
            if self._lost_for() < self._patience:
                return SILENCE  # a long queue or a slow model; or the verifiers were lost only lately
            why = f"verifier_timeout: no verifier came back in {self._patience:.0f} s"
            raise SequenceFailed("unavailable", why) from None
        if isinstance(found, SequenceFailed):
            raise found
        return found
