"""The Ray cluster: started here for one machine, or joined for several."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
from typing import Any

from hetero.errors import ClusterError
from hetero.placement.nodes import Node

_STORE = 80 << 20  # Ray's least object store: tokens never travel there


class Cluster:
    """Ray as this process knows it."""

    def __init__(self, address: str = "local") -> None:
        """``address``: "local" to start one, "auto" or HOST:PORT to join one."""
        self.address = address
        self._folder: str | None = None

    @property
    def shared(self) -> bool:
        """Whether it may have other machines."""
        return self.address != "local"

    def join(self) -> None:
        """Start or join it; safe to call again. Raises ClusterError."""
        if not self.shared:
            # Ray listens on all of this machine's addresses: let in who has the token only, that is us. Ray reads
            # this as it is imported.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        import ray

        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        common = {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "namespace": "hetero",
            "job_config": _own_path(),
        }
        try:
            if self.shared:
                self._knock()
                ray.init(address=self.address, **common)
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
            raise ClusterError(f"address {self.address}: Ray cannot be started or reached: {first}") from error

    def _knock(self) -> None:
        """Raise OSError at once where nobody listens: Ray itself would try for minutes."""
        host, colon, port = self.address.rpartition(":")
        if colon and port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()

    def nodes(self) -> list[Node]:
        """The machines of a joined cluster. Raises ClusterError where others could reach them without a token."""
        import ray

        mine = self.here()
        found = [_node(entry, mine) for entry in ray.nodes() if entry["Alive"]]
        others = {node.address for node in found} - {node.address for node in found if node.here}
        if others and os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
            raise ClusterError(
                f"address {self.address}: the cluster has other machines ({', '.join(sorted(others))}) but no token: "
                "set RAY_AUTH_MODE=token on every machine, as cluster.yaml does"
            )
        return found

    @staticmethod
    def here() -> str:
        """Ray's id of this node."""
        import ray

        found: str = ray.get_runtime_context().get_node_id()
        return found

    def leave(self) -> None:
        """Stop what was started here, leave what was joined; safe to call twice."""
        import ray

        if ray.is_initialized():
            ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _own_path() -> Any:
    """A job whose workers import from where hetero is installed, and from nowhere else.

    Ray puts the driver's current folder in front of its workers' path, unless the job brings a folder of its own; a
    ``torch.py`` lying there would be run.
    """
    from ray.job_config import JobConfig

    class OwnPath(JobConfig):  # type: ignore[misc]
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    return OwnPath()


def _node(entry: dict[str, Any], mine: str) -> Node:
    resources: dict[str, float] = entry["Resources"]
    names = {entry["NodeName"], entry["NodeManagerHostname"], entry["NodeManagerAddress"]} - {""}
    return Node(
        id=entry["NodeID"],
        address=entry["NodeManagerAddress"],
        names=frozenset(names),
        marks=frozenset(name for name in resources if not name.startswith(("node:", "CPU", "GPU", "memory", "object"))),
        cpus=int(resources.get("CPU", 1)),
        gpus=int(resources.get("GPU", 0)),
        memory=int(resources.get("memory", 0)),
        here=entry["NodeID"] == mine,
    )
