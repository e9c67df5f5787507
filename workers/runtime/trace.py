"""A trace as a file, in the format of Chrome's and Perfetto's viewers.

Each worker appends its own events to one file; a line of less than 4 KiB is written whole.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class FileTrace:
    """A ``Trace`` that appends to a file which ``start_file`` began."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._lanes: dict[str, int] = {}

    def span(self, lane: str, name: str, begin: float, end: float, **facts: Any) -> None:
        self._write(lane, {"ph": "X", "name": name, "ts": 1e6 * begin, "dur": 1e6 * (end - begin), "args": facts})

    def mark(self, lane: str, name: str, at: float, **facts: Any) -> None:
        self._write(lane, {"ph": "i", "s": "t", "name": name, "ts": 1e6 * at, "args": facts})

    def _write(self, lane: str, event: dict[str, Any]) -> None:
        number = self._lanes.get(lane)
        if number is None:
            number = self._lanes[lane] = len(self._lanes)
            self._write(lane, {"ph": "M", "name": "thread_name", "args": {"name": lane}})
            if number == 0:
                self._write(lane, {"ph": "M", "name": "process_name", "args": {"name": lane}})
        os.write(self._file, json.dumps({"pid": os.getpid(), "tid": number, **event}).encode() + b",\n")


def start_file(path: Path) -> None:
    """Begin a trace; viewers accept it without its closing bracket."""
    # It tells when who asked for how much: its user's alone.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write("[\n")
