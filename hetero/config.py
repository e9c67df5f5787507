"""Every setting once: its name is a flag, a HETERO_* variable and a key of the YAML file (in that order of rank)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta

from hetero.errors import ConfigError


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of ``hetero serve`` and ``hetero generate``. Descriptions are the flags' help."""

    target: Annotated[
        str, Meta(description="Target model: a GGUF file, a transformers directory (safetensors) or 'builtin'.")
    ] = "builtin"
    draft: Annotated[
        str, Meta(description="Drafter model, likewise, or 'none'. Default: 'builtin' for the built-in target.")
    ] = ""
    target_device: Annotated[
        str, Meta(description="Where the target runs: cpu, cpu:0-3, cuda:0, node/cpu:0. Default: by the machine.")
    ] = ""
    draft_device: Annotated[str, Meta(description="Where the drafter runs, likewise.")] = ""
    target_engine: Annotated[
        str, Meta(description="llama_cpp or torch. Default: llama_cpp for GGUF, torch for safetensors.")
    ] = ""
    draft_engine: Annotated[str, Meta(description="The drafter's engine, likewise.")] = ""
    strategy: Annotated[
        str, Meta(description="off, serial, pearl, mirror or ahead. Default: ahead with a drafter, off without.")
    ] = ""
    gamma: Annotated[
        int,
        Meta(
            ge=0,
            le=63,
            description="Most draft tokens checked in one target forward. 0: as measured speeds have it (4 for serial "
            "and mirror, which do not measure).",
        ),
    ] = 0
    exact: Annotated[
        bool, Meta(description="Bit-equal output with and without a drafter, at one fixed forward width.")
    ] = False
    parallel: Annotated[int, Meta(ge=1, le=64, description="Sequences decoded at once; more wait.")] = 4
    context: Annotated[
        int,
        Meta(ge=0, le=1 << 20, description="Tokens of prompt and output a sequence may have (0: the model's)."),
    ] = 0
    trace: Annotated[str, Meta(description="File for a trace of all forwards, for ui.perfetto.dev.")] = ""
    alias: Annotated[str, Meta(description="The model's name in the API. Default: the file's name.")] = ""
    host: Annotated[str, Meta(description="Address the HTTP server listens on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port the HTTP server listens on (0: any free one).")] = 8000
    address: Annotated[
        str, Meta(description="Ray cluster: local (start one), auto (the running one) or HOST:PORT.")
    ] = "local"
    drain: Annotated[float, Meta(ge=0, le=3600, description="Seconds running requests get to finish at a stop.")] = 30.0


def make_config(values: dict[str, Any], where: str = "") -> Config:
    """A checked Config. Raises ConfigError naming the key."""
    known = Config.__struct_fields__
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}unknown key {key!r}: keys are {', '.join(known)}")
    try:
        return msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        raise ConfigError(f"{where}{path.rstrip('`') or 'settings'}: {what}") from None


def read_file(path: Path) -> dict[str, Any]:
    """The settings of a YAML file, checked. Raises ConfigError."""
    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path}: not YAML ({str(error).splitlines()[0]})") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"config file {path}: expected 'key: value' lines")
    make_config(found, f"config file {path}: ")
    return found
