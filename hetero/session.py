"""A running pair and the client to it: what ``hetero serve`` and ``hetero generate`` share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from hetero.cluster.coordinator import Coordinator
from hetero.errors import ClusterError, HeteroError
from hetero.gateway.chat.grammars import GrammarProbe
from hetero.gateway.chat.template import ChatTemplate
from hetero.gateway.metrics import Facts
from hetero.gateway.state import GatewayOptions, GatewayState
from hetero.gateway.verifiers.pool import Verifiers
from hetero.placed import Placed
from hetero.planning.plan import Plan
from hetero.planning.reviser import Reviser
from hetero.planning.running import running

_log = logging.getLogger("hetero.session")
_SPARING = 10.0
_LOOK = 1.0  # seconds between looks at what the roles measured, where the plan is revised


class Session:
    """A running pair and the client to it, inside one event loop."""

    def __init__(
        self,
        found: Placed,
        say: Callable[[str], None],
        joined: Callable[[], None] = lambda: None,
    ) -> None:
        """``say`` gets lines on what happens, ``joined`` is called once Ray runs."""
        plan = found.plan
        self.verifiers = Verifiers(plan.target.spec.sequences)
        self.probe = GrammarProbe(plan.target.model.path)
        self.template = ChatTemplate(plan.target.model.tokenizer)
        self.failure: str | None = None
        self.over = asyncio.Event()  # Ray is ending: what runs may finish, within a minute
        self._loop: asyncio.AbstractEventLoop | None = None
        self._joined = joined
        self._say = say
        self._reviser = found.reviser
        self._revising: asyncio.Task[None] | None = None
        self._ready, self._failed = asyncio.Event(), asyncio.Event()
        self._starting: asyncio.Future[None] | None = None
        self.coordinator = Coordinator(
            plan,
            found.planner,
            found.cluster,
            self.verifiers.keys.public,
            on_verifier=self._on_verifier,
            on_event=say,
            on_failure=self._on_failure,
            on_head_lost=self._on_head_lost,
        )

    @property
    def ready(self) -> bool:
        """Whether the workers have been loaded, and something can still be served."""
        return self._ready.is_set() and self.failure is None

    def trouble(self) -> str | None:
        """Why requests are not answered now, or not quickly; None: all is well."""
        return self.failure or (self.coordinator.trouble() if self._ready.is_set() else "Loading model")

    async def start(self) -> None:
        """Start the workers and wait until they are loaded. Raises HeteroError."""
        self._loop = asyncio.get_running_loop()
        try:
            self._starting = asyncio.ensure_future(asyncio.to_thread(self.coordinator.start))
            await asyncio.shield(self._starting)
            self._joined()
            await asyncio.to_thread(self.coordinator.settled.wait)
            if self.coordinator.failure is not None:
                raise ClusterError(self.coordinator.failure)
        except HeteroError as error:
            self.failure = str(error)
            raise
        await self._either()
        if self._reviser is not None:
            self._revising = asyncio.create_task(self._revise(self._reviser))

    async def _either(self) -> None:
        """Wait for a verifier. Raises ClusterError where none will be."""
        waiting = [asyncio.ensure_future(event.wait()) for event in (self._ready, self._failed)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
        if not self._ready.is_set():
            raise ClusterError(self.failure or "no verifier is left")

    async def stop(self, leave: bool = True) -> None:
        """Stop everything, also what is still starting; what runs is cut off. ``leave``: Ray, too."""
        if self._revising is not None:
            self._revising.cancel()
        await self.probe.close()
        await self.template.close()
        await self.verifiers.close()
        await asyncio.to_thread(self.coordinator.stop, leave)
        if self._starting is not None:
            await asyncio.wait([self._starting])

    def gateway_state(self, plan: Plan, options: GatewayOptions | None = None) -> GatewayState:
        """What the gateway's routes serve of this session."""
        target = plan.target
        return GatewayState(
            plan.name,
            target.model,
            target.spec.engine,
            plan.context,
            target.spec.sequences * len(plan.targets),
            plan.drafter is not None or bool(plan.awaited),
            self.verifiers,
            self.template,
            self.probe,
            lambda: self.ready,
            self.trouble,
            options or GatewayOptions(),
            self._facts,
            lambda: running(plan, self.coordinator.placements, self.coordinator.alive(), self._reviser),
        )

    def _facts(self) -> Facts:
        """What is known of the workers now; of one that does not answer, nothing."""
        return Facts(self.coordinator.alive(), dict(self.coordinator.restarts), self.verifiers.drops.count)

    async def _revise(self, reviser: Reviser) -> None:
        """Keep the plan true."""
        pause = _LOOK
        while True:
            await asyncio.sleep(pause)
            if not self.verifiers.live:
                continue
            began = time.process_time()
            try:
                advice = await asyncio.to_thread(lambda: reviser.look(self.coordinator.alive()))
                if advice is not None:
                    for line in advice.said.splitlines():
                        self._say(line)
                    if advice.follow is not None:
                        await asyncio.to_thread(self.coordinator.follow, *advice.follow)
            except Exception:  # of Ray, as it ends, or ours: nobody waits for this task, and plans are only advice
                _log.exception("the plan could not be revised")
            # Forecasts take this process' time: a tenth of it at most.
            pause = max(_LOOK, _SPARING * (time.process_time() - began))

    # Called by the coordinator's threads

    def _on_verifier(self, index: int, endpoint: str | None) -> None:
        if endpoint is None:
            self._call(lambda: self.verifiers.lost(index))
        else:
            self.failure = None  # its machine came back
            self._call(lambda: asyncio.ensure_future(self._link(index, endpoint)))

    def _on_failure(self, why: str) -> None:
        self.failure = why
        self._call(lambda: self.verifiers.give_up(why))
        self._call(self._failed.set)

    def _on_head_lost(self, why: str) -> None:
        self.failure = why
        self._call(self.over.set)

    def _call(self, what: Callable[[], object]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(what)

    async def _link(self, index: int, endpoint: str) -> None:
        await self.verifiers.link(index, endpoint)
        self._ready.set()
