"""Settings of a role that hang on its engine."""

from __future__ import annotations

from hetero.config import Config
from hetero.errors import ConfigError
from hetero.placement.device import Device
from hetero.placement.memory import F16, KvCache
from hetero.workers.engines.registry import ENGINES, EngineEntry, find_engine
from hetero.workers.models.model import Model

_EXACT_MOST = 7  # exact mode checks 8 rows a forward


def kv_cache_of(config: Config, role: str, model: Model, engine: EngineEntry) -> KvCache:
    """How a role's cache keeps its numbers. A drafter's is its own affair where its engine knows no other way. Raises
    ConfigError."""
    asked, head = config.kv_cache, model.metadata.head
    fits = asked == F16 or head % engine.kv_scale == 0
    if asked in engine.kv_caches and fits:
        return asked
    if role == "target" and not fits:
        raise ConfigError(f"kv_cache: {engine.name} keeps {asked} for {engine.kv_scale} numbers each, and heads of "
                          f"{model.name} have {head}: take --kv-cache f16")  # fmt: skip
    if role == "target":
        able = ", ".join(entry.name for entry in ENGINES.values() if asked in entry.kv_caches)
        raise ConfigError(f"kv_cache: {engine.name} cannot keep {asked}: take one of {able}, or --kv-cache f16")
    return F16


def gpu_layers_of(config: Config, role: str, target: Model, engine: EngineEntry, device: Device) -> int:
    """How many layers of a role are on its GPU; -1: all, or it has none. Raises ConfigError."""
    asked = config.gpu_layers
    if role != "target" or asked < 0 or asked >= target.shape.layers:
        return -1
    if device.is_cpu or not engine.splits:
        why = f"{engine.name} cannot split a model" if not device.is_cpu else f"the target is on {device}"
        raise ConfigError(f"gpu_layers: {why}: take --target-engine llama_cpp and a GPU as --target-device")
    return asked


def gamma_of(config: Config) -> int:
    """Most draft tokens of a window. An engine whose rows are exact at any width needs none of a fixed one."""
    asked = find_engine(config.target_engine, "target_engine") if config.target_engine else None
    padded = config.exact and not (asked is not None and asked.always_exact)
    return min(config.gamma, _EXACT_MOST) if padded else config.gamma
