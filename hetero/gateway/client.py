"""The gateway's end of the wire: asks a verifier for sequences, and survives its restarts without a gap."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import zmq
import zmq.asyncio
from msgspec import structs

from hetero.errors import SequenceFailed
from hetero.workers.errors import WireError
from hetero.workers.wire.codec import Drops, decode, encode
from hetero.workers.wire.messages import (
    Cancel,
    Failed,
    Finished,
    Logprob,
    Message,
    Open,
    Ping,
    Pong,
    PromptLogprobs,
    Resume,
    Round,
    Sampling,
    Stats,
    Tokens,
)
from hetero.workers.wire.sockets import connect_dealer, make_keys

_log = logging.getLogger("hetero.gateway.client")
_STALLS = 2
_PING = 5.0  # seconds between signs of life; the verifier frees a silent gateway's sequences


@dataclass(frozen=True)
class Delta:
    """New tokens and the text they release, or what is thought of the ``prompt``'s. The last delta has ``reason``,
    ``stats``, and the ``stop`` string that ended it, if one did."""

    tokens: list[int]
    text: str
    reason: str | None = None
    stats: Stats | None = None
    logprobs: list[Logprob] = field(default_factory=list)
    round: Round | None = None
    prompt: list[Logprob] = field(default_factory=list)
    stop: str = ""
    at: float = field(default_factory=time.monotonic)  # when it came


def ask(prompt: list[int], sampling: Sampling, max_tokens: int, stop: list[str] | None = None, **more: Any) -> Open:
    """What is wanted of one sequence; ``more`` are fields of ``Open``."""
    return Open(secrets.randbits(62), 0, prompt, [], sampling, max_tokens, stop or [], **more)


@dataclass
class _Live:
    """A sequence under way."""

    opening: Open
    deltas: asyncio.Queue[Delta | SequenceFailed] = field(default_factory=asyncio.Queue)
    tokens: list[int] = field(default_factory=list)
    known: int = 1  # tokens of the prompt that need no logprobs any more
    resumed: int | None = None  # how many tokens it had when it was last taken up by another verifier
    stalls: int = 0  # verifiers in a row that ended without bringing it any further

    @property
    def length(self) -> int:
        return len(self.opening.prompt) + len(self.tokens)


class VerifierClient:
    """All methods belong to one event loop, except where said."""

    def __init__(self, patience: float = 300.0) -> None:
        """``patience``: seconds a running sequence waits for a lost verifier before it fails."""
        self._patience = patience
        self.keys = make_keys()
        self.drops = Drops(_log)
        self._context = zmq.asyncio.Context()
        self._socket: Any = None
        self._live: dict[int, _Live] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._linked = asyncio.Event()
        self._lost_at = time.monotonic()
        self._answered = asyncio.Event()
        self._changing = asyncio.Lock()

    @property
    def live(self) -> int:
        """Sequences under way."""
        return len(self._live)

    async def link(self, endpoint: str) -> None:
        """A verifier listens at ``endpoint`` now: dial it, resume what is under way, wait for its first sign."""
        async with self._changing:
            await self._unlink()
            name = b"gateway-" + secrets.token_hex(8).encode()
            self._socket = connect_dealer(self._context, endpoint, name, self.keys)
            self._answered.clear()
            self._linked.set()
            for live in list(self._live.values()):
                live.stalls = live.stalls + 1 if live.resumed == len(live.tokens) else 0
                live.resumed = len(live.tokens)
                if live.stalls >= _STALLS:  # it may be what ends them: it must not end them all
                    why = f"the verifier ended {_STALLS + 1} times at this request"
                    live.deltas.put_nowait(SequenceFailed("engine_error", why))
                    continue
                await self._resume(live)
            self._tasks = [asyncio.create_task(self._read(self._socket)), asyncio.create_task(self._ping())]
        await self._answered.wait()

    def lost(self) -> None:
        """The verifier is gone: sequences wait for the next ``link``."""
        self._linked.clear()
        self._lost_at = time.monotonic()

    def _lost_for(self) -> float:
        """Seconds without a verifier."""
        return 0.0 if self._linked.is_set() else time.monotonic() - self._lost_at

    def give_up(self, why: str) -> None:
        """No verifier will come back: all sequences under way fail."""
        for live in self._live.values():
            live.deltas.put_nowait(SequenceFailed("unavailable", why))

    async def close(self) -> None:
        """Hang up; sequences under way are the verifier's to free."""
        async with self._changing:
            await self._unlink()
            self._context.term()

    async def generate(self, opening: Open, seconds: float = 0.0) -> AsyncGenerator[Delta]:
        """The deltas of one sequence (``ask``). Leaving the iterator early cancels it; it fails after ``seconds`` (0:
        never), also when nobody reads it then. Raises SequenceFailed."""
        live = self._live[opening.seq] = _Live(opening)
        timer = asyncio.get_running_loop().call_later(seconds, self._expire, live, seconds) if seconds else None
        done = False
        try:
            if self._linked.is_set():
                await self._send(opening)
            # otherwise link() opens it
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
            self._live.pop(opening.seq, None)
            if not done:
                self._cancel(opening.seq)

    def _expire(self, live: _Live, seconds: float) -> None:
        self._live.pop(live.opening.seq, None)
        self._cancel(live.opening.seq)
        why = f"request_timeout: the request took more than {seconds:g} s (--timeout)"
        live.deltas.put_nowait(SequenceFailed("request_timeout", why))

    def _cancel(self, seq: int) -> None:
        if self._socket is not None:
            self._socket.send(encode(Cancel(seq)), zmq.NOBLOCK)

    async def _next(self, live: _Live) -> Delta:
        while True:
            try:
                async with asyncio.timeout(self._patience - self._lost_for()):
                    found = await live.deltas.get()
            except TimeoutError:
                if self._lost_for() < self._patience:
                    continue  # a long queue or a slow model; or the verifier was lost only lately
                why = f"verifier_timeout: the verifier did not come back in {self._patience:.0f} s"
                raise SequenceFailed("unavailable", why) from None
            if isinstance(found, SequenceFailed):
                raise found
            return found

    async def _unlink(self) -> None:
        self.lost()
        for task in self._tasks:
            task.cancel()
        for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                _log.error("the link to the verifier broke: %r", ended)
        self._tasks = []
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None

    async def _send(self, message: Message) -> None:
        await self._socket.send(encode(message))

    async def _resume(self, live: _Live) -> None:
        asked = live.opening
        await self._send(Resume(structs.replace(asked, committed=list(live.tokens))))

    async def _ping(self) -> None:
        while True:
            # The lengths let the verifier see what of its words was lost.
            await self._send(Ping("gateway", 0, [(seq, live.length) for seq, live in self._live.items()]))
            await asyncio.sleep(_PING)

    async def _read(self, socket: Any) -> None:
        while True:
            frame = await socket.recv()
            try:
                await self._take(decode(frame))
            except WireError as error:
                self.drops.add(frame, error)

    async def _take(self, message: Message) -> None:
        if isinstance(message, Pong):
            self._answered.set()
        if not isinstance(message, Tokens | PromptLogprobs | Finished | Failed):
            return
        live = self._live.get(message.seq)
        if live is None:
            return
        match message:
            case Tokens():
                if message.base + len(message.tokens) <= live.length:
                    return  # known already
                if message.base != live.length:
                    await self._resume(live)
                    return
                live.tokens += message.tokens
                live.deltas.put_nowait(
                    Delta(message.tokens, message.text, logprobs=message.logprobs, round=message.round)
                )
            case PromptLogprobs():
                fresh = message.logprobs[max(0, live.known - message.base) :]
                if message.base <= live.known and fresh:
                    live.known += len(fresh)
                    live.deltas.put_nowait(Delta([], "", prompt=fresh))
            case Finished() if live.opening.prompt_logprobs >= 0 and live.known < len(live.opening.prompt):
                why = "what the model thinks of the prompt was lost on the way: ask again"
                live.deltas.put_nowait(SequenceFailed("engine_error", why))
            case Finished():
                if message.base != live.length:
                    await self._resume(live)
                    return
                live.deltas.put_nowait(Delta([], message.text, message.reason, message.stats, stop=message.stop))
            case Failed(code="unknown"):  # the verifier let go of it, thinking us gone
                await self._resume(live)
            case Failed():
                live.deltas.put_nowait(SequenceFailed(message.code, message.message))
