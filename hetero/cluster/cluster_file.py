"""``hetero doctor --cluster cluster.yaml``: what would keep `ray up` and the workers from working, before it does."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import yaml

from hetero.cluster.finding import BAD, GOOD, ODD, Finding
from hetero.cluster.token import known_token
from hetero.errors import ConfigError
from hetero.workers.runtime.build import build

_SSH = 20.0  # seconds a command on another machine may take
_HEARD = 6.0  # seconds a port is tried
# Asked of each machine in one go, in the environment that cluster.yaml names.
_QUESTIONS = """\
command -v rsync > /dev/null && echo rsync=yes
. {venv}/bin/activate 2> /dev/null && echo venv=yes && python -P -c 'from importlib.metadata import version
from hetero.workers.runtime.build import build
print("build=" + build())
print("ray=" + version("ray"))'
"""
_LISTEN = """\
import socket
with socket.create_server(("{host}", {port})) as s:
    print("listening", flush=True)
    s.settimeout({seconds})
    s.accept()
"""
_KNOCK = "import socket; socket.create_connection(('{host}', {port}), timeout={seconds}).close()"


@dataclass(frozen=True)
class ClusterFile:
    """What of cluster.yaml matters here. ``venv``: the environment its commands activate; ``forth``: a port of each
    span that the first PC dials on the others (the object store's is not: nothing travels there), ``back``: those the
    others dial on the first."""

    head: str
    workers: tuple[str, ...]
    user: str
    key: str
    venv: str
    forth: tuple[int, ...]
    back: tuple[int, ...]

    def ssh(self, host: str, command: str) -> list[str]:
        """As Ray logs in."""
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_HEARD:.0f}", "-o", "StrictHostKeyChecking=no"]
        options += ["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        if self.key:
            options += ["-i", str(Path(self.key).expanduser())]
        return ["ssh", *options, f"{self.user}@{host}", command]


def read_cluster_file(path: Path) -> ClusterFile:
    """Raises ConfigError naming what is missing."""
    try:
        found = yaml.safe_load(path.read_text())
        provider, auth = found["provider"], found["auth"]
        if provider["type"] != "local":
            raise ConfigError(f"{path}: provider.type is {provider['type']!r}: only 'local' can be looked at")
        commands = _flat(found["head_start_ray_commands"]) + _flat(found["worker_start_ray_commands"])
        head, workers, user = provider["head_ip"], provider["worker_ips"], auth["ssh_user"]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path}: {error} is missing: take the cluster.yaml of hetero as it is") from None
    venv = re.search(r"\. (\S+)/bin/activate", commands)
    forth = re.findall(r"--(?:node-manager|min-worker)-port=(\d+)", commands)
    back = re.findall(r"--port=(\d+)", commands)
    return ClusterFile(
        str(head),
        tuple(map(str, workers)),
        str(user),
        str(auth.get("ssh_private_key", "")),
        venv[1] if venv else "~/hetero/.venv",
        tuple(sorted(set(map(int, forth)))),
        (*map(int, back), 20000),
    )


def examine_cluster(file: ClusterFile) -> Iterator[Finding]:
    """All findings, machine by machine."""
    mine = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    if file.head not in mine:
        fix = "run this on the first PC, and fill its address in as head_ip"
        yield Finding("head_ip", BAD, f"{file.head} is not an address of this machine", fix)
        return
    for tool in ("ssh", "rsync"):
        if shutil.which(tool) is None:
            package = "openssh-client" if tool == "ssh" else "rsync"
            yield Finding(tool, BAD, "not installed here", f"apt install {package}")
    has_token = bool(known_token())
    yield Finding("token", GOOD, "~/.ray/auth_token is there" if has_token else "ray up makes one at its first start")
    tls = os.environ.get("RAY_USE_TLS", "") == "1"
    text = (
        "Ray's connections are in TLS" if tls else "Ray's connections carry the token in clear; workers' are encrypted"
    )
    yield Finding(
        "wire", GOOD, text, "" if tls else "in a network you do not trust: RAY_USE_TLS=1 (README, Two machines)"
    )
    reached = []
    for host in (file.head, *file.workers):
        logged_in = yield from _machine(file, host)
        if logged_in:
            reached.append(host)
    for host in file.workers:
        if host in reached:
            yield from _ports(file, host)


def _machine(file: ClusterFile, host: str) -> Any:
    """Findings on one machine; returns whether one can log in and use its Python."""
    what = f"{host}{' (here)' if host == file.head else ''}"
    try:
        done = subprocess.run(
            file.ssh(host, _QUESTIONS.format(venv=file.venv)), capture_output=True, text=True, timeout=_SSH,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        yield Finding(what, BAD, f"ssh gave no answer in {_SSH:.0f} s", "is it on, and its port 22 open?")
        return False
    except FileNotFoundError:  # no ssh: said above
        return False
    if done.returncode == 255:
        why = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        fix = f"ssh-copy-id {file.user}@{host}" if "ermission denied" in why else "is it on, and its port 22 open?"
        yield Finding(what, BAD, f"ssh as {file.user}: {why}", fix)
        return False
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    yield Finding(what, GOOD, f"ssh as {file.user} works")
    if "rsync" not in told:
        yield Finding(f"{what}: rsync", BAD, "not installed", "apt install rsync (there)")
    if "venv" not in told:
        yield Finding(f"{what}: environment", BAD, f"{file.venv} is not there", "install hetero there at that path")
        return False
    if "build" not in told:
        why = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        yield Finding(f"{what}: hetero", BAD, f"cannot be used in {file.venv}: {why}", "install it there as here")
        return False
    same = told["build"] == build() and told.get("ray") == version("ray")
    text = f"hetero {told['build']}, Ray {told.get('ray')}"
    fix = "" if same else f"install the same there as here: hetero {build()}, Ray {version('ray')}"
    yield Finding(f"{what}: versions", GOOD if same else BAD, text, fix)
    return True


def _ports(file: ClusterFile, host: str) -> Iterator[Finding]:
    """Each way, with somebody listening: what a firewall drops shows."""
    python = f"{file.venv}/bin/python"
    for port in file.forth:
        listen = _LISTEN.format(host="0.0.0.0", port=port, seconds=_HEARD)
        with subprocess.Popen(
            file.ssh(host, f"{python} -c {shlex.quote(listen)}"),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as there:  # fmt: skip
            assert there.stdout is not None and there.stderr is not None
            if there.stdout.readline().strip() != "listening":
                why = (there.stderr.read().strip().splitlines() or ["nobody can listen there"])[-1]
                busy = "in use" in why
                text = "in use: Ray runs there already" if busy else why
                yield Finding(f"port {port} of {host}", ODD if busy else BAD, text)
                continue
            yield _reached(f"port {port} of {host}", f"from {file.head} to {host}", _knock(host, port))
            there.kill()
    for port in file.back:
        with contextlib.ExitStack() as stack:
            # Where it is taken, Ray or hetero listens already.
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server((file.head, port)))
            knock = shlex.quote(_KNOCK.format(host=file.head, port=port, seconds=_HEARD))
            done = subprocess.run(
                file.ssh(host, f"{python} -c {knock}"), capture_output=True, timeout=_SSH + _HEARD, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            yield _reached(f"port {port} of {file.head}", f"from {host} to {file.head}", done.returncode == 0)


def _reached(what: str, way: str, well: bool) -> Finding:
    if well:
        return Finding(what, GOOD, f"open {way}")
    return Finding(what, BAD, f"closed {way}", "open the ports that cluster.yaml lists in the firewall there")


def _knock(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_HEARD).close()
        return True
    except OSError:
        return False


def _flat(commands: list[str]) -> str:
    return " ".join(" ".join(commands).split()) + " "
