"""A transformers directory: safetensors and a config, and never code from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hetero.workers.errors import ModelError


def check_directory(path: Path) -> dict[str, Any]:
    """The config of a transformers directory. Raises ModelError unless it is safetensors without code."""
    config_file = path / "config.json"
    if not config_file.is_file():
        raise ModelError(f"{path}: no config.json; a model is a GGUF file or a transformers directory")
    try:
        config = json.loads(config_file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{config_file}: not readable as JSON ({error})") from error
    if not isinstance(config, dict) or "auto_map" in config:
        raise ModelError(f"{config_file}: the model brings its own code (auto_map), which hetero never runs")
    if not list(path.glob("*.safetensors")):
        raise ModelError(f"{path}: no *.safetensors file; other weight formats are not loaded, convert it first")
    return config
