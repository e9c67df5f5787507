"""``hetero cache``: what hetero keeps on disk, how much of it, and away with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hetero.errors import ConfigError
from hetero.workers.models.cache import cache_root, disk_error

WHAT = {
    "models": "models that came from other machines",
    "digests": "checksums of models that were lent to other machines",
    "profiles": "what models cost on this machine's devices, as measured",
    "drafters": "drafters that were put together with what their targets have",
    "engines": "which engine is the fastest for a model, as measured",
    "bench": "inflated models of benchmarks",
    "octet": "models that were converted once: not read any more",
}


@dataclass(frozen=True)
class Room:
    """A folder of the cache. ``size`` in bytes."""

    name: str
    what: str
    files: int
    size: int


def rooms() -> Iterator[Room]:
    """Those that hold something."""
    root = cache_root()
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if not folder.is_dir():
            continue
        sizes = [file.lstat().st_size for file in folder.rglob("*") if file.is_file()]
        if sizes:
            yield Room(folder.name, WHAT.get(folder.name, "unknown"), len(sizes), sum(sizes))


def clear(name: str) -> None:
    """Delete a room, or all of them ("all"). Raises ConfigError for another name, ModelError where that is refused."""
    if name not in (*WHAT, "all"):
        raise ConfigError(f"clear: {name!r} is none of {', '.join(WHAT)}, all")
    for each in WHAT if name == "all" else [name]:
        folder: Path = cache_root() / each
        try:
            if folder.is_dir():
                shutil.rmtree(folder)
        except OSError as error:
            raise disk_error(folder, error) from None
