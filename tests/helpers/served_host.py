"""``hetero serve`` on one of two hosts: its log, its health, and streams from it."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from helpers.two_hosts import Host

ON = ". hetero/.venv/bin/activate && export COLUMNS=160 && "
SEEDS, TOKENS = (21, 22), 400


def until(condition: Callable[[], object], seconds: float = 90.0, what: object = "") -> float:
    """Seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds, what() if callable(what) else what
        time.sleep(0.5)
    return time.monotonic() - began


class Serving:
    """``hetero serve`` on the first PC."""

    def __init__(self, host: Host, folder: Path, flags: str, before: str = "", port: int = 8000) -> None:
        self.host, self.url = host, f"http://127.0.0.1:{port}"
        self.log = folder / f"serve-{time.monotonic_ns()}.log"
        self.process = host.start(
            f"{ON}{before}hetero serve --exact --strategy serial --no-lookup --port {port} {flags}", self.log
        )
        until(lambda: "Ctrl-C stops" in self.text or self.process.poll() is not None)
        assert "Ctrl-C stops" in self.text, self.text

    @property
    def text(self) -> str:
        return self.log.read_text()

    def after(self, mark: int, words: str, seconds: float = 120) -> float:
        """Seconds until the log says so, beyond its first ``mark`` characters."""
        return until(lambda: words in self.text[mark:], seconds, lambda: self.text)

    def streams(self, meanwhile: Callable[[], object] = lambda: None, after: float = 0.3) -> list[dict]:
        """What came of the seeded streams, with something done while they run."""
        timer = threading.Timer(after, meanwhile)
        timer.start()
        seeds = " ".join(map(str, SEEDS))
        command = f"python3 hetero/tests/helpers/stream_client.py {self.url} {TOKENS} {seeds}"
        found = json.loads(self.host.run(command, seconds=400).stdout)
        timer.join()
        return found

    def health(self) -> int:
        command = f"curl -s -o /dev/null -w '%{{http_code}}' {self.url}/health"
        return int(self.host.run(command, check=False).stdout or 0)

    def stop(self) -> float:
        began = time.monotonic()
        if self.process.poll() is None:
            self.host.signal(f"--port {self.url.rpartition(':')[2]}", signal.SIGTERM)
        self.process.wait(60)
        return time.monotonic() - began
