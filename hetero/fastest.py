"""Which engine a model on the CPU gets where nobody named one: the one that is the fastest there, as measured once.

All that take part use the file's own weights, so that they are alike in quality (``hetero bench engines`` shows it).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hetero import __version__
from hetero.placement.device import Device
from hetero.workers.engines.registry import ENGINES, GGUF, SAFETENSORS, EngineEntry, default_engine
from hetero.workers.models.cache import cache_root
from hetero.workers.models.gguf_header import parts
from hetero.workers.models.model import Model

_SECONDS = 900  # an engine may take to load and try itself
_MOST_KEPT = 200  # verdicts
_ROOM = 1.3  # a model is only tried where so many times its weights fit

Times = dict[str, float]


class Fastest:
    """``say`` is told what takes its time, and what was found; ``free``: bytes of memory."""

    def __init__(self, free: int, weights: str, say: Callable[[str], None]) -> None:
        self._free, self._weights, self._say = free, weights, say

    def __call__(self, model: Model, device: Device, rows: int) -> EngineEntry:
        """The engine that is quickest to check ``rows`` rows of a model on some cores of this machine."""
        form = GGUF if model.is_gguf else SAFETENSORS
        first = default_engine(form, device.kind)
        able = [e for e in ENGINES.values() if form in e.formats and e.objection(device.kind, here=True) is None]
        if len(able) < 2 or model.shape.weights * _ROOM > self._free:
            return first
        times = self._times(model, device, able)
        if not times:
            return first
        width = str(min((int(n) for found in times.values() for n in found), key=lambda n: abs(n - rows)))
        ranked = sorted(times, key=lambda name: times[name][width])
        told = ", ".join(
            f"{name} {1e3 * times[name]['1']:.1f} and {1e3 * times[name][width]:.1f} ms" for name in ranked
        )
        self._say(f"{ranked[0]} runs {model.name} on {device}: the fastest there for 1 and {width} rows ({told})")
        return ENGINES[ranked[0]]

    def _times(self, model: Model, device: Device, able: list[EngineEntry]) -> dict[str, Times]:
        """Seconds by engine and rows, from the cache or measured now."""
        file = cache_root() / "engines" / f"{self._key(model, device, able)}.json"
        with suppress(OSError, ValueError):
            kept = json.loads(file.read_text())
            if isinstance(kept, dict) and all(_are_times(found) for found in kept.values()):
                return kept
        self._say(f"measuring which engine is the fastest for {model.name} on {device} (once)")
        found = {}
        for entry in able:
            times = self._tried(entry, model, device)
            if times is not None:
                found[entry.name] = times
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            for old in sorted(file.parent.glob("*.json"), key=lambda each: each.stat().st_mtime)[:-_MOST_KEPT]:
                old.unlink()
            aside = file.with_suffix(f".{os.getpid()}")
            aside.write_text(json.dumps(found))
            aside.replace(file)
        return found

    def _key(self, model: Model, device: Device, able: list[EngineEntry]) -> str:
        files = sorted(model.path.glob("*.safetensors")) if model.path.is_dir() else parts(model.path)
        facts = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        what = [__version__, facts, len(device.indices), [e.name for e in able], self._weights, _processor()]
        return hashlib.blake2b(json.dumps(what).encode(), digest_size=12).hexdigest()

    def _tried(self, entry: EngineEntry, model: Model, device: Device) -> Times | None:
        """None: the engine does not run this model, or died of it."""
        asked = [entry.name, str(model.path.resolve()), json.dumps(list(device.indices)), self._weights]
        command = [sys.executable, "-P", "-m", "hetero.workers.runtime.trial", *asked]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS)
            found = json.loads(done.stdout.strip().rpartition("\n")[2]) if done.returncode == 0 else None
        except (subprocess.TimeoutExpired, ValueError):
            return None
        return found if _are_times(found) else None


def _are_times(found: object) -> bool:
    return isinstance(found, dict) and "1" in found and all(isinstance(t, float) and t > 0 for t in found.values())


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "CPU part")):
                return line
    return os.uname().machine
