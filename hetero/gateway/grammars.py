"""Whether a grammar can be used, asked of a process that may die of it (``workers.models.grammar_probe``)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sys
from collections import OrderedDict
from pathlib import Path

_SECONDS = 3.0  # a grammar may take to compile: the verifier compiles it again
_START = 60.0  # seconds the process may take to load a vocabulary
_KNOWN = 1024  # verdicts kept


class GrammarProbe:
    """Starts its process at the first question, and another where one died. Belongs to one event loop."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._known: OrderedDict[bytes, str | None] = OrderedDict()

    async def objection(self, grammar: str) -> str | None:
        """Why a grammar cannot be used; None: it can."""
        key = hashlib.blake2b(grammar.encode(), digest_size=16).digest()
        async with self._turn:  # the same question may be asked many times at once
            if key not in self._known:
                self._known[key] = await self._ask(grammar)
                if len(self._known) > _KNOWN:
                    self._known.popitem(last=False)
            return self._known[key]

    async def _ask(self, grammar: str) -> str | None:
        try:
            process = await self._running()
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(grammar).encode() + b"\n")
            async with asyncio.timeout(_SECONDS):
                await process.stdin.drain()
                answer = await process.stdout.readline()
        except TimeoutError:
            self.close()
            return f"it takes more than {_SECONDS:g} s to compile: make it simpler"
        except OSError:
            answer = b""
        except BaseException:  # the client hung up: what it asked is still under way there
            self.close()
            raise
        if not answer:
            self.close()
            return "it overstrains the grammar library: make it simpler"
        found: str | None = json.loads(answer)
        return found

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "hetero.workers.models.grammar_probe", str(self._model),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            assert process.stdout is not None
            async with asyncio.timeout(_START):
                await process.stdout.readline()
        return self._process

    def close(self) -> None:
        """End the process; the next question starts another."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process = None
