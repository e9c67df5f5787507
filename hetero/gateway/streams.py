"""Several sequences as one stream of deltas, and what becomes of them when nobody reads any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import anyio
from fastapi import Request

from hetero.gateway.verifiers.sequences import Delta

_Result = TypeVar("_Result")


async def merge(sources: Sequence[AsyncGenerator[Delta]]) -> AsyncGenerator[tuple[int, Delta]]:
    """The deltas of all sources as they come, each with its source's number.

    Leaving it, or a failure of one source, closes them all.
    """
    if len(sources) == 1:
        async with aclosing(sources[0]) as source:
            async for delta in source:
                yield 0, delta
        return
    waiting = {asyncio.ensure_future(_next(source)): n for n, source in enumerate(sources)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = waiting.pop(task)
                delta = task.result()
                if delta.reason is None:
                    waiting[asyncio.ensure_future(_next(sources[number]))] = number
                yield number, delta
    finally:
        with anyio.CancelScope(shield=True):  # a client that hung up must not cut this short
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            for source in sources:
                await source.aclose()


async def unless_gone(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result | None:
    """The result of ``work``, or None when the client hung up first (the work is then cancelled)."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(hung_up())
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _next(source: AsyncGenerator[Delta]) -> Delta:
    return await anext(source)
