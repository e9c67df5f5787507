"""This machine's part in a cluster of several: Ray's own start underneath, as a child process that ends with us."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from hetero.cluster.scratch import Scratch, users_of
from hetero.errors import ClusterError
from hetero.placement.nodes import BUILD, DRAFTER, TARGET
from hetero.workers.runtime.build import build

STORE = 80 << 20  # Ray's least object store: tokens never travel there

# As Ray starts on each machine of ours. It reads them as it is imported.
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # plans check memory; Ray would kill a verifier that fills it
    "RAY_DEDUP_LOGS": "0",  # what it held back for it would come at the very end
    "RAY_worker_niceness": "0",  # at Ray's 15 a busy browser leaves a worker a thirtieth of a core
    "RAY_kill_worker_timeout_milliseconds": "1000",  # one that hangs does not end when asked
}
_PORT = 6379
_ELSEWHERE = "192.0.2.1"  # an address of nobody's: the way there is the way out
# Fixed, so that a firewall can be told. cluster.yaml has the same.
_PORTS = {
    "--node-manager-port": "10110",
    "--object-manager-port": "10111",
    "--min-worker-port": "10002",
    "--max-worker-port": "10101",
}
_ANSWER = 15.0  # seconds a head may take to answer
_GOODBYE = 3.0  # seconds a raylet may take to end
_WITHIN = 60.0  # seconds Ray may take to start


def marks(role: str = "") -> str:
    """What a machine declares to Ray, as JSON: the role it takes ("target", "drafter" or ""), and its hetero."""
    roles = {"target": {TARGET: 1}, "drafter": {DRAFTER: 1}, "": {}}
    return json.dumps(roles[role] | {BUILD + build(): 1})


def own_address() -> str:
    """This machine's address on its way out; without one, the first that is not the loopback's. Raises ClusterError."""
    with contextlib.suppress(ClusterError):
        return address_towards(_ELSEWHERE)
    up = {name for name, facts in psutil.net_if_stats().items() if facts.isup}
    for name, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            if name in up and entry.family == socket.AF_INET and not entry.address.startswith("127."):
                return str(entry.address)
    raise ClusterError("cluster_host: this machine has no address that others could reach: connect it, or give one")


def address_towards(host: str) -> str:
    """This machine's address on the way to ``host``. Raises ClusterError."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(where)  # sends nothing
            found: str = probe.getsockname()[0]
            return found
    except OSError as error:
        raise ClusterError(f"no way to {host} from here: {error.strerror or error}") from None


def split_address(address: str) -> tuple[str, int]:
    """HOST and PORT of HOST:PORT. Raises ClusterError."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise ClusterError(f"address {address!r} is not HOST:PORT, like 192.168.1.10:6379")
    return host.strip("[]"), int(port)


class RayNode:
    """What ``ray start`` starts. Started on construction; ``end`` it."""

    def __init__(self, token: str, role: str, address: str, head: str = "") -> None:
        """``address``: this machine's; ``head``: HOST:PORT to join, "" to be the head. Raises ClusterError."""
        self.address = head or (f"[{address}]:{_PORT}" if ":" in address else f"{address}:{_PORT}")  # the head's
        self._scratch = Scratch()  # what a killed one left ends here, its Ray too
        if not head and _taken(address, _PORT):
            self._scratch.remove()
            raise ClusterError(
                f"port {_PORT} is taken: if it is Ray's, use it with --address auto or end it with `ray stop`"
            )
        command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start"]
        command += [f"--address={head}"] if head else ["--head", f"--port={_PORT}", "--include-dashboard=false"]
        command += [f"{name}={value}" for name, value in _PORTS.items()]
        command += [f"--node-ip-address={address}", f"--object-store-memory={STORE}", f"--resources={marks(role)}"]
        command += [f"--temp-dir={self._scratch.ray}", "--disable-usage-stats"]
        environment = {**os.environ, **RAY_SETTINGS, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        if sys.platform == "darwin":  # Ray wants to be asked for it there
            environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"
        try:
            # Not --block: that ends all of Ray with its head, and running requests want a minute more.
            with (self._scratch.path / "start.log").open("w+") as log:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, timeout=_WITHIN,
                    start_new_session=True, check=False,
                )  # fmt: skip
                log.seek(0)
                told = log.read()
            if done.returncode or not self.alive:
                raise ClusterError(f"Ray cannot be started here: {_reason(told)}")
        except subprocess.TimeoutExpired:
            self.end()
            raise ClusterError(f"Ray did not start within {_WITHIN:.0f} s") from None
        except BaseException:
            self.end()
            raise

    @property
    def folder(self) -> Path:
        """Where Ray here keeps its files."""
        return self._scratch.ray

    @property
    def alive(self) -> bool:
        """Whether Ray runs here."""
        return self._raylet() is not None

    def end(self) -> None:
        """End Ray's processes on this machine that this started; safe to call twice."""
        if (raylet := self._raylet()) is not None:
            with contextlib.suppress(psutil.Error):
                children = raylet.children(recursive=True)
                raylet.terminate()  # it says goodbye to its head and ends its workers
                psutil.wait_procs([raylet, *children], _GOODBYE)
                for child in children:  # without a head they take their time
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
        self._scratch.remove()

    def _raylet(self) -> psutil.Process | None:
        for process in users_of(self._scratch.path):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "raylet":
                    return process
        return None


def _taken(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1.0).close()
        return True
    except OSError:
        return False


def check_head(address: str, token: str) -> None:
    """Raise ClusterError unless Ray's head at HOST:PORT answers and takes this token ("": it asks for none)."""
    split_address(address)
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "health-check", f"--address={address}"]
    environment = os.environ | ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {})
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_ANSWER)
    except subprocess.TimeoutExpired:
        raise ClusterError(f"Ray's head at {address} has not answered for {_ANSWER:.0f} s: it hangs") from None
    if done.returncode:
        raise ClusterError(f"Ray's head at {address}: {_reason(done.stdout + done.stderr)}")


def _reason(told: str) -> str:
    """The line of Ray's output that says what is wrong."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    if any("AuthenticationError" in line for line in lines):
        return "the token is not the one it asks for"
    for n, line in enumerate(lines):
        if "Version mismatch" in line:
            return " ".join(lines[n : n + 6])
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    return (named or lines or ["it said nothing"])[-1]
