"""Engines tried on models: each in a process of its own, which may die of it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from hetero.workers.runtime.trial import NOT_THIS_MODEL, Request, Trial

_SECONDS = 900  # an engine may take to load and try itself
_COMMAND = [sys.executable, "-P", "-m", "hetero.workers.runtime.trial"]


class NotThisModel(Exception):
    """The engine does not run this model."""


def tried(request: Request) -> Trial | None:
    """What came of a request; None: it came to no end. Raises NotThisModel."""
    try:
        asked = msgspec.json.encode(request).decode() + "\n"
        done = subprocess.run(_COMMAND, input=asked, capture_output=True, text=True, timeout=_SECONDS)
        if done.returncode == NOT_THIS_MODEL:
            raise NotThisModel(done.stdout.strip())
        return _read(done.stdout) if done.returncode == 0 else None
    except (subprocess.TimeoutExpired, OSError):
        return None


@contextmanager
def running(request: Request) -> Iterator[bool]:
    """While this lasts the request's engine makes forwards; whether it does."""
    asked = msgspec.structs.replace(request, beside=True, thorough=False, widths=[1], text=[])
    process = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None and process.stdout is not None
    try:
        with suppress(OSError):
            process.stdin.write(msgspec.json.encode(asked) + b"\n")
            process.stdin.flush()
        watch = threading.Timer(_SECONDS, process.kill)
        watch.start()
        begun = _read(process.stdout.readline().decode()) is not None  # it has tried itself, or died
        watch.cancel()
        yield begun
    finally:
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _read(output: str) -> Trial | None:
    with suppress(msgspec.DecodeError):
        return msgspec.json.decode(output.strip().rpartition("\n")[2], type=Trial)
    return None
