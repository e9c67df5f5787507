"""The Ray side: keeps one worker per role running, introduces them to each other, and tells what becomes of them."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

from hetero.cluster.cluster import Cluster
from hetero.cluster.incarnation import Incarnation, WorkerEnded
from hetero.cluster.keeper import Keeper
from hetero.cluster.library import Library
from hetero.errors import ClusterError
from hetero.placement.nodes import Node
from hetero.planning.plan import Placement, Plan
from hetero.planning.planner import Planner
from hetero.workers.runtime.status import WorkerStatus, read_status

_log = logging.getLogger("hetero.cluster.coordinator")
_QUIET = 5.0  # seconds without an answer from the verifier after which it counts as in trouble
_STOP_HERE, _STOP_AWAY = 8.0, 1.5  # seconds a worker may take to stop: one of another machine may be out of reach


class Coordinator:
    """Keeps verifiers and perhaps drafters running. Callbacks come from threads of its own."""

    def __init__(
        self,
        plan: Plan,
        planner: Planner,
        cluster: Cluster,
        key: str = "",
        on_verifier: Callable[[int, str | None], None] = lambda index, endpoint: None,
        on_event: Callable[[str], None] = lambda line: None,
        on_failure: Callable[[str], None] = lambda line: None,
        on_head_lost: Callable[[str], None] = lambda line: None,
    ) -> None:
        """``key``: public key of the gateway that asks the verifiers.

        ``on_verifier`` gets each new endpoint of the verifier of an index, and None when it is lost; ``on_event`` lines
        for people; ``on_failure`` why nothing can be served any more; ``on_head_lost`` why it soon cannot be: Ray's
        head is gone, and its workers follow within a minute.
        """
        self.statuses: dict[str, WorkerStatus] = {}
        self.failure: str | None = None
        self.settled = threading.Event()  # each role is ready or waits for a machine, or one has failed
        self._planner = planner
        self._cluster = cluster
        self._key = key
        self._on_verifier = on_verifier
        self._on_event = on_event
        self._on_failure = on_failure
        self._on_head_lost = on_head_lost
        self._lock = threading.Lock()
        self._introducing = threading.Lock()
        self._stopping = False
        self._ended = threading.Event()
        self._lost: dict[str, str] = {}  # verifiers that there are not now, and why
        self._ready: dict[str, Incarnation] = {}
        self._strategy: tuple[str, int] | None = None  # and gamma, where another one than the plan's is followed
        self._given_up: set[str] = set()  # verifiers that cannot work where they are
        self._at_rest: set[str] = set()  # roles that are ready, or wait for a machine
        self._library = library = Library()
        self._verifiers = [placement.name for placement in plan.targets]
        self._keepers = {
            first.name: Keeper(first.name, first, partial(self._target_again, first.name), cluster, library, self)
            for first in plan.targets
        }
        if plan.drafter is not None or plan.awaited:
            self._keepers["drafter"] = Keeper("drafter", plan.drafter, self._drafter_again, cluster, library, self)
        for other in plan.others:  # they stay where they are
            self._keepers[other.name] = Keeper(other.name, other, lambda last, barred: last, cluster, library, self)

    def start(self) -> None:
        """Start or join Ray and create the actors; returns while they load. Raises ClusterError."""
        with self._lock:  # a stop waits for this, so that nothing starts after it
            if self._stopping:
                return
            self._cluster.join()
            self._cluster.watch(self._head_lost, self._ended)
            for keeper in self._keepers.values():
                keeper.start()

    @property
    def restarts(self) -> dict[str, int]:
        """How often each role's worker was started again."""
        return {role: keeper.restarts for role, keeper in self._keepers.items()}

    @property
    def placements(self) -> list[Placement]:
        """Where each role is now, or was last."""
        return [keeper.placement for keeper in self._keepers.values() if keeper.placement is not None]

    def trouble(self) -> str | None:
        """Why no verifier answers now; None: all is well."""
        running = [incarnation for name in self._verifiers if (incarnation := self._ready.get(name)) is not None]
        if not running:
            return next(iter(list(self._lost.values())), "the verifier is being started")
        silent = min(incarnation.silent_s for incarnation in running)
        return f"the verifier has not answered for {silent:.0f} s" if silent > _QUIET else None

    def status(self, role: str) -> WorkerStatus:
        """The worker's own account, now. Raises WorkerEnded where there is none."""
        import ray

        incarnation = self._keepers[role].incarnation
        if incarnation is None:
            raise WorkerEnded(f"{role}: it does not run now")
        return read_status(ray.get(incarnation.status_ref(), timeout=10))

    def alive(self, seconds: float = 2.0) -> dict[str, WorkerStatus]:
        """The accounts of the workers that answer in time."""
        import ray

        running = [(role, keeper.incarnation) for role, keeper in self._keepers.items()]
        asked = {incarnation.status_ref(): role for role, incarnation in running if incarnation is not None}
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=seconds) if asked else ([], [])
        found = {}
        for answer in done:
            with contextlib.suppress(ray.exceptions.RayError):
                found[asked[answer]] = read_status(ray.get(answer))
        return found

    def follow(self, name: str, gamma: int) -> None:
        """Have both roles, and those that come after them, go on by another strategy."""
        with self._introducing:
            self._strategy = name, gamma
            for incarnation in self._ready.values():
                incarnation.follow(name, gamma)

    def restart(self, role: str) -> None:
        """Stop a worker; its keeper starts the next incarnation."""
        if (incarnation := self._keepers[role].incarnation) is not None:
            incarnation.stop()

    def stop(self, leave: bool = True) -> None:
        """Stop the workers, then what Ray this started (not without ``leave``: their processes alone end); safe to call
        twice."""
        import ray

        self._stopping = True
        self._ended.set()
        self.settled.set()
        with self._lock:
            pass  # a start under way is over now
        running = [keeper.incarnation for keeper in self._keepers.values() if keeper.incarnation is not None]
        for keeper in self._keepers.values():
            keeper.stop()
        if ray.is_initialized() and not self._cluster.lost:
            stops = {incarnation.stop(): incarnation for incarnation in running}
            _, late = ray.wait(list(stops), num_returns=len(stops), timeout=_STOP_AWAY) if stops else ([], [])
            near = [stop for stop in late if (node := stops[stop].placement.node) is None or node.here]
            if near:
                ray.wait(near, num_returns=len(near), timeout=_STOP_HERE - _STOP_AWAY)
        for keeper in self._keepers.values():
            keeper.join(2.0)
        self._library.close()
        if leave:
            self._cluster.leave()
            return
        for incarnation in running:
            incarnation.end()

    # Where each role goes

    def _target_again(self, role: str, last: Placement | None, barred: frozenset[str]) -> Placement | None:
        assert last is not None
        others = [name for name in self._verifiers if name != role]
        return self._planner.target_again(last, self._but(barred | self._places_of(others)))

    def _drafter_again(self, last: Placement | None, barred: frozenset[str]) -> Placement | None:
        target = self._keepers["target"].placement
        assert target is not None
        replicas = self._places_of(self._verifiers[1:])
        return self._planner.drafter_again(last, target, self._but(barred | replicas))

    def _places_of(self, roles: Sequence[str]) -> frozenset[str]:
        """The machines of some roles, by Ray's ids."""
        placements = [self._keepers[role].placement for role in roles]
        return frozenset(one.node.id for one in placements if one is not None and one.node is not None)

    def _but(self, barred: frozenset[str]) -> list[Node]:
        return [node for node in self._cluster.present() if node.id not in barred]

    # What keepers tell, from their threads

    def ready(self, keeper: Keeper, status: WorkerStatus) -> None:
        with self._introducing:  # one at a time: who was told last whom to let in must know of both
            assert keeper.incarnation is not None
            again = keeper.role in self.statuses
            self.statuses[keeper.role] = status
            self._ready[keeper.role] = keeper.incarnation
            if self._strategy is not None:
                keeper.incarnation.follow(*self._strategy)
            self._introduce()
        if keeper.role in self._verifiers:
            self._lost.pop(keeper.role, None)
            self._given_up.discard(keeper.role)
            self.failure = None
            self._on_verifier(status.index, status.endpoint)
        self._say(f"{keeper.role} is {'back' if again else 'ready'} after {status.loaded_s:.1f} s{_at(keeper)}")
        self._rests(keeper.role)

    def hears(self, keeper: Keeper, line: str) -> None:
        self._say(f"{keeper.role}{_at(keeper)}: {line}")

    def lost(self, keeper: Keeper, why: str) -> None:
        with self._introducing:
            self._ready.pop(keeper.role, None)
        if keeper.role in self._verifiers:
            self._lost[keeper.role] = f"the verifier ended ({why}): another one is being started"
            self._on_verifier(self.statuses[keeper.role].index, None)
        self._say(f"{keeper.role}{_at(keeper)}: {why}; starting it again")

    def waits(self, keeper: Keeper) -> None:
        if keeper.role in self._verifiers:
            self._lost[keeper.role] = "the verifier's machine is gone: it is waited for"
            self._say(f"{keeper.role}: its machine{_at(keeper)} is gone: waiting for it")
            self._rests(keeper.role)
            return
        last = keeper.placement
        where = f"the machine of the drafter{_at(keeper)}" if last is not None else self._planner.awaited
        self._say(f"drafter: {where} is not there: decoding goes on plainly, and with drafts once it comes")
        self._rests(keeper.role)

    def refused(self, keeper: Keeper, why: str) -> None:
        first = not self.settled.is_set()
        if keeper.role in self._verifiers:
            self._given_up.add(keeper.role)
            self._lost[keeper.role] = f"the verifier is given up ({why})"
            # One that was asked for and never was there; or no other is left.
            fatal = (first and keeper.role not in self.statuses) or self._given_up >= set(self._verifiers)
        else:
            fatal = first and keeper.placement is keeper.first  # as the plan has it: it was asked for
        self.give_up(f"{keeper.role}{_at(keeper)}", why, fatal)

    def give_up(self, who: str, why: str, fatal: bool = True) -> None:
        """``fatal``: nothing can be served. (A drafter only makes it faster, once it was there.)"""
        line = f"{who}: {why}"
        if fatal:
            self.failure = line
            self._on_failure(line)
        self.settled.set()
        self._say(f"{line}; it is given up")

    def _introduce(self) -> None:
        """Tell the verifiers whom to let in, then the drafters where to go."""
        drafters = {name: drafter for name, drafter in self._ready.items() if name not in self._verifiers}
        keys = [self._key, *(self.statuses[name].public for name in drafters)]
        for name in self._verifiers:
            if (verifier := self._ready.get(name)) is None:
                continue
            with contextlib.suppress(ClusterError):  # it is gone already: its own keeper sees to that
                verifier.allow([key for key in keys if key])
                for drafter in drafters.values():
                    drafter.link(self.statuses[name].endpoint, self.statuses[name].index)

    def _rests(self, role: str) -> None:
        self._at_rest.add(role)
        if len(self._at_rest) == len(self._keepers) and any(name in self._ready for name in self._verifiers):
            self.settled.set()

    def _head_lost(self, why: str) -> None:
        self._lost |= dict.fromkeys(self._verifiers, why)
        self.failure = why
        self._say(why)
        self._on_head_lost(why)
        self.settled.set()

    def _say(self, line: str) -> None:
        """Tell; an output that is closed or full must not end a watch."""
        try:
            self._on_event(line)
        except (OSError, ValueError):
            _log.exception("an event could not be told: %s", line)


def _at(keeper: Keeper) -> str:
    """on MACHINE, where it is another one than this."""
    node = keeper.placement.node if keeper.placement is not None else None
    return f" on {node.name}" if node is not None and not node.here else ""
