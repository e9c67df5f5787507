"""The Ray side: places one actor per role, watches them, and passes endpoints on when one comes back."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from hetero.errors import ClusterError
from hetero.plan import Placement, Plan
from workers.actor import WorkerActor
from workers.spec import WorkerSpec

_log = logging.getLogger("hetero.coordinator")
_STORE = 80 << 20  # Ray's least object store: tokens never travel there
_HOPELESS = 5  # ends of a worker, each within a minute of its start, after which it is left


class Coordinator:
    """Keeps a verifier and perhaps a drafter running. Callbacks come from threads of its own."""

    def __init__(
        self,
        specs: list[tuple[WorkerSpec, str | None]],
        address: str = "local",
        on_verifier: Callable[[str], None] = lambda endpoint: None,
        on_event: Callable[[str], None] = lambda line: None,
    ) -> None:
        """``specs``: a worker and the node it belongs on (None: any). ``on_verifier`` gets each new endpoint."""
        self.statuses: dict[str, dict[str, Any]] = {}
        self.failure: str | None = None
        self.settled = threading.Event()  # all roles are ready, or one has failed
        self._specs = {spec.role: (spec, node) for spec, node in specs}
        self._address = address
        self._on_verifier = on_verifier
        self._on_event = on_event
        self._actors: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._stopping = False
        self._folder: str | None = None
        self._threads: list[threading.Thread] = []

    @classmethod
    def of_plan(cls, plan: Plan, address: str, **callbacks: Callable[[str], None]) -> Coordinator:
        """The coordinator of a plan."""
        placements: list[Placement] = [plan.target] + ([plan.drafter] if plan.drafter else [])
        return cls([(p.spec, p.device.node) for p in placements], address, **callbacks)

    def start(self) -> None:
        """Start or join Ray and create the actors; returns while they load. Raises ClusterError."""
        import ray

        self._init(ray)
        actor_class = ray.remote(WorkerActor)
        for role, (spec, node) in self._specs.items():
            options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_concurrency": 16}
            where = self._node(ray, node)
            if where is not None:
                from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

                options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(where, soft=False)
            self._actors[role] = actor_class.options(**options).remote(spec.plain())
            thread = threading.Thread(target=self._watch, args=(role,), name=f"hetero-watch-{role}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def status(self, role: str) -> dict[str, Any]:
        """The worker's own account, now."""
        import ray

        found: dict[str, Any] = ray.get(self._actors[role].status.remote(), timeout=10)
        return found

    def stop(self) -> None:
        """Stop the workers, then what Ray this started; safe to call twice."""
        import ray

        with self._lock:
            if self._stopping:
                return
            self._stopping = True
        if ray.is_initialized():
            # No ray.kill: Ray would report it as a failure; the actors' processes end with the job.
            stops = [actor.stop.remote() for actor in self._actors.values()]
            ray.wait(stops, num_returns=len(stops), timeout=8)
            for thread in self._threads:  # their calls end with the workers
                thread.join(5)
            ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _init(self, ray: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        common = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "hetero"}
        try:
            if self._address != "local":
                ray.init(address=self._address, **common)
                return
            # A folder of our own keeps Ray's files out of the way and goes when we go.
            self._folder = tempfile.mkdtemp(prefix="hetero-")
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=_STORE,
                _temp_dir=self._folder,
                **common,
            )
        except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise ClusterError(f"address {self._address}: Ray cannot be started or reached: {first}") from error

    def _node(self, ray: Any, name: str | None) -> str | None:
        """Ray's id of a node named by the user. Raises ClusterError listing the nodes there are."""
        if name is None:
            found: str = ray.get_runtime_context().get_node_id()
            return found
        alive = [node for node in ray.nodes() if node["Alive"]]
        for node in alive:
            names = {node["NodeName"], node["NodeManagerHostname"], node["NodeManagerAddress"], *node["Resources"]}
            if name in names or f"node:{name}" in names:
                identity: str = node["NodeID"]
                return identity
        have = ", ".join(node["NodeManagerHostname"] for node in alive)
        raise ClusterError(f"node {name!r} is not in the cluster, which has {have}")

    # One thread a role

    def _watch(self, role: str) -> None:
        """Load, announce, hold; when the actor dies Ray restarts it: begin again."""
        import ray

        actor = self._actors[role]
        ends, began = 0, time.monotonic()
        while not self._stopping:
            try:
                # Retried by Ray across restarts: returns when the model is loaded again.
                status = ray.get(actor.ready.options(max_task_retries=-1).remote())
                if self._stopping:
                    return
                if status["phase"] == "failed":
                    self._give_up(f"{role}: {status['failure']}")
                    return
                began = time.monotonic()
                self._announce(role, status)
                failure = ray.get(actor.hold.remote())
                if self._stopping:
                    return
                self._on_event(f"{role} ended: {failure or 'unexpectedly'}; restarting it")
                ray.kill(actor, no_restart=False)
            except ray.exceptions.RayActorError as error:
                if self._stopping:
                    return
                if isinstance(error, ray.exceptions.ActorDiedError) and role not in self.statuses:
                    self._give_up(f"{role}: its process died while starting: {str(error).splitlines()[0]}")
                    return
                self._on_event(f"{role} died; Ray restarts it")
            except (ray.exceptions.RayError, ValueError, RuntimeError) as error:
                if not self._stopping:
                    self._give_up(f"{role}: {str(error).strip().splitlines()[0]}")
                return
            ends = ends + 1 if time.monotonic() - began < 60 else 0
            if ends >= _HOPELESS:
                self._give_up(f"{role} ended {ends} times, each within a minute")
                return

    def _announce(self, role: str, status: dict[str, Any]) -> None:
        with self._lock:
            again = role in self.statuses
            self.statuses[role] = status
            verifier = self.statuses.get("target")
            if verifier is not None and "drafter" in self.statuses:
                self._actors["drafter"].link.remote(verifier["endpoint"])
            if len(self.statuses) == len(self._specs):
                self.settled.set()
        self._on_event(f"{role} is {'back' if again else 'ready'} after {status['loaded_s']:.1f} s")
        if role == "target":
            self._on_verifier(status["endpoint"])

    def _give_up(self, why: str) -> None:
        _log.error("%s", why)
        self.failure = why
        self.settled.set()
        self._on_event(why)
