"""Whether a grammar can be used, asked of a process that may die of it (``workers.models.grammar_probe``)."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

from hetero.gateway.chat.sandbox import Overstrained, Sandbox

_WAITING = 32  # different grammars at once
_SECONDS = 3.0  # a grammar may take to compile: the verifier compiles it again
_KNOWN = 4096  # verdicts kept


class GrammarProbe:
    """Belongs to one event loop."""

    def __init__(self, model: Path) -> None:
        self._sandbox = Sandbox("hetero.workers.models.grammar_probe", str(model), _SECONDS, _WAITING)
        self._asking: dict[bytes, asyncio.Task[Any]] = {}
        self._known: OrderedDict[bytes, Any] = OrderedDict()
        self.close = self._sandbox.close

    async def objection(self, grammar: str) -> str | None:
        """Why a grammar cannot be used; None: it can. Raises Busy."""
        found: str | None = await self._verdict({"grammar": grammar})
        return found

    async def relaxed(self, schema: dict[str, Any]) -> tuple[dict[str, Any], list[str]] | str:
        """A schema as it can be used, and which keywords it has lost; or why it cannot. Raises Busy."""
        try:
            found = await self._verdict({"schema": schema})
        except RecursionError:
            return "it is nested too deeply"
        return found if isinstance(found, str) else (found[0], found[1])

    async def _verdict(self, question: dict[str, Any]) -> Any:
        key = hashlib.blake2b(json.dumps(question).encode(), digest_size=16).digest()
        if key in self._known:
            return self._known[key]
        if key not in self._asking:  # the same question may be asked many times at once
            task = self._asking[key] = asyncio.ensure_future(self._ask(key, question))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever asked may be gone
        return await asyncio.shield(self._asking[key])

    async def _ask(self, key: bytes, question: dict[str, Any]) -> Any:
        try:
            try:
                found = await self._sandbox.ask(question)
            except Overstrained as end:
                if end.slow:
                    return f"it takes more than {_SECONDS:g} s to compile: make it simpler"
                found = await self._sandbox.ask(question)  # it may have died of all it had compiled before
        except Overstrained:
            return "it overstrains the grammar library: make it simpler"
        finally:
            del self._asking[key]
        self._known[key] = found  # what the moment may have caused is asked again
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        return found
