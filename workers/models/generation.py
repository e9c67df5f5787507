"""How a model's makers want it sampled: generation_config.json of a directory, ``general.sampling.*`` of a GGUF
file."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hetero.workers.models.gguf_header import read_header
from hetero.workers.wire.messages import MAX_TOKENS

# Field -> its name in a directory, its name in a GGUF file, the least and the most it may be.
_NAMES: dict[str, tuple[str, str, float, float]] = {
    "temperature": ("temperature", "temp", 0.0, 100.0),
    "top_k": ("top_k", "top_k", 0, (1 << 31) - 1),
    "top_p": ("top_p", "top_p", 1e-9, 1.0),
    "min_p": ("min_p", "min_p", 0.0, 1.0),
    "repetition": ("repetition_penalty", "penalty_repeat", 0.01, 100.0),
    "repetition_last": ("", "penalty_last_n", 0, MAX_TOKENS),
}


@dataclass(frozen=True)
class SamplingDefaults:
    """What a request that says nothing of it gets. These are llama-server's, where a model says nothing, either."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition: float = 1.0
    repetition_last: int = 0


def sampling_defaults(path: Path) -> SamplingDefaults:
    """A model's own. Values that make no sense count as not said."""
    said: dict[str, Any] = {}
    if path.is_dir():
        if (config := path / "generation_config.json").is_file():
            found = json.loads(config.read_text())
            said = {field: found.get(name) for field, (name, *_) in _NAMES.items()} if isinstance(found, dict) else {}
    else:
        header = read_header(path)
        said = {field: header.get(f"general.sampling.{name}") for field, (_, name, *_) in _NAMES.items()}
    whole = {field.name for field in fields(SamplingDefaults) if field.type == "int"}
    own = {
        field: int(value) if field in whole else float(value)
        for field, value in said.items()
        if type(value) in (int, float) and _NAMES[field][2] <= value <= _NAMES[field][3]
    }
    if said.get("repetition_last") == 0:  # in a GGUF file: no penalty; here 0 is all there is
        own["repetition"] = 1.0
    return replace(SamplingDefaults(), **own)  # type: ignore[arg-type]
