"""A folder for Ray's sockets and logs: short, for a socket's path holds 107 bytes; gone with us, or with the next start
where we were killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from hetero.errors import ClusterError

_PREFIX = "hetero-"
# TMPDIR may be long, and is asked last.
_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
_LONGEST = 40  # bytes of the folder's path: Ray adds some 65


class Scratch:
    """Made on construction; ``remove`` it. Raises ClusterError where no folder can be had."""

    def __init__(self) -> None:
        place = next((place for place in _places() if _usable(place)), None)
        if place is None:
            raise ClusterError("no folder for temporary files can be written to: set TMPDIR to a short one that can")
        sweep(place)
        aside = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=place))  # a sweep does not see it before it is locked
        self._lock = os.open(aside / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # as long as this process lives
        self.path = aside.rename(aside.with_name(aside.name[1:]))

    def remove(self) -> None:
        """Safe to call twice."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def sweep(place: str) -> None:
    """Remove what processes of ours left that were killed."""
    for left in Path(place).glob(f"{_PREFIX}*"):
        try:
            if left.is_symlink() or left.stat().st_uid != os.getuid():
                continue
            lock = os.open(left / "lock", os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # not one of these, or gone by now
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:  # its owner lives
            pass
        finally:
            os.close(lock)


def _places() -> list[str]:
    return [*_PLACES, tempfile.gettempdir()]


def _usable(place: str) -> bool:
    return len(place) <= _LONGEST and os.access(place, os.W_OK | os.X_OK)
