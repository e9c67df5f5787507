"""One life of a worker: an actor on one machine, from its creation to its end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from hetero.cluster.cluster import Cluster
from hetero.cluster.library import Library
from hetero.errors import ClusterError, HeteroError
from hetero.planning.plan import Placement
from hetero.workers.runtime.actor import DrafterActor, VerifierActor
from hetero.workers.runtime.build import build
from hetero.workers.runtime.status import WorkerStatus, read_status

_SHELLS = {"target": VerifierActor, "drafter": DrafterActor}
_BEAT = 2.0  # seconds between questions whether it lives
SILENT = 15.0  # seconds without an answer, or without a turn of its loop, after which a worker counts as hung
_LONG = 2.0  # seconds of loading after which it is told how far it is
_START = 120.0  # seconds its process may take to start


class WorkerEnded(ClusterError):
    """It is over; another one may do better. ``own``: it failed by itself, its machine is not to blame."""

    def __init__(self, why: str, own: bool = True) -> None:
        super().__init__(why)
        self.own = own


class LoadFailed(WorkerEnded):
    """It has told why it could not load."""


class WorkerRefused(ClusterError):
    """It cannot work on this machine as it is: trying again is of no use."""


class Incarnation:
    """``load`` and ``hold`` belong to the thread that keeps it, all else to anybody."""

    def __init__(self, placement: Placement, cluster: Cluster, library: Library, stopping: threading.Event) -> None:
        """Begin to create the actor; ``stopping`` ends every wait."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.placement = placement
        self.silent_s = 0.0  # how long it has not answered
        self._pid = 0
        self._cluster = cluster
        self._library = library
        self._stopping = stopping
        self._node = placement.node.id if placement.node is not None else cluster.here()
        self._actor = (
            ray.remote(_SHELLS[placement.spec.role])
            .options(
                num_cpus=0,
                max_restarts=0,  # who begins again is the keeper: it may have to begin elsewhere
                max_concurrency=16,
                scheduling_strategy=NodeAffinitySchedulingStrategy(self._node, soft=False),
            )
            .remote()
        )

    def load(self, told: Callable[[str], None]) -> WorkerStatus:
        """Wait until it is ready; ``told`` hears of what takes long. Raises WorkerEnded, WorkerRefused."""
        began = time.monotonic()
        asked = self._actor.build.remote()

        def started() -> str:
            late = time.monotonic() - began > _START
            return f"its process did not start within {_START:.0f} s" if late else ""

        theirs = self._wait(asked, started)
        if theirs != build():
            raise WorkerRefused(f"has hetero {theirs}, and this machine {build()}: install the same on both")
        try:
            spec = self._library.spec_of(self.placement, self._cluster.own_address())
        except (HeteroError, OSError) as error:
            raise WorkerRefused(f"its model cannot be sent there: {error}") from None
        self._pid = self._wait(self._actor.begin.remote(spec.plain()))
        if spec.origin is not None:
            self._library.admit(read_status(self._wait(self._actor.status.remote())).public)
        watch = self._watching(spec.origin.manifest.size if spec.origin is not None else 0, told)
        status = read_status(self._wait(self._actor.ready.remote(), watch))
        if status.phase != "ready":
            raise LoadFailed(status.failure or "was stopped while it loaded")
        return status

    def _watching(self, size: int, told: Callable[[str], None]) -> Callable[[], str]:
        """Tells, each time it is asked, how much of a model of ``size`` bytes (0: it is there) has come, and how much
        of it the engine has made ready, where that takes long; in steps worth a line."""
        asked, began = self.status_ref(), time.monotonic()
        shown = [0.0, 0.0]

        def look() -> str:
            import ray

            nonlocal asked
            if ray.wait([asked], timeout=0)[0]:
                status = read_status(ray.get(asked))
                long = time.monotonic() - began > _LONG
                for n, (done, said, worth) in enumerate(
                    (
                        (status.fetched / max(1, size), f"of its model ({size / 2**20:,.0f} MiB) is sent", size > 0),
                        (status.repacked, "of its model is loaded", long and status.phase == "loading"),
                    )
                ):
                    if worth and done >= shown[n] + 0.1:
                        told(f"{100 * done:.0f} % {said}")
                        shown[n] = done
                asked = self.status_ref()
            return ""

        return look

    def hold(self, turn: Callable[[], str]) -> str:
        """Wait until it ends or hangs, or ``turn``, which is asked now and then, says why it should end; returns why.
        Raises WorkerEnded."""
        held = self._actor.hold.remote()
        asked, since = None, time.monotonic()

        def judge() -> str:
            import ray

            nonlocal asked, since
            if asked is not None and ray.wait([asked], timeout=0)[0]:
                self.silent_s = 0.0
                trouble, asked = str(ray.get(asked)), None
                if trouble:
                    return trouble
            if asked is None:
                if time.monotonic() - since < _BEAT:
                    return ""
                asked, since = self._actor.trouble.remote(SILENT), time.monotonic()
                return turn()
            self.silent_s = time.monotonic() - since
            return f"it has not answered for {SILENT:.0f} s" if self.silent_s > SILENT else ""

        why = str(self._wait(held, judge, own=False) or "it ended without a word")
        self.end()
        return why

    def allow(self, keys: list[str]) -> None:
        """Tell a verifier whom to let in; returns when it knows. Raises WorkerEnded."""
        self._wait(self._actor.allow.remote(keys))

    def link(self, endpoint: str, index: int) -> None:
        """Tell a drafter where the verifier of an index listens."""
        self._actor.link.remote(endpoint, index)

    def follow(self, name: str, gamma: int) -> None:
        """Tell it of another strategy."""
        self._actor.follow.remote(name, gamma)

    def status_ref(self) -> Any:
        """Ray's promise of its status."""
        return self._actor.status.remote()

    def stop(self) -> Any:
        """Ask it to stop; returns Ray's promise of that."""
        return self._actor.stop.remote()

    def end(self) -> None:
        """End its process, answering or not."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self._actor, no_restart=True)

    def _wait(self, ref: Any, judge: Callable[[], str] = lambda: "", own: bool = True) -> Any:
        """The value of ``ref``. ``judge`` says, when asked, why to wait no longer; ``own``: whether that is its own
        fault."""
        import ray

        looked = time.monotonic()
        try:
            while not ray.wait([ref], timeout=0.25)[0]:
                if self._stopping.is_set():
                    raise WorkerEnded("hetero is stopping", own=False)
                if why := judge():
                    self.end()
                    raise WorkerEnded(why, own)
                if time.monotonic() - looked > _BEAT:
                    looked = time.monotonic()
                    if not self._cluster.has(self._node):
                        raise WorkerEnded("its machine left", own=False)
            return ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            raise WorkerRefused(str(error.cause).strip().splitlines()[0]) from None
        except ray.exceptions.ActorUnschedulableError:
            raise WorkerEnded("its machine left", own=False) from None
        except ray.exceptions.RayActorError as error:
            if "failed to import" in str(error) or "No module named" in str(error):
                raise WorkerRefused("hetero is not installed where Ray runs there") from None
            words = self._cluster.last_words(self._node, self._pid)
            raise WorkerEnded(f"its process died{f' ({words})' if words else ''}") from None
        except ray.exceptions.RayError as error:
            raise WorkerEnded(str(error).strip().splitlines()[0]) from None
