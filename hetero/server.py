"""``hetero serve``: the gateway in front of a coordinator, from an open port to a clean stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable

import uvicorn
from rich.console import Console

from hetero.client import VerifierClient
from hetero.cluster import Cluster
from hetero.config import Config, api_keys, check_certificate
from hetero.coordinator import Coordinator
from hetero.errors import ClusterError, ConfigError, HeteroError
from hetero.gateway.app import make_app
from hetero.gateway.limits import Limits
from hetero.gateway.metrics import Facts
from hetero.gateway.served import Served
from hetero.plan import Plan
from hetero.tables import plan_table


class Session:
    """A running pair and the client to it, inside one event loop; shared by ``serve`` and ``generate``."""

    def __init__(
        self, plan: Plan, cluster: Cluster, say: Callable[[str], None], joined: Callable[[], None] = lambda: None
    ) -> None:
        """``say`` gets lines on what happens, ``joined`` is called once Ray runs."""
        self.client = VerifierClient()
        self.failure: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._joined = joined
        self._ready = asyncio.Event()
        self._starting: asyncio.Future[None] | None = None
        self.coordinator = Coordinator.of_plan(
            plan,
            cluster,
            self.client.keys.public,
            on_verifier=self._on_verifier,
            on_event=say,
            on_failure=self._on_failure,
        )

    @property
    def ready(self) -> bool:
        """Whether the workers have been loaded, and something can still be served."""
        return self._ready.is_set() and self.failure is None

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
        await self._ready.wait()

    async def stop(self) -> None:
        """Stop everything, also what is still starting; what runs is cut off."""
        await self.client.close()
        await asyncio.to_thread(self.coordinator.stop)
        if self._starting is not None:
            await asyncio.wait([self._starting])

    def served(self, plan: Plan, limits: Limits | None = None, keys: tuple[str, ...] = ()) -> Served:
        """What the gateway's routes serve of this session."""
        return Served(
            plan.name,
            plan.target.model.tokenizer,
            plan.context,
            self.client,
            lambda: self.ready,
            lambda: self.failure,
            limits or Limits(),
            keys,
            self._facts,
        )

    def _facts(self) -> Facts:
        """What is known of the workers now; of one that does not answer, nothing."""
        return Facts(self.coordinator.alive(), dict(self.coordinator.restarts), self.client.dropped)

    # Called by the coordinator's threads

    def _on_verifier(self, endpoint: str | None) -> None:
        if endpoint is None:
            self._call(self.client.lost)
        else:
            self._call(lambda: asyncio.ensure_future(self._link(endpoint)))

    def _on_failure(self, why: str) -> None:
        self.failure = why
        self._call(lambda: self.client.give_up(why))

    def _call(self, what: Callable[[], object]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(what)

    async def _link(self, endpoint: str) -> None:
        await self.client.link(endpoint)
        self._ready.set()


def serve(config: Config, plan: Plan, cluster: Cluster, console: Console) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status. Raises ConfigError for a port that cannot be had."""
    keys = api_keys(config)
    check_certificate(config)
    listener = _listen(config.host, config.port)
    host, port = listener.getsockname()[:2]
    url = f"http{'s' if config.ssl_cert_file else ''}://{f'[{host}]' if ':' in host else host}:{port}"
    status = 0

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    def take_signals() -> None:
        # Ray's own handlers print a stack trace at every signal.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, server.handle_exit)

    async def bring_up(session: Session) -> None:
        nonlocal status
        try:
            await session.start()
        except Exception as error:
            # One line for what a user can mend; a defect of ours keeps its type.
            say(f"error: {error}" if isinstance(error, HeteroError) else f"error: {type(error).__name__}: {error}")
            status = 1
            server.should_exit = True
            return
        console.print(plan_table(plan, session.coordinator.statuses, url))
        say(f"serving {plan.name} at {url}/v1 (Ctrl-C stops)")

    async def main() -> None:
        session = Session(plan, cluster, lambda line: say(f"  {line}"), take_signals)
        server.config.app = make_app(session.served(plan, limits_of(config), keys))
        starting = asyncio.create_task(bring_up(session))
        try:
            await server.serve(sockets=[listener])
        finally:
            say("stopping the workers")
            starting.cancel()
            await session.stop()

    server = uvicorn.Server(
        uvicorn.Config(
            app=lambda: None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=max(1, int(config.drain)),
            ssl_certfile=config.ssl_cert_file or None,
            ssl_keyfile=config.ssl_key_file or None,
        )
    )
    # From the first moment on; also uvicorn, once it has drained, raises its signal again: the exit is a clean one.
    take_signals()
    for line in announcement(plan):
        say(line)
    asyncio.run(main())
    return status


def limits_of(config: Config) -> Limits:
    """What a server of these settings takes on."""
    waiting, body = config.parallel + config.max_waiting, int(config.max_body * 2**20)
    return Limits(waiting, config.max_pending_tokens, body, config.timeout)


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
