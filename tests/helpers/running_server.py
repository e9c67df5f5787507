"""The whole product in a test: Ray actors as real processes, the gateway on a real port."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable

import httpx
import uvicorn
from ray.exceptions import RayError

from helpers.builtin_pair import NO_END
from hetero.cluster.cluster import Cluster
from hetero.cluster.incarnation import WorkerEnded
from hetero.cluster.inventory import take_inventory
from hetero.config import make_config
from hetero.gateway.app import make_app
from hetero.gateway.door.connections import options
from hetero.placed import Placed
from hetero.planning.planner import Planner
from hetero.serve import options_of
from hetero.session import Session
from hetero.workers.runtime.status import WorkerStatus


class RunningServer:
    """Started on construction; ``close`` leaves nothing behind."""

    def __init__(self, **settings: object) -> None:
        self.events: list[str] = []
        self.config = make_config(settings)
        self.cluster = Cluster(self.config.address)
        if self.cluster.shared:
            self.cluster.join()
        self.planner = Planner(self.config, take_inventory())
        self.plan = self.planner.plan(self.cluster.nodes() if self.cluster.shared else [])
        self._up = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._thread.start()
        if not self._up.wait(240):  # what it waits for is told, and nothing of it stays for the tests behind
            faulthandler.dump_traceback()
            events = list(self.events)
            self.close()
            raise AssertionError(f"it did not start: {events}")
        if self._error is not None:
            self._thread.join(90)  # it leaves Ray yet: in the middle of the next test otherwise
            raise self._error

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.session = Session(Placed(self.plan, self.planner, self.cluster), self.events.append)
        self.served = self.session.gateway_state(self.plan, options_of(self.config, self.plan))
        app = make_app(self.served)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off", **options()))
        server.install_signal_handlers = lambda: None
        serving = asyncio.create_task(server.serve())
        starting = asyncio.create_task(self.session.start())
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        try:
            if starting.done():
                starting.result()
            while not server.started:
                await asyncio.sleep(0.01)
            self.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        except BaseException as error:
            self._error = error
        self._up.set()
        if self._error is None:
            await self._stop.wait()
        server.should_exit = True
        await serving
        await self.session.stop()
        starting.cancel()

    def status(self, role: str, seconds: float = 60.0) -> WorkerStatus:
        """The worker's own account; where it is being replaced, its successor's."""
        end = time.monotonic() + seconds
        while True:
            try:
                return self.session.coordinator.status(role)
            except (WorkerEnded, RayError):
                if time.monotonic() > end:
                    raise
            time.sleep(0.1)

    def kill(self, role: str) -> None:
        """Kill a worker's process."""
        os.kill(self.status(role).pid, signal.SIGKILL)

    def on_loop(self, what: Callable[[], object]) -> None:
        """Have the gateway's event loop do something."""
        self._loop.call_soon_threadsafe(what)

    def complete(self, prompt: str, **fields: object) -> dict:
        """An answer, which does not end before ``max_tokens`` unless a field makes it."""
        body = {"prompt": prompt, "logit_bias": NO_END, **fields}
        found = httpx.post(f"{self.url}/v1/completions", json=body, timeout=240)
        found.raise_for_status()
        return found.json()

    def settled(self, seconds: float = 60.0) -> dict[str, WorkerStatus]:
        """The statuses once nothing is held any more."""
        roles = [placement.name for placement in self.plan.placements]
        end = time.monotonic() + seconds
        while True:
            found = {role: self.status(role) for role in roles}
            clean = all(s.idle and s.cells == 0 and s.active == s.waiting == 0 for s in found.values())
            if clean and self.session.verifiers.live == 0:
                return found
            assert time.monotonic() < end, found
            time.sleep(0.05)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        assert not self._thread.is_alive()
