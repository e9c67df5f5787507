"""Which engine a model on the CPU gets where nobody named one: the one that is the fastest there, as measured once.

All that take part use the file's own weights, so that they are alike in quality (``hetero bench engines`` shows it).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from hetero import __version__
from hetero.placement.device import Device
from hetero.placement.memory import KvCache
from hetero.planning.keeping import alone, keep, library_version, model_facts, processor
from hetero.planning.trials import NotThisModel, tried
from hetero.workers.engines.registry import ENGINES, EngineEntry, default_engine
from hetero.workers.models.cache import cache_root
from hetero.workers.models.model import Model
from hetero.workers.runtime.spec import WorkerSpec
from hetero.workers.runtime.trial import Request

_WIDTHS = [1, 4, 8]
_ROOM = 1.3  # a model is only tried where so many times its weights fit

Times = dict[str, float]


class Fastest:
    """``say`` is told what takes its time, and what was found; ``free``: bytes of memory. ``measure``: whether to try
    engines on a model that none was measured on, or to take the first that runs."""

    def __init__(
        self, free: int, weights: str, kv_cache: KvCache, say: Callable[[str], None], measure: bool = True
    ) -> None:
        self._free, self._weights, self._kv_cache, self._say, self._measure = free, weights, kv_cache, say, measure
        self._chosen: dict[
            tuple[Path, int, int, tuple[int, ...]], EngineEntry
        ] = {}  # a plan is made anew as machines come and go

    def __call__(self, model: Model, device: Device, rows: int, states: Sequence[int] = ()) -> EngineEntry:
        """The engine that is quickest to check ``rows`` rows of a model on some cores of this machine, of those that
        hand out these hidden ``states``."""
        key = model.path, len(device.indices), rows, tuple(states)
        if key not in self._chosen:
            self._chosen[key] = self._choose(model, device, rows, states)
        return self._chosen[key]

    def _choose(self, model: Model, device: Device, rows: int, states: Sequence[int]) -> EngineEntry:
        form = model.form
        able = [
            entry
            for entry in ENGINES.values()
            if form in entry.formats
            and entry.hands_out(model.metadata, states)
            and self._kv_cache in entry.kv_caches
            and entry.objection(device.kind, here=True) is None
            and entry.weight_bytes(model.shape, "float32") * _ROOM <= self._free
        ]
        times = self._times(model, device, able) if len(able) > 1 else {}
        if not times:
            return able[0] if len(able) == 1 else default_engine(form, device.kind, model.metadata, states)
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
        with alone(file.parent):  # two that begin at once would time each other
            if kept := _kept(file):
                return kept
            self._say(f"measuring which engine is the fastest for {model.name} on {device} (once)")
            tried = {entry.name: self._tried(entry, model, device) for entry in able}
            found = {name: times for name, times in tried.items() if times}
            if found and None not in tried.values():  # who died may not have had the memory today
                keep(file, json.dumps(found).encode())
            return found

    def _key(self, model: Model, device: Device, able: list[EngineEntry]) -> str:
        engines = [(entry.name, library_version(entry.package)) for entry in able]
        how = [self._weights, self._kv_cache, processor()]
        what = [__version__, model_facts(model.path), device.indices, engines, *how]
        return hashlib.blake2b(json.dumps(what).encode(), digest_size=12).hexdigest()

    def _tried(self, entry: EngineEntry, model: Model, device: Device) -> Times | None:
        """{}: the engine does not run this model; None: it came to no end."""
        spec = WorkerSpec(
            "target", str(model.path.resolve()), entry.name, "off", 0, cores=list(device.indices), sequences=1,
            context=512, weights=self._weights, kv_cache=self._kv_cache,
        )  # fmt: skip
        try:
            found = tried(Request(spec, _WIDTHS, thorough=False))
        except NotThisModel:
            return {}
        return {str(rows): seconds for rows, seconds in found.forward.items()} if found is not None else None


def _kept(file: Path) -> dict[str, Times]:
    with suppress(OSError, ValueError):
        found = json.loads(file.read_text())
        if isinstance(found, dict) and all(name in ENGINES and _are_times(times) for name, times in found.items()):
            return found
    return {}


def _are_times(found: object) -> bool:
    return isinstance(found, dict) and "1" in found and all(isinstance(t, float) and t > 0 for t in found.values())
