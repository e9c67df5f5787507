"""The Ray side: places one actor per role, watches them, and passes endpoints on when one comes back."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from hetero.cluster.cluster import Cluster
from hetero.plan import Placement, Plan
from hetero.workers.runtime.actor import DrafterActor, VerifierActor
from hetero.workers.runtime.spec import WorkerSpec
from hetero.workers.runtime.status import WorkerStatus, read_status

_log = logging.getLogger("hetero.cluster.coordinator")
_SHELLS = {"target": VerifierActor, "drafter": DrafterActor}
_HOPELESS = 5  # ends of a worker, each within a minute of its start, after which it is left


class Coordinator:
    """Keeps a verifier and perhaps a drafter running. Callbacks come from threads of its own."""

    def __init__(
        self,
        specs: list[tuple[WorkerSpec, str]],
        cluster: Cluster,
        key: str = "",
        on_verifier: Callable[[str | None], None] = lambda endpoint: None,
        on_event: Callable[[str], None] = lambda line: None,
        on_failure: Callable[[str], None] = lambda line: None,
    ) -> None:
        """``specs``: a worker and Ray's id of the node it belongs on ("": this one); ``key``: public key of the gateway
        that asks the verifier.

        ``on_verifier`` gets each new endpoint, and None when the verifier is lost; ``on_event`` lines for people;
        ``on_failure`` why nothing can be served any more.
        """
        self.statuses: dict[str, WorkerStatus] = {}
        self.failure: str | None = None
        self.settled = threading.Event()  # all roles are ready, or one has failed
        self._specs = {spec.role: (spec, node) for spec, node in specs}
        self._cluster = cluster
        self._key = key
        self.restarts: dict[str, int] = {spec.role: 0 for spec, _ in specs}
        self._on_verifier = on_verifier
        self._on_event = on_event
        self._on_failure = on_failure
        self._actors: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._introducing = threading.Lock()
        self._stopping = False
        self._threads: list[threading.Thread] = []

    @classmethod
    def of_plan(cls, plan: Plan, cluster: Cluster, key: str, **callbacks: Callable[[Any], None]) -> Coordinator:
        """The coordinator of a plan."""
        placements: list[Placement] = [plan.target] + ([plan.drafter] if plan.drafter else [])
        return cls([(p.spec, p.node) for p in placements], cluster, key, **callbacks)

    def start(self) -> None:
        """Start or join Ray and create the actors; returns while they load. Raises ClusterError."""
        with self._lock:  # a stop waits for this, so that nothing starts after it
            if self._stopping:
                return
            self._cluster.join()
            self._start()

    def _start(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for role, (spec, node) in self._specs.items():
            options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_concurrency": 16}
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node or self._cluster.here(), soft=False)
            shell = ray.remote(_SHELLS[role])
            self._actors[role] = shell.options(**options).remote(spec.plain())
            thread = threading.Thread(target=self._watch, args=(role,), name=f"hetero-watch-{role}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def status(self, role: str) -> WorkerStatus:
        """The worker's own account, now."""
        import ray

        return read_status(ray.get(self._actors[role].status.remote(), timeout=10))

    def alive(self, seconds: float = 2.0) -> dict[str, WorkerStatus]:
        """The accounts of the workers that answer in time."""
        import ray

        asked = {actor.status.remote(): role for role, actor in self._actors.items()}
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=seconds) if asked else ([], [])
        found = {}
        for answer in done:
            with contextlib.suppress(ray.exceptions.RayError):
                found[asked[answer]] = read_status(ray.get(answer))
        return found

    def restart(self, role: str) -> None:
        """Stop a worker; its watch starts the next incarnation."""
        self._actors[role].stop.remote()

    def stop(self) -> None:
        """Stop the workers, then what Ray this started; safe to call twice."""
        import ray

        self._stopping = True
        self.settled.set()
        with self._lock:
            pass  # a start under way is over now
        if ray.is_initialized():
            # No ray.kill: Ray would report it as a failure; the actors' processes end with the job.
            stops = [actor.stop.remote() for actor in self._actors.values()]
            ray.wait(stops, num_returns=len(stops), timeout=8)
            for thread in self._threads:  # their calls end with the workers
                thread.join(5)
            self._threads, self._actors = [], {}
        self._cluster.leave()

    # One thread a role

    def _watch(self, role: str) -> None:
        """Load, announce, hold; when the worker or its process ends, begin again with the next incarnation."""
        ends = 0
        while not self._stopping and ends < _HOPELESS:
            began = time.monotonic()
            why = self._live_once(role)
            if self._stopping:
                return
            if role not in self.statuses:
                self._give_up(role, why)
                return
            self.restarts[role] += 1
            self._on_lost(role)
            self._say(f"{role} ended ({why}): starting it again")
            ends = ends + 1 if time.monotonic() - began < 60 else 0
        self._give_up(role, f"ended {_HOPELESS} times, each within a minute")

    def _live_once(self, role: str) -> str:
        """One incarnation from loading to its end; returns why it ended."""
        import ray

        actor = self._actors[role]
        try:
            # Retried by Ray across restarts: returns when the model is loaded, or has failed to.
            status = read_status(ray.get(actor.ready.options(max_task_retries=-1).remote()))
            if self._stopping:
                return ""
            why = status.failure
            if status.phase == "ready":
                self._announce(role, status)
                why = ray.get(actor.hold.remote()) or "without a word"
            if not self._stopping:  # the process lives on with a worker that has ended
                with contextlib.suppress(ray.exceptions.RayActorError):
                    ray.get(actor.die.remote())
            return why
        except ray.exceptions.RayActorError:
            return "its process died"
        except (ray.exceptions.RayError, ValueError, RuntimeError) as error:
            return str(error).strip().splitlines()[0]

    def _announce(self, role: str, status: WorkerStatus) -> None:
        with self._introducing:  # one at a time: who was told last whom to let in must know of both
            with self._lock:
                again = role in self.statuses
                self.statuses[role] = status
                target, drafter = self.statuses.get("target"), self.statuses.get("drafter")
            if target is not None:
                self._introduce(target, drafter)
            if len(self.statuses) == len(self._specs):
                self.settled.set()
        if role == "target":
            self._on_verifier(status.endpoint)
        self._say(f"{role} is {'back' if again else 'ready'} after {status.loaded_s:.1f} s")

    def _introduce(self, target: WorkerStatus, drafter: WorkerStatus | None) -> None:
        """Tell the verifier whom to let in, then the drafter where to go."""
        import ray

        keys = [self._key, drafter.public if drafter is not None else ""]
        with contextlib.suppress(ray.exceptions.RayActorError):  # it is gone already: its own watch sees to that
            ray.get(self._actors["target"].allow.remote([key for key in keys if key]))
            if drafter is not None:
                self._actors["drafter"].link.remote(target.endpoint)

    def _give_up(self, role: str, why: str) -> None:
        """Without a target nothing can be served; a drafter only made it faster, once it was there."""
        line = f"{role}: {why}"
        if role == "target" or not self.settled.is_set():
            self.failure = line
            self._on_failure(line)
        self.settled.set()
        self._say(f"{line}; it is given up")

    def _on_lost(self, role: str) -> None:
        if role == "target":
            self._on_verifier(None)

    def _say(self, line: str) -> None:
        """Tell; whoever listens must not end a watch."""
        try:
            self._on_event(line)
        except Exception:
            _log.exception("an event could not be told: %s", line)
