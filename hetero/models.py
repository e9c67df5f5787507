"""What a user may name as a model."""

from __future__ import annotations

from pathlib import Path

from hetero.data import PAIR
from hetero.errors import ModelError
from hetero.workers.models.model import Model, read_model
from hetero.workers.models.probe import check_readable


def find_model(asked: str, role: str, of: Model | None = None) -> Model:
    """The model a user named. ``role``: "target" or "drafter"; ``of``: a drafter's target, whose head it may be.
    Raises ModelError, with no weights loaded."""
    if asked == "builtin":
        return read_model(PAIR / f"{role}.gguf", "builtin")
    path = Path(asked).expanduser()
    if not path.exists():
        raise ModelError(
            f"{role} model {asked}: no such file or directory; name a GGUF file, a transformers directory or 'builtin'"
        )
    if not (path.is_dir() or path.is_file()):
        raise ModelError(f"{role} model {asked}: neither a file nor a directory")
    check_readable(path)
    return read_model(path, of=of)
