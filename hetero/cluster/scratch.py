"""A folder for Ray's sockets and logs: short, for a socket's path holds 107 bytes; gone with us, or with the next start
where we were killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

import psutil

from hetero.errors import ClusterError

_PREFIX = "hetero-"
# TMPDIR may be long, and is asked last.
_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
_RAY = "r"
_LONGEST = 40  # bytes of the folder's path: Ray adds some 65


class Scratch:
    """Made on construction; ``remove`` it. Raises ClusterError where no folder can be had. ``ray``: for Ray, which
    opens what it is given to everybody, inside of what it cannot."""

    def __init__(self) -> None:
        place = next((place for place in _places() if _usable(place)), None)
        if place is None:
            raise ClusterError("no folder for temporary files can be written to: set TMPDIR to a short one that can")
        sweep(place)
        aside = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=place))  # a sweep does not see it before it is locked
        self._lock = os.open(aside / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # as long as this process lives
        self.path = aside.rename(aside.with_name(aside.name[1:]))
        self.ray = self.path / _RAY

    def remove(self) -> None:
        """Safe to call twice."""
        if self._lock >= 0:
            _end_users(self.path)
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def ray_folders() -> list[Path]:
    """Where Ray that this user's hetero started keeps its files, the newest first."""
    return [folder / _RAY for folder in left_folders()]


def left_folders(place: str | None = None) -> list[Path]:
    """Those of this user that are there, in one place or in all, the newest first."""
    found = []
    for where in [place] if place is not None else _places():
        for folder in Path(where).glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                facts = folder.lstat()
                if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid():
                    found.append((facts.st_mtime, folder))
    return [folder for _, folder in sorted(found, reverse=True)]


def sweep(place: str) -> None:
    """Remove what processes of ours left that were killed."""
    for left in left_folders(place):
        try:
            lock = os.open(left / "lock", os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # not one of these, or gone by now
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _end_users(left)
            shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:  # its owner lives
            pass
        finally:
            os.close(lock)


def users_of(folder: Path) -> list[psutil.Process]:
    """The processes that were started to work in this folder, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            line = " ".join(process.cmdline())
            # Ray's own helpers write over their command line.
            if str(folder) in line or (line.startswith("ray::") and _writes_to(process, folder)):
                found.append(process)
    return found


def _writes_to(process: psutil.Process, folder: Path) -> bool:
    return any(Path(file.path).is_relative_to(folder) for file in process.open_files())


def _end_users(folder: Path) -> None:
    users = users_of(folder)
    for process in users:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(users, 3.0)  # their ports are free then


def _places() -> list[str]:
    return list(dict.fromkeys([*_PLACES, tempfile.gettempdir()]))


def _usable(place: str) -> bool:
    return len(place) <= _LONGEST and os.access(place, os.W_OK | os.X_OK)
