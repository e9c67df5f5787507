"""Further models of a server: loaded when a request names them, unloaded when nobody asks or another wants the room."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from starlette.types import ASGIApp

from hetero.cluster.cluster import Cluster
from hetero.cluster.inventory import take_inventory
from hetero.config import Config, api_keys, make_config, read_file
from hetero.errors import ConfigError, HeteroError, MemoryShortage
from hetero.gateway.app import behind_door, make_app
from hetero.gateway.front import Front
from hetero.gateway.state import Card, GatewayOptions, GatewayState
from hetero.models import find_model
from hetero.placed import Placed
from hetero.planning.plan import Placement, Plan
from hetero.planning.planner import planner_of
from hetero.session import Session
from hetero.workers.decoding.policy.strategy import AUTO
from hetero.workers.runtime.status import WorkerStatus

_log = logging.getLogger("hetero.fleet")
# Settings of the server, not of a model: those of the first are all models'.
_SERVERS = (
    "also_serve", "host", "port", "api_key", "api_key_file", "ssl_cert_file", "ssl_key_file", "cors_origin", "strict",
    "share_lookup", "address", "cluster", "cluster_host", "require_nodes", "worker_ports", "drain", "max_body", "trace",
)  # fmt: skip
_INHERITED = ("keep_alive", "timeout", "max_waiting", "max_pending_tokens")  # unless a model has its own
_LOOK = 1.0  # seconds between looks for models that rest
_FREED = 5.0  # seconds in which a process that ended has given its memory back


def further(config: Config) -> list[Config]:
    """The settings of ``also_serve``. Raises ConfigError."""
    found = []
    for text in config.also_serve:
        own: dict[str, Any] = {"target": text, "alias": text if text.startswith("builtin") else ""}
        if text.endswith((".yaml", ".yml")):
            own = read_file(Path(text))
            for key in own:
                if key in _SERVERS:
                    raise ConfigError(f"config file {text}: {key} is the server's, set it for the first model")
        shared = {key: getattr(config, key) for key in (*_SERVERS, *_INHERITED) if key not in ("also_serve", "trace")}
        found.append(make_config({**shared, **own}, f"also_serve: {text}: "))
        api_keys(found[-1])
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
    def full(self) -> bool:
        """Whether it is not loaded and no more may wait for it."""
        return self.app is None and self._asked >= self.config.parallel + self.config.max_waiting

    @property
    def rested(self) -> float:
        """Seconds since it was asked last."""
        return time.monotonic() - self.used_at

    @property
    def rests(self) -> bool:
        """Whether it is loaded and nobody asks."""
        return self.session is not None and self._asked == 0 and self.session.verifiers.live == 0

    @property
    def placements(self) -> list[Placement]:
        """Where it is, while it is loaded."""
        return self._plan.placements if self._plan is not None and self.session is not None else []

    @property
    def mapped(self) -> int:
        """See ``mapped``."""
        return mapped(self.placements, self.session.coordinator.statuses) if self.session is not None else 0

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
        """Its application, loaded if need be. Raises HeteroError, after the time that a request has."""
        try:
            async with asyncio.timeout(self.config.timeout or None):
                return await self._fleet.load(self)
        except TimeoutError:
            raise HeteroError(f"it was not there within {self.config.timeout:g} s (--timeout)") from None

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
        """Stop them; whoever is cut short here is to ask again."""
        self.app = None
        if self.session is not None:
            await self.session.stop(leave=False)
            self.session = None


class Fleet:
    """All of them. Its methods belong to one event loop."""

    def __init__(
        self,
        config: Config,
        first: str,
        cluster: Cluster,
        options_of: Callable[[Config, Plan], GatewayOptions],
        say: Callable[[str], None],
        first_mapped: Callable[[], int] = lambda: 0,
    ) -> None:
        """``first``: the name of the model that is always there, ``first_mapped`` what it has ``mapped``. Raises
        HeteroError."""
        self.guests = [Guest(own, self) for own in further(config)]
        names = [first, *(guest.name for guest in self.guests)]
        if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
            raise ConfigError(f"also_serve: two models are called {twice}: give one another name with alias")
        self._cluster = cluster
        self._options_of = options_of
        self._say = say
        self._first_mapped = first_mapped
        self._loading = asyncio.Lock()
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._stopped = False
        self._first_there = asyncio.Event()  # before, its start would meet theirs, and its memory would look free

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
        if guest.app is None or (guest.session is not None and guest.session.failure is not None):
            if guest.name not in self._starting:
                self._starting[guest.name] = task = asyncio.create_task(self._bring_up(guest))
                task.add_done_callback(lambda done: self._started(guest, done))
            await asyncio.shield(self._starting[guest.name])
        if guest.app is None:
            raise HeteroError("it was unloaded again: ask once more")
        return guest.app

    async def keep(self) -> None:
        """The first model is there: load those that stay, and unload those that rest for long; never returns."""
        self._first_there.set()
        for guest in self.guests:
            if guest.stays:
                with contextlib.suppress(HeteroError):  # said already; the next request tries again
                    await self.load(guest)
        while True:
            await asyncio.sleep(_LOOK)
            for guest in self.guests:
                if self._may_go(guest):
                    async with self._loading:
                        if self._may_go(guest):  # still
                            await self._let_go(guest)

    async def stop(self) -> None:
        """Stop all."""
        self._stopped = True
        for task in list(self._starting.values()):
            task.cancel()
        await asyncio.gather(*self._starting.values(), return_exceptions=True)
        await asyncio.gather(*(guest.down() for guest in self.guests))

    async def _let_go(self, guest: Guest) -> None:
        try:
            await guest.down()
            self._say(f"{guest.name}: unloaded: nobody asks for it")
        except Exception:  # the others are to be looked after yet; this one's end is tried again
            _log.exception("%s could not be unloaded", guest.name)

    @staticmethod
    def _may_go(guest: Guest) -> bool:
        return not guest.stays and guest.rests and guest.rested >= guest.config.keep_alive

    def _started(self, guest: Guest, done: asyncio.Task[None]) -> None:
        self._starting.pop(guest.name, None)
        if not done.cancelled() and (error := done.exception()) is not None:
            self._say(f"{guest.name}: it cannot be loaded: {error}")

    async def _bring_up(self, guest: Guest) -> None:
        with guest.using():
            await self._first_there.wait()
            async with self._loading:  # one at a time: each must see what memory the others left
                if guest.session is not None and (guest.app is None or guest.session.failure is not None):
                    await guest.down()  # it failed, or its end was cut short
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
                return await asyncio.to_thread(self._plan, guest.config, {})
            except MemoryShortage:
                if time.monotonic() < end:
                    await asyncio.sleep(0.2)
                    continue
                resting = sorted((one for one in self.guests if one.rests and not one.stays), key=lambda g: g.used_at)
                if not resting:
                    raise
                await asyncio.to_thread(self._plan, guest.config, _held(resting))  # if all of them went: else they stay
                await resting[0].down()
                self._say(f"{resting[0].name}: unloaded: {guest.name} wants its memory")
                end = time.monotonic() + _FREED

    def _plan(self, config: Config, freed: Mapping[str, int]) -> Placed:
        """The plan with so many bytes more free on devices, by name. Raises HeteroError."""
        inventory = take_inventory()
        wanted = self._first_mapped() + sum(guest.mapped for guest in self.guests)
        gpus = tuple(replace(gpu, free=gpu.free + freed.get(str(gpu.device), 0)) for gpu in inventory.gpus)
        memory = max(0, inventory.memory - wanted + freed.get("cpu", 0))
        planner = planner_of(config, replace(inventory, memory=memory, gpus=gpus), self._say)
        return Placed(planner.plan(), planner, self._cluster)


def mapped(placements: Sequence[Placement], statuses: Mapping[str, WorkerStatus]) -> int:
    """Bytes of files that workers have mapped: they count as free memory, and are wanted where they are."""
    found = 0
    for placement in placements:
        status = statuses.get(placement.name)
        if placement.device.is_cpu and status is not None:
            with contextlib.suppress(psutil.Error):
                memory = psutil.Process(status.pid).memory_info()
                found += max(0, placement.memory.total - (memory.rss - memory.shared))
    return found


def _held(guests: Sequence[Guest]) -> Counter[str]:
    """Bytes that models take of each device, as planned."""
    found: Counter[str] = Counter()
    for guest in guests:
        for placement in guest.placements:
            for device, memory in placement.parts:
                found[device] += memory.total
    return found
