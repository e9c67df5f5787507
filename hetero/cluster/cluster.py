"""The Ray cluster: started here for one machine, or joined for several."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hetero.cluster.raynode import RAY_SETTINGS, STORE, RayNode, check_head, own_address, split_address
from hetero.cluster.scratch import Scratch, ray_folders
from hetero.cluster.token import known_token, own_token, use_token
from hetero.errors import ClusterError
from hetero.placement.nodes import Node
from hetero.workers.models.confined import last_words
from hetero.workers.runtime.build import build

# Ray as it starts on Macs and Windows: all of it listens on the loopback. It lives without a network then, too.
_ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "AUTOSCALER_METRIC_PORT": "-1"}
_log = logging.getLogger("hetero.cluster.cluster")
_goodbye: threading.Thread | None = None  # leaves Ray
_FRESH = 1.0  # seconds an answer of Ray's about machines is good for
_NO_OTHER = "RAY_ENABLE_AUTO_CONNECT"  # else a late word of a thread, once Ray was left, joins or starts another
_KNOCK = 3.0  # seconds Ray's head may take to answer
_HANGS, _ROUNDS = 15.0, 5  # seconds an answer may take, asked for every so many knocks
_LONG_GOODBYE = 120.0  # seconds that leaving one Ray may keep the next from starting
_LOST = 3  # knocks without an answer, one a second, after which the head counts as gone


class Cluster:
    """Ray as this process knows it."""

    def __init__(self, address: str = "local") -> None:
        """``address``: "local" to start one, "auto" or HOST:PORT to join one."""
        self.address = address
        self.lost: str | None = None  # why its head counts as gone
        self.invitation = ""  # what to type on another machine to join it
        self._head: RayNode | None = None
        self._scratch: Scratch | None = None
        self._known: tuple[float, list[Node]] = (0.0, [])
        self._leaving = threading.Event()

    @classmethod
    def opened(cls, host: str = "") -> Cluster:
        """One that starts here and that other machines may join; ``host``: this machine's address for them. Raises
        ClusterError."""
        host, token = host or own_address(), own_token()
        use_token(token)
        head = RayNode(token, "", host)
        found = cls(head.address)
        found._head, found.invitation = head, f"hetero join {head.address} --token {token}"
        return found

    @property
    def shared(self) -> bool:
        """Whether it may have other machines."""
        return self.address != "local"

    def join(self) -> None:
        """Start or join it; safe to call again. Raises ClusterError."""
        if not self.shared:
            use_token(os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32))
            os.environ.update(_ON_LOOPBACK)
        elif "RAY_AUTH_MODE" not in os.environ and (token := known_token()):
            use_token(token)
        for name, value in (RAY_SETTINGS | {_NO_OTHER: "0"}).items():
            os.environ.setdefault(name, value)
        address = self._address()
        import ray

        if ray.is_initialized():
            if _head_answers():
                return
            _say_goodbye(10.0)  # what one that failed or never ended left of a Ray that is gone
        if not _goodbye_ended(_LONG_GOODBYE):
            raise ClusterError(
                f"address {self.address}: the Ray of before is still being left after {_LONG_GOODBYE:.0f} s: "
                "start hetero in a process of its own"
            )
        hush()
        common = {
            "log_to_driver": False,
            "logging_level": logging.CRITICAL,  # what becomes of workers is told by us
            "namespace": "hetero",
            "job_config": _own_path(),
        }
        try:
            if self.shared:
                _init_within(30, address=address, **common)
                return
            self._scratch = Scratch()
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=STORE,
                _temp_dir=str(self._scratch.ray),
                **common,
            )
        except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise ClusterError(f"address {self.address}: Ray cannot be started or reached: {first}") from error

    def _address(self) -> str:
        """HOST:PORT of the cluster to join, where somebody listens: Ray itself would try for minutes."""
        if not self.shared:
            return "local"
        known = running_addresses() if self.address == "auto" else [self.address]
        why = ""
        for address in known:
            try:
                socket.create_connection(split_address(address), timeout=_KNOCK).close()
                check_head(address, os.environ.get("RAY_AUTH_TOKEN", ""))
                return address
            except ClusterError as error:
                why = why or str(error)
            except OSError as error:
                why = why or f"Ray's head at {address} does not answer ({error.strerror or error})"
        fix = "start one with `ray up cluster.yaml` or `hetero serve --cluster`"
        raise ClusterError(f"address {self.address}: {why or 'no Ray runs on this machine'}: {fix}")

    def nodes(self) -> list[Node]:
        """The machines of a joined cluster. Raises ClusterError where others could reach them without a token."""
        found = self._ask()
        others = {node.address for node in found} - {node.address for node in found if node.here}
        if others and os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
            raise ClusterError(
                f"address {self.address}: the cluster has other machines ({', '.join(sorted(others))}) but no token: "
                "set RAY_AUTH_MODE=token on every machine, as cluster.yaml does"
            )
        return found

    def wait_for(self, count: int, seconds: float) -> list[Node]:
        """Its machines that can be used, once there are ``count``. Raises ClusterError after ``seconds``."""
        end = time.monotonic() + seconds
        while len(found := _usable(self.nodes())) < count:
            if time.monotonic() > end:
                have = ", ".join(sorted(node.name for node in found))
                raise ClusterError(
                    f"require_nodes: {count} machines are wanted, {len(found)} came ({have}) in {seconds:.0f} s: "
                    "look at the others with `ray status` and `hetero doctor --cluster cluster.yaml`"
                )
            time.sleep(0.5)
        return found

    def present(self) -> list[Node]:
        """The machines that are there and can be used, as of a second ago at most; none of a local start."""
        if not self.shared:
            return []
        if self.lost is None and time.monotonic() - self._known[0] > _FRESH:
            self._known = (time.monotonic(), _usable(self._ask()))
        return self._known[1]

    def has(self, node: str) -> bool:
        """Whether a machine is there, by Ray's id."""
        return not self.shared or any(known.id == node for known in self.present())

    def last_words(self, node: str, pid: int) -> str:
        """What a worker's process said of its end on its standard error, where that can be read here; else ""."""
        folder = self._scratch.ray if self._scratch is not None else self._head.folder if self._head else None
        if folder is None or not pid or node != self.here():
            return ""
        for file in (folder / "session_latest" / "logs").glob(f"worker-*-{pid}.err"):
            with contextlib.suppress(OSError):
                return last_words(file.read_text(errors="replace"))
        return ""

    def own_address(self) -> str:
        """This machine's address for the others."""
        return next((node.address for node in self.present() if node.here), "127.0.0.1")

    def _ask(self) -> list[Node]:
        import ray

        mine = self.here()
        return [_node(entry, mine) for entry in ray.nodes() if entry["Alive"]]

    @staticmethod
    def here() -> str:
        """Ray's id of this node."""
        import ray

        found: str = ray.get_runtime_context().get_node_id()
        return found

    def watch(self, on_lost: Callable[[str], None], until: threading.Event) -> None:
        """Tell, from a thread, when Ray's head is gone: a minute later so are its workers, and this process. ``until``
        ends it."""
        import ray

        where = ray.get_runtime_context().gcs_address
        host, port = split_address(where)

        def look() -> None:
            missed = rounds = 0
            while not until.wait(1.0) and not self._leaving.is_set():
                rounds += 1
                try:
                    socket.create_connection((host, port), timeout=_KNOCK).close()
                    missed = 0
                except OSError:
                    missed += 1
                # One that hangs still takes connections.
                hangs = missed == 0 and rounds % _ROUNDS == 0 and isinstance(within(_HANGS, self._ask), TimeoutError)
                if (missed >= _LOST or hangs) and not (self._leaving.is_set() or until.is_set()):
                    left = "; `ray stop` clears away what is left of it" if self.shared and not self._head else ""
                    self.lost = f"Ray's head at {where} is gone{left}"
                    on_lost(self.lost)
                    return

        threading.Thread(target=look, name="hetero-watch-head", daemon=True).start()

    def leave(self) -> None:
        """Stop what was started here, leave what was joined; safe to call twice."""
        import ray

        self._leaving.set()
        if ray.is_initialized():
            # Without its head Ray's goodbye may wait for ever.
            _say_goodbye(10.0 if self.lost else 60.0)
        if self._head is not None:
            self._head.end()
        if self._scratch is not None:
            self._scratch.remove()


