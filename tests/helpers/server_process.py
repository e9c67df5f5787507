"""``hetero serve`` as a process of its own, as a user starts it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import httpx


def wait_ready(url: str, process: subprocess.Popen) -> None:
    end = time.monotonic() + 90
    while True:
        assert process.poll() is None, process.stdout.read()
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < end
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(port: int, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-P", "-m", "hetero.cli", "serve", "--port", str(port), *more]
    # As a user has it: without the token that the tests share.
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
