"""A llama-server as a contender: somebody else's binary, asked over HTTP as its users ask it."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hetero.errors import ClusterError

_LOADS = 300  # seconds a model may take to load


class LlamaServer:
    """One running llama-server, pinned to ``cores``."""

    def __init__(self, own: Sequence[str], target: Path, draft: Path, cores: Sequence[int], context: int) -> None:
        """Start it and wait until it has loaded. ``own``: its command so far, in which {draft} is the drafter's file.
        Raises ClusterError."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        words = [word.replace("{draft}", str(draft)) for word in own]
        command = ["taskset", "-c", ",".join(map(str, cores)), *words, "-m", str(target), "-t", str(len(cores))]
        command += ["-c", str(context), "-np", "1", "--host", "127.0.0.1", "--port", str(self._port)]
        self._name = own[0]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + _LOADS
        try:
            while not self._healthy():
                if self._process.poll() is not None or time.monotonic() > until:
                    raise ClusterError(f"server: it did not start: {' '.join(command)}")
                time.sleep(0.2)
        except BaseException:
            self.close()
            raise

    def ask(self, prompt: list[int], temperature: float, seed: int, count: int) -> dict[str, Any]:
        """Its own ``timings`` of ``count`` tokens of one sequence. Raises ClusterError."""
        asked = {
            "prompt": prompt, "n_predict": count, "temperature": temperature, "seed": seed, "top_k": 0, "top_p": 1.0,
            "min_p": 0.0, "repeat_penalty": 1.0, "ignore_eos": True, "cache_prompt": False,
        }  # fmt: skip
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/completion",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                found: dict[str, Any] = json.load(answer)["timings"]
                return found
        except (OSError, ValueError, KeyError) as error:
            raise ClusterError(f"server: {self._name} did not answer: {error}") from None

    def close(self) -> None:
        """Stop it."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False
