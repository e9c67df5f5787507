"""``hetero serve``: the gateway in front of a session, from an open port to a clean stop."""

from __future__ import annotations

import asyncio
import signal
import socket
from dataclasses import replace

import uvicorn
from rich.console import Console
from rich.table import Table

from hetero.config import Config, api_keys, check_certificate
from hetero.errors import ConfigError, HeteroError
from hetero.fleet import Fleet, mapped
from hetero.gateway.admission import AdmissionLimits
from hetero.gateway.app import make_app
from hetero.gateway.door import connections
from hetero.gateway.pauses import spare_pauses
from hetero.gateway.state import GatewayOptions
from hetero.placed import Placed
from hetero.planning.plan import Plan
from hetero.session import Session
from hetero.workers.models.generation import SamplingDefaults, sampling_defaults
from hetero.workers.runtime.status import WorkerStatus

_RAY_LEFT = 30.0  # seconds: workers end 60 s after Ray's head


def serve(config: Config, found: Placed, console: Console) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status. Raises ConfigError for a port that cannot be had."""
    plan = found.plan
    options = options_of(config, plan)
    check_certificate(config)
    listeners = _listen(config.host, config.port)
    host, port = listeners[0].getsockname()[:2]
    host = "localhost" if len(listeners) > 1 else host
    url = f"http{'s' if config.ssl_cert_file else ''}://{f'[{host}]' if ':' in host else host}:{port}"
    status = 0

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    def take_signals() -> None:
        # Ray's own handlers print a stack trace at every signal.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, server.handle_exit)

    async def bring_up(session: Session, fleet: Fleet) -> None:
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
        for line in remarks(plan):
            say(line)
        say(f"serving {plan.name} at {url}/v1 (Ctrl-C stops)")
        spare_pauses()
        try:
            await session.template.render([[{"role": "user", "content": "Hello"}]])
        except HeteroError as error:
            say(f"  chats may be refused: {error}")
        await fleet.keep()

    async def end_with_ray(session: Session) -> None:
        nonlocal status
        await session.over.wait()
        say(f"no new requests are taken; those that run have {_RAY_LEFT:.0f} s to finish")
        end = asyncio.get_running_loop().time() + _RAY_LEFT
        while session.verifiers.live and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.2)  # not yet uvicorn's own way to end: /health is to say why until then
        server.config.timeout_graceful_shutdown = 1
        server.should_exit, status = True, 1

    async def main() -> None:
        session = Session(found, lambda line: say(f"  {line}"), take_signals)
        state = session.gateway_state(plan, options)
        fleet = Fleet(
            config,
            plan.name,
            found.cluster,
            options_of,
            lambda line: say(f"  {line}"),
            lambda: mapped(plan.placements, session.coordinator.statuses),
        )
        state.others = lambda: fleet.cards
        server.config.app = make_app(state) if not fleet.guests else fleet.behind(state)
        tasks = [asyncio.create_task(each) for each in (bring_up(session, fleet), end_with_ray(session))]
        try:
            await server.serve(sockets=listeners)
        finally:
            say("stopping the workers")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await fleet.stop()
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
            **connections.options(),
        )
    )
    # From the first moment on; also uvicorn, once it has drained, raises its signal again: the exit is a clean one.
    take_signals()
    for line in announcement(plan):
        say(line)
    asyncio.run(main())
    return status


def options_of(config: Config, plan: Plan) -> GatewayOptions:
    """How a server of these settings meets requests. Raises ConfigError."""
    waiting, body = config.parallel * config.verifiers + config.max_waiting, int(config.max_body * 2**20)
    limits = AdmissionLimits(waiting, config.max_pending_tokens, body, config.timeout)
    origins = tuple(each.strip() for each in config.cors_origin.split(",") if each.strip())
    for origin in origins:
        if origin != "*" and "://" not in origin:
            raise ConfigError(f"cors_origin: {origin!r} is no origin, like https://chat.example.org")
    return GatewayOptions(
        limits, api_keys(config), defaults_of(config, plan), config.strict, origins, config.share_lookup
    )


def defaults_of(config: Config, plan: Plan) -> SamplingDefaults:
    """The sampling of requests that say nothing of it: the settings', else the model's own."""
    named = ("temperature", "top_k", "top_p", "min_p")
    own = {name: value for name in named if (value := getattr(config, name)) >= 0}
    return replace(sampling_defaults(plan.target.model.path), **own)


def announcement(plan: Plan) -> list[str]:
    """What is about to load where."""
    lines = []
    for placement in plan.placements:
        size = placement.memory.total / 2**20
        lines.append(
            f"loading {placement.name} {placement.model.name} on {placement.device} "
            f"with {placement.spec.engine} (about {size:,.0f} MiB)"
        )
    return lines


def _listen(host: str, port: int) -> list[socket.socket]:
    """The sockets to listen on: localhost is both 127.0.0.1 and, where there is IPv6, ::1."""
    if host != "localhost":
        return [_bound(host, port)]
    first = _bound("127.0.0.1", port)
    try:
        return [first, _bound("::1", first.getsockname()[1])]
    except ConfigError:
        return [first]


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # else :: would take IPv4 as well on some machines, and not on others
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        listener.bind((host, port))
        listener.listen(128)
    except socket.gaierror as error:
        raise ConfigError(f"host: {host!r} is not an address of this machine ({error.strerror})") from None
    except OSError as error:
        raise ConfigError(f"port: {host}:{port} cannot be had ({error.strerror}): choose another with --port") from None
    return listener


def plan_table(plan: Plan, statuses: dict[str, WorkerStatus], url: str) -> Table:
    """Device, role, engine, model, memory, strategy, address of all that runs."""
    table = Table()
    for name in ("device", "role", "engine", "model", "memory", "strategy", "address"):
        table.add_column(name, overflow="fold")
    for placement in plan.placements:
        spec = placement.spec
        status = statuses.get(placement.name)
        if status is None:  # its machine left while it loaded
            continue
        exact = ", exact" if spec.exact else ""
        strategy = (
            plan.strategy if plan.strategy == "off" else plan.strategy + (f", gamma {spec.gamma}" if spec.gamma else "")
        )
        table.add_row(
            str(placement.device),
            placement.name,
            spec.engine,
            placement.model.name,
            f"{status.memory / 2**20:,.0f} MiB",
            strategy + exact,
            status.endpoint.partition("#")[0] or "-",  # without its key
        )
    table.add_row("-", "gateway", "-", plan.name, "-", "-", url)
    return table


def remarks(plan: Plan) -> list[str]:
    """What the table does not show."""
    found = []
    if plan.cut:
        most = plan.target.model.context
        found.append(f"context: {plan.context} of the model's {most} tokens, as memory allows (--context)")
    if plan.awaited:
        return [
            *found,
            f"NO DRAFTER: {plan.awaited} is not in the cluster; plain decoding until it comes (hetero nodes)",
        ]
    if plan.alone and plan.target.node is not None:
        return [*found, f"BOTH ROLES ON {plan.target.node.name}: no other machine is in the cluster (hetero nodes)"]
    return found
