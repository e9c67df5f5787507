"""The models benchmarks run on: the built-in pairs, inflated to real costs, made once and kept in the cache."""

from __future__ import annotations

from pathlib import Path

from hetero.models import SMOLLM2, TOY, builtin
from hetero.workers.models.cache import cache_root, made_aside
from hetero.workers.models.inflate import Size, inflate, inflate_head

SIZES = {
    "9M": (TOY, "target", None),
    "240M": (TOY, "target", Size(1024, 20, 3072)),
    "1B": (TOY, "target", Size(4096, 13, 2048)),
    "draft-1M": (TOY, "drafter", None),
    "draft-50M": (TOY, "drafter", Size(512, 16, 1536)),
    "smollm2": (SMOLLM2, "target", None),
    "smollm2-1B": (SMOLLM2, "target", Size(1728, 32, 4608)),
    "smollm2-draft": (SMOLLM2, "drafter", None),
}
PAIRS = {"smollm2": ("smollm2", "smollm2-draft"), "smollm2-1B": ("smollm2-1B", "smollm2-draft")}


def sized(size: str, kind: str) -> Path:
    """The GGUF file of a size (a key of SIZES) and weight type, inflating it at the first call."""
    asked, role, shape = SIZES[size]
    source = builtin(asked, role)
    if shape is None:
        return source
    path = cache_root() / "bench" / f"{size}-{kind}.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        inflate(source, aside, shape, kind)
        aside.rename(path)
    return path


def head_for(head: Path, size: str) -> Path:
    """A head of the model that a size is made of, as the inflated one needs it. Raises ModelError."""
    asked, role, shape = SIZES[size]
    if shape is None:
        return head
    stamp = (head / "model.safetensors").stat().st_mtime_ns
    out = cache_root() / "bench" / f"head-{size}-{head.parent.name}-{stamp}"
    if not out.is_dir():
        with made_aside(out) as aside:
            inflate_head(head, builtin(asked, role), shape.width, aside)
    return out
