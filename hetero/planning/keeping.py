"""What was measured once is kept in the cache: bounded, whole or not at all, by one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hetero.workers.models.gguf_header import parts

_MOST_KEPT = 200  # files of a room


def keep(file: Path, what: bytes) -> None:
    """Write a file; where it cannot be written, it is measured again the next time."""
    with suppress(OSError):
        drop_old(file.parent, "*.json", _MOST_KEPT)
        aside = file.with_suffix(f".{os.getpid()}")
        aside.write_bytes(what)
        aside.replace(file)


def drop_old(folder: Path, pattern: str, most: int) -> None:
    """Delete the oldest files of a kind, beyond so many."""
    with suppress(OSError):
        for old in sorted(folder.glob(pattern), key=lambda each: each.stat().st_mtime)[:-most]:
            old.unlink()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Until others that measure here are done; where the folder cannot be written to, at once."""
    with ExitStack() as stack:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def model_facts(path: Path) -> list[tuple[str, int, int]]:
    """What tells a model's files from others."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else parts(path)
    return [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def library_version(package: str) -> str:
    """Of what is imported by a name, "" where nothing is."""
    with suppress(PackageNotFoundError):
        return version(package.replace("_cpp", "-cpp-python").replace("_", "-")) if package else ""
    return ""


def processor() -> str:
    """Which one this machine has."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "CPU part")):
                return line
    return os.uname().machine
