"""A checkpoint's own next-token layers (MTP): whether a GGUF file has them, and a file of them alone.

They are a file's last layers; with the embedding and the output they are all that drafting with them reads, so that
the drafter's device holds some hundredth of the target.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf

from hetero.workers.errors import ModelError
from hetero.workers.models.cache import cache_root, made_aside
from hetero.workers.models.gguf_header import parts, read_header, read_tensors
from hetero.workers.models.gguf_writing import as_it_is, write_gguf

# Architectures whose next-token layers the pinned llama.cpp runs over a plain cache of keys and values, with the states
# of all rows (of mimo2 and step35 it has those of rows with logits only).
FAMILIES = frozenset(
    {
        "bailingmoe3", "cohere2moe", "deepseek2", "glm4moe", "hy_v3", "nemotron_h_moe", "qwen35", "qwen35moe",
        "qwen3next",
    }
)  # fmt: skip
_SPLIT = ("split.no", "split.count", "split.tensors.count")


def next_layers(path: Path) -> int:
    """How many a GGUF file tells of. Raises ModelError."""
    header = read_header(path)
    told = header.get(f"{header.get('general.architecture')}.nextn_predict_layers", 0)
    layers = header.get(f"{header.get('general.architecture')}.block_count", 0)
    return told if type(told) is int and type(layers) is int and 0 < told <= layers else 0


def stand_alone(path: Path) -> bool:
    """Whether a file has next-token layers, and none of the model that they are of. Raises ModelError."""
    return next_layers(path) > 0 and not any(name.startswith("blk.0.") for name in read_tensors(path))


def cut_out(path: Path) -> Path:
    """A file of a model's next-token layers alone, made at the first call and kept in the cache. Raises ModelError for
    one that has none, or that are not run, or where the disk refuses."""
    if not path.is_file():
        raise ModelError(f"{path}: next-token layers are taken of GGUF files")
    header, count = read_header(path), next_layers(path)
    family = str(header.get("general.architecture"))
    first = int(header.get(f"{family}.block_count", 0)) - count
    if not count or not any(name.startswith(f"blk.{first}.") for name in read_tensors(path)):
        raise ModelError(f"{path}: it has no next-token layers (MTP): name another --draft")
    if family not in FAMILIES:
        raise ModelError(f"{path}: next-token layers of {family} are not run here ({', '.join(sorted(FAMILIES))} are)")
    files = parts(path)
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()
    folder = cache_root() / "drafters" / f"{path.stem}-mtp-{digest}"
    made = folder / f"{path.stem}-mtp.gguf"
    if not made.is_file():
        with made_aside(folder) as aside:
            _cut(files, first, aside / made.name)
    return made


def _cut(files: list[Path], first: int, out: Path) -> None:
    readers = [gguf.GGUFReader(file) for file in files]
    tensors = [as_it_is(tensor, None) for reader in readers for tensor in reader.tensors if _stays(tensor.name, first)]
    write_gguf(out, readers[0], dict.fromkeys(_SPLIT), "", tensors)


def _stays(name: str, first: int) -> bool:
    layer = name.removeprefix("blk.").partition(".")[0]
    return not name.startswith("blk.") or (layer.isdigit() and int(layer) >= first)
