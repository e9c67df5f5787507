"""Whether a grammar can be used, asked of a process that may die of it (``workers.models.grammar_probe``)."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from pathlib import Path

from hetero.gateway.sandbox import Overstrained, Sandbox

_SECONDS = 3.0  # a grammar may take to compile: the verifier compiles it again
_KNOWN = 1024  # verdicts kept


class GrammarProbe:
    """Belongs to one event loop."""

    def __init__(self, model: Path) -> None:
        self._sandbox = Sandbox("hetero.workers.models.grammar_probe", str(model), _SECONDS)
        self._asking: dict[bytes, asyncio.Task[str | None]] = {}
        self._known: OrderedDict[bytes, str | None] = OrderedDict()
        self.close = self._sandbox.close

    async def objection(self, grammar: str) -> str | None:
        """Why a grammar cannot be used; None: it can. Raises Busy."""
        key = hashlib.blake2b(grammar.encode(), digest_size=16).digest()
        if key in self._known:
            return self._known[key]
        if key not in self._asking:  # the same question may be asked many times at once
            task = self._asking[key] = asyncio.ensure_future(self._ask(key, grammar))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever asked may be gone
        return await asyncio.shield(self._asking[key])

    async def _ask(self, key: bytes, grammar: str) -> str | None:
        found: str | None
        try:
            found = await self._sandbox.ask(grammar)
        except Overstrained as end:
            why = f"takes more than {_SECONDS:g} s to compile" if end.slow else "overstrains the grammar library"
            found = f"it {why}: make it simpler"
        finally:
            del self._asking[key]
        self._known[key] = found
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        return found
