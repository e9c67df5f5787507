"""Models that come from another machine: fetched once, told by their content, kept against a limit."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hetero.workers.errors import ModelError, WireError
from hetero.workers.models.cache import cache_root, disk_error
from hetero.workers.models.gguf_header import parts
from hetero.workers.wire.sockets import Keys
from hetero.workers.wire.transfer import FileFact, Manifest, Origin, fetch

# What a transformers directory needs; code is no part of it.
_SUFFIXES = {".safetensors", ".json", ".model", ".txt", ".jinja"}
_LIMIT = 64.0  # GiB of fetched models a machine keeps, unless $HETERO_MODEL_CACHE says otherwise
_SPARE = 1 << 30  # bytes of the disk that are left to others


def files_of(path: Path) -> list[Path]:
    """The files of a model, in its manifest's order: a GGUF file with its splits, or a transformers directory's."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    return parts(path)


def manifest_of(path: Path) -> Manifest:
    """What a model on this disk consists of. Reads it all, once. Raises OSError."""
    facts = [FileFact(file.name, file.stat().st_size, _digest(file)) for file in files_of(path)]
    return Manifest(facts, path.is_dir())


def name_of(manifest: Manifest) -> str:
    """A name for just this content."""
    facts = [(fact.name, fact.size, fact.digest) for fact in manifest.files]
    return hashlib.sha256(json.dumps([facts, manifest.directory]).encode()).hexdigest()[:32]


def model_here(path: Path, origin: Origin, keys: Keys, told: Callable[[int], None] = lambda done: None) -> Path:
    """Where the model lies on this machine: at its own ``path`` if the same is there, else in the cache, fetched if
    need be. ``told`` hears the bytes that came. Raises ModelError."""
    if _same(path, origin.manifest):
        return path
    folder = cache_root() / "models" / name_of(origin.manifest)
    try:
        if not folder.is_dir():
            _fetch(origin, keys, folder, told)
        os.utime(folder)  # used last now
    except WireError as error:
        raise ModelError(f"model {path.name} could not be fetched: {error}") from None
    except OSError as error:
        raise disk_error(folder.parent, error) from error
    return folder if origin.manifest.directory else folder / origin.manifest.files[0].name


def _fetch(origin: Origin, keys: Keys, folder: Path, told: Callable[[int], None]) -> None:
    part = folder.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    with _locked(part):
        if folder.is_dir():  # another worker was quicker
            return
        _make_room(folder.parent, part, origin.manifest)
        fetch(origin, keys, part, told)
        for fact in origin.manifest.files:
            if _hash(part / fact.name) != fact.digest:
                (part / fact.name).unlink()
                raise WireError(f"{fact.name} came damaged; the next try fetches it anew")
        (part / "lock").unlink()
        part.rename(folder)


def _make_room(room: Path, part: Path, manifest: Manifest) -> None:
    """Drop what was used longest ago until a model fits the limit and the disk. Raises ModelError if it cannot."""
    given = os.environ.get("HETERO_MODEL_CACHE", str(_LIMIT))
    try:
        limit = int(float(given) * 2**30)
    except ValueError:
        raise ModelError(f"HETERO_MODEL_CACHE: {given!r} is not a number of GiB") from None
    if manifest.size > limit:
        raise ModelError(
            f"the model's {manifest.size / 2**30:.1f} GiB are more than this machine keeps of fetched models "
            f"({limit / 2**30:g} GiB): set HETERO_MODEL_CACHE there to more"
        )
    others = [folder for folder in room.iterdir() if folder.is_dir() and folder.suffix != part.suffix]
    others.sort(key=lambda folder: folder.stat().st_mtime)
    kept = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in others}
    missing = manifest.size - sum(file.stat().st_size for file in part.iterdir())
    if missing + _SPARE > shutil.disk_usage(room).free + sum(kept.values()):
        kept = {}  # nothing that could go would be enough
    while kept and (sum(kept.values()) + manifest.size > limit or shutil.disk_usage(room).free < missing + _SPARE):
        oldest = next(iter(kept))
        shutil.rmtree(oldest, ignore_errors=True)
        del kept[oldest]
    free = shutil.disk_usage(room).free
    if free < missing + _SPARE:
        raise ModelError(
            f"cache {room}: the model's {missing / 2**30:.1f} GiB do not fit its disk ({free / 2**30:.1f} GiB free): "
            "make room, or set HETERO_CACHE to a folder on another disk"
        )


def _same(path: Path, manifest: Manifest) -> bool:
    try:
        files = files_of(path) if path.exists() else []
        facts = {fact.name: fact for fact in manifest.files}
        if {file.name for file in files} != set(facts) or path.is_dir() != manifest.directory:
            return False
        same_size = all(file.stat().st_size == facts[file.name].size for file in files)
        return same_size and all(_digest(file) == facts[file.name].digest for file in files)
    except OSError:  # of no use here
        return False


def _digest(file: Path) -> str:
    """SHA-256 of a file, kept in the cache while the file stays as it is."""
    facts = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()
    known = cache_root() / "digests" / key
    try:
        return known.read_text()
    except OSError:
        pass
    found = _hash(file)
    try:
        known.parent.mkdir(parents=True, exist_ok=True)
        aside = known.with_suffix(f".{os.getpid()}")
        aside.write_text(found)
        aside.rename(known)
    except OSError:  # it is only counted again next time
        pass
    return found


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone, of all processes of this machine."""
    file = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
