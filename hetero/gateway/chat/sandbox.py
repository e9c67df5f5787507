"""A process that does what strangers ask for, and may die of it or take for ever (``workers.models.confined``)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import Any

from hetero.errors import Busy

_LONGEST = 64 << 20  # bytes of an answer
_RETRY = 2  # seconds after which one that found too many should be asked again


class Overstrained(Exception):
    """The process died of a question; ``slow``: it took too long, and was ended."""

    def __init__(self, slow: bool) -> None:
        super().__init__()
        self.slow = slow


class Sandbox:
    """Starts its process at the first question, and another where one died. Belongs to one event loop."""

    def __init__(self, module: str, greeting: Any, seconds: float, most: int, start: float = 60.0) -> None:
        """``module`` is run with ``greeting`` as its first line; ``seconds`` a question may
        take, ``most`` may wait at once, ``start`` seconds until it is ready."""
        self._seconds, self._most, self._start = seconds, most, start
        self._module, self._greeting = module, greeting
        self._process: asyncio.subprocess.Process | None = None
        self._dying: list[asyncio.subprocess.Process] = []
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def ask(self, question: Any) -> Any:
        """Its answer. Raises Overstrained, RecursionError, and Busy where too many ask or no process can be had."""
        line = json.dumps(question).encode() + b"\n"
        if self._waiting >= self._most:
            raise Busy(f"the server is full: {self._waiting} schemas or chats are looked at", _RETRY)
        self._waiting += 1
        try:
            async with self._turn:
                return await self._ask(line)
        finally:
            self._waiting -= 1

    async def _ask(self, line: bytes) -> Any:
        done = False
        try:
            process = await self._running()
            assert process.stdin is not None and process.stdout is not None
            async with asyncio.timeout(self._seconds):
                process.stdin.write(line)
                await process.stdin.drain()
                answer = json.loads(await process.stdout.readline())
            done = True
            return answer
        except TimeoutError:
            raise Overstrained(slow=True) from None
        except (OSError, ValueError):  # nothing came, or half of it
            raise Overstrained(slow=False) from None
        finally:
            if not done:  # also where the client hung up: what it asked is still under way there
                self._end()

    async def _running(self) -> asyncio.subprocess.Process:
        self._dying = [process for process in self._dying if process.returncode is None]
        if self._process is None or self._process.returncode is not None:
            try:
                self._process = process = await asyncio.create_subprocess_exec(
                    sys.executable, "-P", "-m", self._module, limit=_LONGEST,
                    stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
                )  # fmt: skip
            except OSError as error:
                raise Busy(f"no process to look at it can be started ({error.strerror or error})", _RETRY) from None
            assert process.stdin is not None and process.stdout is not None
            async with asyncio.timeout(self._start):
                process.stdin.write(json.dumps(self._greeting).encode() + b"\n")
                await process.stdin.drain()
                await process.stdout.readline()
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            # Its own kill() may take the end of one that died from the thread that waits for it, which then complains.
            with contextlib.suppress(ProcessLookupError):
                if self._process.returncode is None:
                    os.kill(self._process.pid, signal.SIGKILL)
            self._dying.append(self._process)
            self._process = None

    async def close(self) -> None:
        """End the process; another question would start another."""
        self._end()
        await asyncio.gather(*(process.wait() for process in self._dying))