class _Hushed:
    """Standard output without what Ray's own thread writes to it: pages of raylet's state at each end of a worker. Ray
    has no setting for that. What matters of it is told by keepers."""

    def __init__(self, out: Any) -> None:
        self._out = out

    def write(self, text: str) -> int:
        if threading.current_thread().name == "ray_listen_error_messages":
            _log.debug("Ray: %s", text)
            return len(text)
        return int(self._out.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


def hush() -> None:
    """From now on standard output is ours alone."""
    if not isinstance(sys.stdout, _Hushed):
        sys.stdout = _Hushed(sys.stdout)


def running_addresses() -> list[str]:
    """HOST:PORT of each Ray that was started on this machine, as "auto" means it; some may be gone."""
    if named := os.environ.get("RAY_ADDRESS"):
        return [named]
    found = []
    default = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
    for folder in (default, *ray_folders()):
        with contextlib.suppress(OSError):
            found.append((folder / "ray_current_cluster").read_text().strip())
    return found


def _head_answers() -> bool:
    """Whether the Ray that this process has joined is still there."""
    import ray

    try:
        socket.create_connection(split_address(ray.get_runtime_context().gcs_address), timeout=_KNOCK).close()
    except (OSError, RuntimeError, AttributeError, AssertionError):  # half of it may be gone
        return False
    return True


def _say_goodbye(seconds: float) -> None:
    """Leave Ray, or go on leaving it; returns after ``seconds`` though it goes on: without a head it may take minutes.
    Until it has ended no other Ray may be started: it would end that one's processes."""
    global _goodbye
    import ray

    if _goodbye_ended(0.0):
        _goodbye = _beside(ray.shutdown, [None])
    _goodbye_ended(seconds)


def _goodbye_ended(seconds: float) -> bool:
    """Whether no Ray is being left any more, within so many seconds."""
    if _goodbye is None:
        return True
    _goodbye.join(seconds)
    return not _goodbye.is_alive()


def within(seconds: float, what: Callable[[], object]) -> BaseException | None:
    """Do it in a thread, for so long at most; returns what it raised, or TimeoutError."""
    raised: list[BaseException | None] = [TimeoutError(f"no answer within {seconds:.0f} s")]
    _beside(what, raised).join(seconds)
    return raised[0]


def _beside(what: Callable[[], object], raised: list[BaseException | None]) -> threading.Thread:
    """A thread that does it; ``raised`` gets what it raised."""

    def work() -> None:
        try:
            what()
            raised[0] = None
        except BaseException as error:
            raised[0] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _init_within(seconds: float, **arguments: Any) -> None:
    import ray

    error = within(seconds, lambda: ray.init(**arguments))
    if error is not None:
        raise error


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


def _usable(nodes: list[Node]) -> list[Node]:
    """Those that do not say that they have another hetero."""
    return [node for node in nodes if node.here or node.build in ("", build())]


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
