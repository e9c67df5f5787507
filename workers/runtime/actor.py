"""What Ray runs: a thin shell of plain methods around a Worker. Only plain types cross Ray."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from hetero.workers.runtime.build import build
from hetero.workers.runtime.pinning import pin
from hetero.workers.runtime.spec import read_spec

if TYPE_CHECKING:
    from hetero.workers.runtime.worker import Worker


class WorkerActor:
    """One worker as an actor; its data goes over ZeroMQ, only control passes here. ``begin`` comes first."""

    _worker: Worker

    def build(self) -> str:
        """Which hetero is installed here; asked before a spec of another one is read."""
        return build()

    def begin(self, plain: dict[str, Any]) -> int:
        """Start loading what a spec wants; returns this process's id."""
        spec = read_spec(plain)
        pin(spec.cores, spec.gpus, spec.kind)
        from hetero.workers.runtime.worker import Worker  # numeric libraries load after cores and GPU are set

        self._worker = Worker(spec)
        self._worker.start()
        return os.getpid()

    def status(self) -> dict[str, Any]:
        return self._worker.status().plain()

    def ready(self) -> dict[str, Any]:
        """Waits until the model is loaded or has failed to; returns the status."""
        self._worker.settled.wait()
        return self._worker.status().plain()

    def trouble(self, patience: float) -> str:
        """Why the worker counts as hung, or ""; see ``Pulse.trouble``."""
        return self._worker.pulse.trouble(patience)

    def link(self, endpoint: str, index: int = 0) -> None:
        self._worker.link(endpoint, index)

    def allow(self, keys: list[str]) -> None:
        self._worker.allow(keys)

    def follow(self, name: str, gamma: int) -> None:
        self._worker.follow(name, gamma)

    def hold(self) -> str:
        """Returns when the worker ends; fails when its process dies. Returns its failure, or ""."""
        self._worker.ended.wait()
        return str(self._worker.status().failure)

    def stop(self) -> None:
        self._worker.stop()

    def die(self) -> None:
        """End this process at once."""
        os._exit(1)


class VerifierActor(WorkerActor):
    """The target's worker; the class gives its process a name."""


class DrafterActor(WorkerActor):
    """The drafter's."""
