"""Further models of a server: loaded when a request names them, unloaded when nobody asks or another wants the room."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from hetero.cluster.cluster import Cluster
from hetero.cluster.inventory import take_inventory
from hetero.config import Config, make_config, read_file
from hetero.errors import ConfigError, HeteroError, MemoryShortage
from hetero.gateway.app import behind_door, make_app
from hetero.gateway.front import Front
from hetero.gateway.state import Card, GatewayOptions, GatewayState
from hetero.models import find_model
from hetero.placed import Placed
from hetero.planning.plan import Plan
from hetero.planning.planner import planner_of
from hetero.session import Session
from hetero.workers.decoding.policy.strategy import AUTO

# Settings of the server, not of a model: those of the first are all models'.
_SERVERS = (
    "also_serve", "host", "port", "api_key", "api_key_file", "ssl_cert_file", "ssl_key_file", "cors_origin", "strict",
    "share_lookup", "address", "cluster", "cluster_host", "require_nodes", "worker_ports", "drain", "max_body", "trace",
)  # fmt: skip
_LOOK = 1.0  # seconds between looks for models that rest
_FREED = 5.0  # seconds in which a process that ended has given its memory back


def further(config: Config) -> list[Config]:
    """The settings of ``also_serve``. Raises ConfigError."""
    found = []
    for text in config.also_serve:
        own: dict[str, Any] = {"target": text}
        if text.endswith((".yaml", ".yml")):
            own = read_file(Path(text))
            for key in own:
                if key in _SERVERS:
                    raise ConfigError(f"config file {text}: {key} is the server's, set it for the first model")
        shared = {key: getattr(config, key) for key in _SERVERS if key not in ("also_serve", "trace")}
        found.append(make_config({"keep_alive": config.keep_alive, **shared, **own}, f"also_serve: {text}: "))
        if found[-1].strategy == AUTO:
            raise ConfigError(f"also_serve: {text}: strategy auto is chosen at the start: name one")
    if found and config.address == "local" and not config.cluster:
        return found
    if found:
        raise ConfigError("also_serve: several models are served on one machine: leave out --cluster and --address")
    return []


class Guest:
    """One of them."""

    def __init__(self, config: Config, fleet: Fleet) -> None:
        """Reads the model's metadata. Raises HeteroError."""
        self.config = config
        self.model = find_model(config.target, "target")
        self.name = config.alias or self.model.name
        self.app: ASGIApp | None = None
        self.session: Session | None = None
        self.used_at = time.monotonic()
        self._fleet = fleet
        self._plan: Plan | None = None
        self._asked = 0

    @property
    def stays(self) -> bool:
        """Whether it is always loaded."""
        return self.config.keep_alive < 0

    @property
    def rests(self) -> bool:
        """Whether it is loaded and nobody asks."""
        return self.session is not None and self._asked == 0 and self.session.verifiers.live == 0

    @property
    def card(self) -> Card:
        """What lists tell of it."""
        context = self._plan.context if self._plan is not None else self.config.context or self.model.context
        return Card(self.name, self.model, context, self.app is not None)

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """While it is asked it is not unloaded."""
        self._asked += 1
        try:
            yield
        finally:
            self._asked -= 1
            self.used_at = time.monotonic()

    async def load(self) -> ASGIApp:
        """Its application, loaded if need be. Raises HeteroError."""
        return await self._fleet.load(self)

    async def up(self, found: Placed, options: GatewayOptions, say: Callable[[str], None]) -> None:
        """Start its workers. Raises HeteroError."""
        session = Session(found, lambda line: say(f"{self.name}: {line}"))
        try:
            await session.start()
        except BaseException:
            await session.stop(leave=False)
            raise
        self.session, self._plan = session, found.plan
        self.app = make_app(session.gateway_state(found.plan, options), door=False)

    async def down(self) -> None:
        """Stop them."""
        session, self.session, self.app = self.session, None, None
        if session is not None:
            await session.stop(leave=False)


