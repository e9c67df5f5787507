"""Two hosts on this machine: network, files, processes, users and sshd of their own, and a cable between them.

They see this machine's programs; what they write goes to memory and ends with them. Needs root, iproute2, iptables,
util-linux, openssh-server and rsync.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent.parent
_SCRIPT = Path(__file__).with_name("host.sh")
NEEDS = ("ip", "iptables", "unshare", "nsenter", "rsync", "/usr/sbin/sshd")


def lacking() -> str:
    """What of their needs is not here; "": nothing."""
    if os.name != "posix" or os.getuid() != 0:
        return "root"
    return ", ".join(tool for tool in NEEDS if shutil.which(tool) is None)


class Host:
    """One of the two. ``me`` is its user, with the repository at ``~/hetero``."""

    def __init__(self, name: str, address: str, space: str, folder: Path) -> None:
        self.name, self.address = name, address
        self._space = space  # its network namespace
        folder.mkdir()
        command = ["ip", "netns", "exec", space, "unshare", "--mount", "--pid", "--fork", "--uts", "--ipc"]
        command += ["--kill-child", "bash", str(_SCRIPT), str(folder), name, address, str(ROOT)]
        self._log = (folder.parent / f"{name}.log").open("w+")
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True
        )
        self._first: psutil.Process | None = None

    def wait(self) -> None:
        end = time.monotonic() + 30
        while True:
            assert self._process.poll() is None and time.monotonic() < end, Path(self._log.name).read_text()
            children = psutil.Process(self._process.pid).children()
            if children:
                self._first = children[0]
                if self.run("test -e /ready", user="root", check=False).returncode == 0:
                    return
            time.sleep(0.1)

    def _inside(self, command: str, user: str) -> list[str]:
        assert self._first is not None
        enter = ["nsenter", "-t", str(self._first.pid), "-m", "-p", "-n", "-u", "-i", "-r", "-w", "--"]
        return [*enter, "env", "-i", "TERM=dumb", "LANG=C.UTF-8", "su", "-", user, "-s", "/bin/bash", "-c", command]

    def run(
        self, command: str, user: str = "me", check: bool = True, seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """A command in a login shell, to its end; its two outputs come as one."""
        done = subprocess.run(
            self._inside(command, user), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=seconds,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{self.name}: {command}\n{done.stdout}"
        return done

    def start(self, command: str, log: Path, user: str = "me") -> subprocess.Popen[bytes]:
        """A command that goes on."""
        with log.open("w") as out:
            return subprocess.Popen(
                self._inside(command, user), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def write(self, path: str, text: str) -> None:
        """A file of the user's."""
        subprocess.run(
            self._inside(f"mkdir -p $(dirname {path}) && cat > {path}", "me"), input=text.encode(), check=True
        )

    def processes(self, *words: str) -> list[psutil.Process]:
        """Its processes whose command line has one of these words."""
        assert self._first is not None
        space, found = os.readlink(f"/proc/{self._first.pid}/ns/pid"), []
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
                mine = os.readlink(f"/proc/{process.pid}/ns/pid") == space
            except (psutil.Error, OSError):
                continue
            if mine and any(word in line for word in words) and not line.startswith(("su ", "-bash", "bash -c")):
                found.append(process)
        return found

    def signal(self, word: str, number: signal.Signals) -> None:
        """Send a signal to the processes of that name; there must be one."""
        found = self.processes(word)
        assert found, f"{self.name} has no process {word}"
        for process in found:
            process.send_signal(number)

    def firewall(self, ports: str) -> None:
        """Drop what comes from outside to other ports than these ("22,10002:10101")."""
        _ip("netns", "exec", self._space, "iptables", "-F")
        for rule in (
            "-i lo -j ACCEPT",
            "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "-p icmp -j ACCEPT",
            f"-p tcp -m multiport --dports {ports} -j ACCEPT",
            "-j DROP",
        ):
            _ip("netns", "exec", self._space, "iptables", "-A", "INPUT", *rule.split())

    def end(self) -> None:
        if self._first is not None and self._first.is_running():
            self._first.kill()  # the first process of a pid namespace takes all others with it
        self._process.kill()
        self._process.wait(10)
        self._log.close()


class TwoHosts:
    """``big`` and ``small``, on one wire. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._spaces = [f"het{os.getpid()}{end}" for end in "absw"]
        self._folder = folder

    def __enter__(self) -> TwoHosts:
        big, small, _, switch = self._spaces
        for space in (big, small, switch):
            _ip("netns", "add", space)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for n, space in enumerate((big, small), 1):
            _ip("link", "add", "cable", "netns", space, "type", "veth", "peer", "name", f"plug{n}", "netns", switch)
            _ip("-n", space, "addr", "add", f"10.77.0.{n}/24", "dev", "cable")
            _ip("-n", space, "link", "set", "cable", "up")
            _ip("-n", switch, "link", "set", f"plug{n}", "master", "bridge")
            _ip("-n", switch, "link", "set", f"plug{n}", "up")
        self.big = Host("bigpc", "10.77.0.1", big, self._folder / "big")
        self.small = Host("gpupc", "10.77.0.2", small, self._folder / "small")
        for host in (self.big, self.small):
            host.wait()
        key = self.big.run("cat .ssh/id_ed25519.pub").stdout
        for host in (self.big, self.small):  # ssh-copy-id, twice
            host.write(".ssh/authorized_keys", key)
        return self

    def cable(self, state: str) -> None:
        """Pull the second PC's cable ("down") or plug it in ("up")."""
        _ip("-n", self._spaces[3], "link", "set", "plug2", state)

    def __exit__(self, *_: object) -> None:
        for host in (getattr(self, "big", None), getattr(self, "small", None)):
            if host is not None:
                host.end()
        for space in self._spaces:
            subprocess.run(["ip", "netns", "del", space], stderr=subprocess.DEVNULL, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
