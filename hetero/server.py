"""``hetero serve``: the gateway in front of a coordinator, from an open port to a clean stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable

import uvicorn
from fastapi import FastAPI
from rich.console import Console

from hetero.client import VerifierClient
from hetero.config import Config
from hetero.coordinator import Coordinator
from hetero.errors import ClusterError, ConfigError, HeteroError
from hetero.gateway.app import Served, make_app
from hetero.plan import Plan
from hetero.tables import plan_table


class Session:
    """A running pair and the client to it, inside one event loop; shared by ``serve`` and ``generate``."""

    def __init__(
        self, plan: Plan, address: str, say: Callable[[str], None], joined: Callable[[], None] = lambda: None
    ) -> None:
        """``say`` gets lines on what happens, ``joined`` is called once Ray runs."""
        self.client = VerifierClient()
        self.failure: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._joined = joined
        self._ready = asyncio.Event()
        self.coordinator = Coordinator.of_plan(plan, address, on_verifier=self._on_verifier, on_event=say)

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    async def start(self) -> None:
        """Start the workers and wait until they are loaded. Raises HeteroError."""
        self._loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self.coordinator.start)
            self._joined()
            await asyncio.to_thread(self.coordinator.settled.wait)
            if self.coordinator.failure is not None:
                raise ClusterError(self.coordinator.failure)
        except HeteroError as error:
            self.failure = str(error)
            raise
        await self._ready.wait()

    async def stop(self) -> None:
        """Stop everything; what still runs is cut off."""
        await self.client.close()
        await asyncio.to_thread(self.coordinator.stop)

    def served(self, plan: Plan) -> Served:
        """What the gateway's routes serve of this session."""
        return Served(
            plan.name,
            plan.target.model.tokenizer,
            plan.context,
            self.client,
            lambda: self.ready,
            lambda: self.failure or self.coordinator.failure,
        )

    def _on_verifier(self, endpoint: str) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closing: nobody is left to tell
            asyncio.run_coroutine_threadsafe(self._link(endpoint), self._loop)

    async def _link(self, endpoint: str) -> None:
        await self.client.link(endpoint)
        self._ready.set()


def serve(config: Config, plan: Plan, console: Console) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status. Raises ConfigError for a port that cannot be had."""
    listener = _listen(config.host, config.port)
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    status = 0

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        session = sessions[0]
        starting = asyncio.create_task(bring_up(session))
        yield
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        console.print("stopping the workers")
        await session.stop()

    async def bring_up(session: Session) -> None:
        nonlocal status
        try:
            await session.start()
        except HeteroError as error:
            console.print(f"[red]error:[/] {error}", highlight=False, soft_wrap=True)
            status = 1
            server.should_exit = True
            return
        console.print(plan_table(plan, session.coordinator.statuses, url))
        console.print(f"serving [bold]{plan.name}[/] at [bold]{url}/v1[/] (Ctrl-C stops)", highlight=False)

    sessions: list[Session] = []

    def take_signals() -> None:
        # Ray's own handlers print a stack trace at every signal.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, server.handle_exit)

    def tell(line: str) -> None:
        console.print(f"  {line}", highlight=False)

    for line in announcement(plan):
        console.print(line, highlight=False)

    async def main() -> None:
        session = Session(plan, config.address, tell, take_signals)
        sessions.append(session)
        server.config.app = make_app(session.served(plan), lifespan)
        await server.serve(sockets=[listener])

    server = uvicorn.Server(
        uvicorn.Config(
            app=lambda: None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=max(1, int(config.drain)),
        )
    )
    # uvicorn drains on a signal and then raises it again: by then all is stopped, and the exit is a clean one.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    asyncio.run(main())
    return status


def announcement(plan: Plan) -> list[str]:
    """What is about to load where."""
    lines = []
    for placement in [plan.target] + ([plan.drafter] if plan.drafter else []):
        size = placement.memory.total / 2**20
        lines.append(
            f"loading {placement.spec.role} {placement.model.name} on {placement.device} "
            f"with {placement.spec.engine} (about {size:,.0f} MiB)"
        )
    return lines


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except socket.gaierror as error:
        raise ConfigError(f"host: {host!r} is not an address of this machine ({error.strerror})") from None
    except OSError as error:
        raise ConfigError(f"port: {host}:{port} cannot be had ({error.strerror}): choose another with --port") from None
    return listener
