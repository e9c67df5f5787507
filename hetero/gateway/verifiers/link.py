"""The way to one incarnation of a verifier, and the sequences that are there. Belongs to one event loop.

Any frame may be lost: pings tell the verifier how far each sequence has got here, and it mends the difference.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from typing import Any

import zmq
import zmq.asyncio

from hetero.gateway.verifiers.sequences import Delta, Live
from hetero.workers.errors import WireError
from hetero.workers.wire.codec import Drops, decode, encode
from hetero.workers.wire.messages import Cancel, Failed, Finished, Message, Ping, Pong, PromptLogprobs, Tokens
from hetero.workers.wire.sockets import Keys, connect_dealer

_log = logging.getLogger("hetero.gateway.verifiers")
_AT_ONCE = 100  # frames
_PING = 5.0  # seconds between signs of life; the verifier frees a silent gateway's sequences


class Link:
    """Dialled on construction."""

    def __init__(self, context: zmq.asyncio.Context, endpoint: str, keys: Keys, drops: Drops) -> None:
        self.live: dict[int, Live] = {}
        self.answered = asyncio.Event()  # it gave its first sign
        self._drops = drops
        name = b"gateway-" + secrets.token_hex(8).encode()
        self._socket: Any = connect_dealer(context, endpoint, name, keys)
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._ping())]
        for task in self._tasks:
            task.add_done_callback(_tell)

    def take(self, live: Live) -> None:
        """Have the verifier begin a sequence, or go on with it."""
        self.live[live.seq] = live
        self._send(live.asked())

    def leave(self, live: Live, cancel: bool) -> None:
        """A sequence is over, or is to be: ``cancel``."""
        if self.live.pop(live.seq, None) is not None and cancel:
            self._send(Cancel(live.seq))

    def close(self) -> list[Live]:
        """Hang up; returns the sequences that were there."""
        for task in self._tasks:
            task.cancel()
        self._socket.close(0)
        self.answered.set()  # nobody need wait for it
        left, self.live = list(self.live.values()), {}
        return left

    def _send(self, message: Message) -> None:
        # Not waited for: of a peer that is a thousand frames behind the next ping shows what it lacks.
        self._socket.send(encode(message), zmq.NOBLOCK).exception()

    async def _ping(self) -> None:
        while True:
            self._send(Ping("gateway", 0, [(seq, live.length) for seq, live in self.live.items()]))
            await asyncio.sleep(_PING)

    async def _read(self) -> None:
        at_hand: zmq.Socket[bytes] = zmq.Socket.shadow(self._socket)
        while True:
            frames = [await self._socket.recv()]
            with suppress(zmq.Again):  # what has come meanwhile: to wait for each costs as much as all the rest
                while len(frames) < _AT_ONCE:
                    frames.append(at_hand.recv(zmq.NOBLOCK))
            for frame in frames:
                try:
                    self._take(decode(frame))
                except WireError as error:
                    self._drops.add(frame, error)
            await asyncio.sleep(0)  # a frame at hand is no reason to wait: let the readers of these have their turn

    def _take(self, message: Message) -> None:
        if isinstance(message, Pong):
            self.answered.set()
        if not isinstance(message, Tokens | PromptLogprobs | Finished | Failed):
            return
        live = self.live.get(message.seq)
        if live is None:
            return
        match message:
            case Tokens():
                if message.base + len(message.tokens) <= live.length:
                    return  # known already
                if message.base != live.length:
                    self._send(live.so_far())
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
                live.fail("engine_error", "what the model thinks of the prompt was lost on the way: ask again")
            case Finished():
                if message.base != live.length:
                    self._send(live.so_far())
                    return
                live.deltas.put_nowait(Delta([], message.text, message.reason, message.stats, stop=message.stop))
            case Failed(code="unknown"):  # the verifier let go of it, thinking us gone
                self._send(live.so_far())
            case Failed():
                live.fail(message.code, message.message)


def _tell(task: asyncio.Task[None]) -> None:
    """A defect of ours, that nobody would see."""
    if not task.cancelled() and task.exception() is not None:
        _log.error("the link to a verifier broke: %r", task.exception())
