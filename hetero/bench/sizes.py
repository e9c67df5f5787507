"""The models benchmarks run on: the built-in pair, inflated to real costs, made once and kept in the cache."""

from __future__ import annotations

from pathlib import Path

from hetero.data import PAIR
from hetero.workers.models.cache import cache_root
from hetero.workers.models.inflate import Size, inflate

SIZES = {
    "9M": ("target", None),
    "240M": ("target", Size(1024, 20, 3072)),
    "1B": ("target", Size(4096, 13, 2048)),
    "draft-1M": ("drafter", None),
    "draft-50M": ("drafter", Size(512, 16, 1536)),
}


def sized(size: str, kind: str) -> Path:
    """The GGUF file of a size (a key of SIZES) and weight type, inflating it at the first call."""
    role, shape = SIZES[size]
    if shape is None:
        return PAIR / f"{role}.gguf"
    path = cache_root() / "bench" / f"{size}-{kind}.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        inflate(PAIR / f"{role}.gguf", aside, shape, kind)
        aside.rename(path)
    return path
