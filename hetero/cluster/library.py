"""This machine's models, for workers on machines that lack them."""

from __future__ import annotations

import threading

from msgspec import structs

from hetero.planning.plan import Placement
from hetero.workers.models.travel import files_of, manifest_of, name_of
from hetero.workers.runtime.spec import WorkerSpec
from hetero.workers.wire.transfer import FileServer, Origin


class Library:
    """Opens at the first worker of another machine. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: FileServer | None = None

    def spec_of(self, placement: Placement, host: str) -> WorkerSpec:
        """The spec of a placement; away from here it says where the model can be had. ``host``: this machine's address
        for others. Raises WireError, OSError."""
        spec = placement.spec
        if placement.node is None or placement.node.here:
            return spec
        path = placement.model.path.resolve()
        manifest = manifest_of(path)
        name = name_of(manifest)
        with self._lock:
            if self._server is None:
                self._server = FileServer(host, (spec.ports[0], spec.ports[1]) if spec.ports else None)
            self._server.offer(name, files_of(path))
            return structs.replace(spec, origin=Origin(self._server.endpoint, name, manifest))

    def admit(self, key: str) -> None:
        """A worker with this public key (hex) may come for its model."""
        if self._server is not None:
            self._server.admit(key)

    def close(self) -> None:
        """Safe to call twice."""
        if self._server is not None:
            self._server.close()
