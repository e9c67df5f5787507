"""hetero's folder in the user's cache: things made or fetched once, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hetero.workers.errors import ModelError

_ASIDE = ".making-"
_STALE = 86400.0  # seconds after which a folder aside belongs to a process that was killed
_FULL = 64 << 20  # bytes: a disk with less left than this counts as full


def cache_root() -> Path:
    """$HETERO_CACHE, or hetero's folder in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HETERO_CACHE") or Path(home) / "hetero")


@contextmanager
def made_aside(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder``, which becomes it at the end: a crash, a full disk, or two processes at once never
    leave half of it. Raises ModelError where the disk is full or the cache cannot be written to."""
    aside = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=folder.parent))
        yield aside
        if not folder.is_dir():
            aside.rename(folder)
    except OSError as error:
        raise disk_error(folder.parent, error) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def disk_error(folder: Path, error: OSError) -> ModelError:
    """What to tell of a write below ``folder`` that failed."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    # numpy tells of a full disk without its number.
    why = f"its disk is full ({free / 2**20:.0f} MiB left)" if free < _FULL else error.strerror or str(error)
    return ModelError(f"cache {folder}: {why}: make room, or set HETERO_CACHE to a folder on another disk")


def _sweep(folder: Path) -> None:
    for left in folder.glob(f"{_ASIDE}*"):
        try:
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left, ignore_errors=True)
        except FileNotFoundError:  # another process was quicker
            continue
