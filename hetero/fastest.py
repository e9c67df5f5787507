"""Which engine a model on the CPU gets where nobody named one: the one that is the fastest there, as measured once.

All that take part use the file's own weights, so that they are alike in quality (``hetero bench engines`` shows it).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from hetero import __version__
from hetero.placement.device import Device
from hetero.workers.engines.registry import ENGINES, GGUF, SAFETENSORS, EngineEntry, default_engine
from hetero.workers.models.cache import cache_root
from hetero.workers.models.gguf_header import parts
from hetero.workers.models.model import Model
from hetero.workers.runtime.trial import NOT_THIS_MODEL

_SECONDS = 900  # an engine may take to load and try itself
_MOST_KEPT = 200  # verdicts
_ROOM = 1.3  # a model is only tried where so many times its weights fit

Times = dict[str, float]


class Fastest:
    """``say`` is told what takes its time, and what was found; ``free``: bytes of memory. ``measure``: whether to try
    engines on a model that none was measured on, or to take the first that runs."""

    def __init__(
        self, free: int, weights: str, kv_cache: str, say: Callable[[str], None], measure: bool = True
    ) -> None:
        self._free, self._weights, self._kv_cache, self._say, self._measure = free, weights, kv_cache, say, measure
        self._chosen: dict[tuple[Path, int, int], EngineEntry] = {}  # a plan is made anew as machines come and go

    def __call__(self, model: Model, device: Device, rows: int) -> EngineEntry:
        """The engine that is quickest to check ``rows`` rows of a model on some cores of this machine."""
        key = model.path, len(device.indices), rows
        if key not in self._chosen:
            self._chosen[key] = self._choose(model, device, rows)
        return self._chosen[key]

    def _choose(self, model: Model, device: Device, rows: int) -> EngineEntry:
        form = GGUF if model.is_gguf else SAFETENSORS
        able = [
            entry
            for entry in ENGINES.values()
            if form in entry.formats
            and self._kv_cache in entry.kv_caches
            and entry.objection(device.kind, here=True) is None
            and entry.weight_bytes(model.shape, "float32") * _ROOM <= self._free
        ]
        times = self._times(model, device, able) if len(able) > 1 else {}
        if not times:
            return default_engine(form, device.kind)
        width = str(min((int(n) for found in times.values() for n in found), key=lambda n: abs(n - rows)))
        ranked = sorted(times, key=lambda name: times[name][width])
        told = ", ".join(f"{n} {1e3 * times[n]['1']:.1f} and {1e3 * times[n][width]:.1f} ms" for n in ranked)
        self._say(f"{ranked[0]} runs {model.name} on {device}: the fastest there for 1 and {width} rows ({told})")
        return ENGINES[ranked[0]]

    def _times(self, model: Model, device: Device, able: list[EngineEntry]) -> dict[str, Times]:
        """Seconds by engine and rows, from the cache or measured now."""
        file = cache_root() / "engines" / f"{self._key(model, device, able)}.json"
        if (kept := _kept(file)) or not self._measure:
            return kept
        with _alone(file.parent):  # two that begin at once would time each other
            if kept := _kept(file):
                return kept
            self._say(f"measuring which engine is the fastest for {model.name} on {device} (once)")
            tried = {entry.name: self._tried(entry, model, device) for entry in able}
            found = {name: times for name, times in tried.items() if times}
            if found and None not in tried.values():  # who died may not have had the memory today
                _keep(file, found)
            return found

    def _key(self, model: Model, device: Device, able: list[EngineEntry]) -> str:
        files = sorted(model.path.glob("*.safetensors")) if model.path.is_dir() else parts(model.path)
        facts = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        what = [__version__, facts, len(device.indices), [e.name for e in able], self._weights, _processor()]
        return hashlib.blake2b(json.dumps(what).encode(), digest_size=12).hexdigest()

    def _tried(self, entry: EngineEntry, model: Model, device: Device) -> Times | None:
        """{}: the engine does not run this model; None: it came to no end."""
        asked = [entry.name, str(model.path.resolve()), json.dumps(list(device.indices)), self._weights]
        command = [sys.executable, "-P", "-m", "hetero.workers.runtime.trial", *asked]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS)
            if done.returncode == NOT_THIS_MODEL:
                return {}
            found = json.loads(done.stdout.strip().rpartition("\n")[2]) if done.returncode == 0 else None
        except (subprocess.TimeoutExpired, OSError, ValueError):
            return None
        return found if _are_times(found) else None


def _kept(file: Path) -> dict[str, Times]:
    with suppress(OSError, ValueError):
        found = json.loads(file.read_text())
        if isinstance(found, dict) and all(name in ENGINES and _are_times(times) for name, times in found.items()):
            return found
    return {}


def _keep(file: Path, found: dict[str, Times]) -> None:
    with suppress(OSError):  # then it is measured again the next time
        for old in sorted(file.parent.glob("*.json"), key=lambda each: each.stat().st_mtime)[:-_MOST_KEPT]:
            old.unlink()
        aside = file.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(found))
        aside.replace(file)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Until others that measure here are done; where the folder cannot be written to, at once."""
    with ExitStack() as stack:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _are_times(found: object) -> bool:
    return isinstance(found, dict) and "1" in found and all(isinstance(t, float) and t > 0 for t in found.values())


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "CPU part")):
                return line
    return os.uname().machine