class Fleet:
    """All of them. Its methods belong to one event loop."""

    def __init__(
        self,
        config: Config,
        first: str,
        cluster: Cluster,
        options_of: Callable[[Config, Plan], GatewayOptions],
        say: Callable[[str], None],
    ) -> None:
        """``first``: the name of the model that is always there. Raises HeteroError."""
        self.guests = [Guest(own, self) for own in further(config)]
        names = [first, *(guest.name for guest in self.guests)]
        if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
            raise ConfigError(f"also_serve: two models are called {twice}: give one another name with alias")
        self._cluster = cluster
        self._options_of = options_of
        self._say = say
        self._loading = asyncio.Lock()
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._stopped = False

    @property
    def cards(self) -> Sequence[Card]:
        """What lists tell of them."""
        return [guest.card for guest in self.guests]

    def behind(self, first: GatewayState) -> ASGIApp:
        """All models behind one door, the first as it is."""
        most = first.options.limits.body
        return behind_door(Front(make_app(first, door=False), self.guests, most), first.options)

    async def load(self, guest: Guest) -> ASGIApp:
        """The application of one, whose load goes on though whoever asked first has hung up. Raises HeteroError."""
        if guest.app is None:
            if guest.name not in self._starting:
                self._starting[guest.name] = task = asyncio.create_task(self._bring_up(guest))
                task.add_done_callback(lambda done: self._started(guest, done))
            await asyncio.shield(self._starting[guest.name])
        if guest.app is None:
            raise HeteroError("it was unloaded again: ask once more")
        return guest.app

    async def keep(self) -> None:
        """Load those that stay, and unload those that rest for long; never returns."""
        for guest in self.guests:
            if guest.stays:
                with contextlib.suppress(HeteroError):  # said already; the next request tries again
                    await self.load(guest)
        while True:
            await asyncio.sleep(_LOOK)
            for guest in self.guests:
                if not guest.stays and guest.rests and time.monotonic() - guest.used_at >= guest.config.keep_alive:
                    async with self._loading:
                        if guest.rests:
                            await self._take_down(guest, "nobody asks for it")

    async def stop(self) -> None:
        """Stop all."""
        self._stopped = True
        for task in list(self._starting.values()):
            task.cancel()
        await asyncio.gather(*self._starting.values(), return_exceptions=True)
        await asyncio.gather(*(guest.down() for guest in self.guests))

    def _started(self, guest: Guest, done: asyncio.Task[None]) -> None:
        self._starting.pop(guest.name, None)
        if not done.cancelled() and (error := done.exception()) is not None:
            self._say(f"{guest.name}: it cannot be loaded: {error}")

    async def _bring_up(self, guest: Guest) -> None:
        with guest.using():
            async with self._loading:  # one at a time: each must see what memory the others left
                if guest.app is not None or self._stopped:
                    return
                began = time.monotonic()
                found = await self._placed(guest)
                await guest.up(found, self._options_of(guest.config, found.plan), self._say)
                self._say(f"{guest.name}: loaded in {time.monotonic() - began:.1f} s")

    async def _placed(self, guest: Guest) -> Placed:
        """Its plan, once there is room for it. Raises HeteroError."""
        end = 0.0
        while True:
            try:
                return await asyncio.to_thread(self._plan, guest.config)
            except MemoryShortage:
                if time.monotonic() < end:
                    await asyncio.sleep(0.2)
                    continue
                resting = [other for other in self.guests if other.rests and not other.stays]
                if not resting:
                    raise
                oldest = min(resting, key=lambda other: other.used_at)
                await self._take_down(oldest, f"{guest.name} wants its memory")
                end = time.monotonic() + _FREED

    def _plan(self, config: Config) -> Placed:
        planner = planner_of(config, take_inventory(), self._say)
        return Placed(planner.plan(), planner, self._cluster)

    async def _take_down(self, guest: Guest, why: str) -> None:
        await guest.down()
        self._say(f"{guest.name}: unloaded: {why}")
