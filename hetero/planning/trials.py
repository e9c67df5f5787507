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


class Partner:
    """The other role's engine, at work in a process of its own."""

    def __init__(self, request: Request) -> None:
        """``begun``: whether it works; it is over where it died or does not run its model."""
        self._process = _spawn(msgspec.structs.replace(request, partner=True, thorough=False, widths=[1], text=[]))
        with _watched(self._process):
            self.begun = _read(_line(self._process)) is not None

    def turn(self) -> None:
        """Have it make its forwards, where it works in turns."""
        with _watched(self._process):
            _say(self._process)
            _line(self._process)

    def close(self) -> None:
        _end(self._process)


def tried(request: Request, partner: Partner | None = None) -> Trial | None:
    """What came of a request; None: it came to no end. Raises NotThisModel."""
    process = _spawn(request)
    try:
        last = ""
        with _watched(process):
            while line := _line(process):
                if line.strip():
                    last = line
                elif request.company == "turns":  # else a library has its say
                    if partner is not None:
                        partner.turn()
                    _say(process)
            if process.wait() == NOT_THIS_MODEL:
                raise NotThisModel(last.strip())
        return _read(last) if process.returncode == 0 else None
    finally:
        _end(process)


@contextmanager
def running(request: Request) -> Iterator[Partner]:
    """While this lasts the request's engine makes forwards."""
    partner = Partner(request)
    try:
        yield partner
    finally:
        partner.close()


def _spawn(request: Request) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    _say(process, msgspec.json.encode(request).decode())
    return process


@contextmanager
def _watched(process: subprocess.Popen[str]) -> Iterator[None]:
    """It is killed if this takes too long."""
    watch = threading.Timer(_SECONDS, process.kill)
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def _say(process: subprocess.Popen[str], line: str = "") -> None:
    assert process.stdin is not None
    with suppress(OSError):  # it died: its next line is empty
        process.stdin.write(line + "\n")
        process.stdin.flush()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def _read(line: str) -> Trial | None:
    with suppress(msgspec.DecodeError):
        return msgspec.json.decode(line, type=Trial)
    return None
