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
from hetero.workers.models.metadata import read_metadata

# Architectures whose next-token layer the pinned llama.cpp runs with the states of all rows handed out (of mimo2,
# qwen3next and step35 it has those of rows with logits only, and ends the process where others are asked for).
FAMILIES = frozenset(
    {"bailingmoe3", "cohere2moe", "deepseek2", "glm4moe", "hy_v3", "nemotron_h_moe", "qwen35", "qwen35moe"}
)
_NEEDED = ("eh_proj", "enorm", "hnorm")  # its graphs end the process without them
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


def why_not(path: Path) -> str | None:
    """Why the next-token layers of a GGUF file do not draft; None: they do. Raises ModelError."""
    header, count = read_header(path), next_layers(path)
    family = header.get("general.architecture")
    if not count:
        return "it has no next-token layers (MTP)"
    if family not in FAMILIES:
        return f"next-token layers of {family!s:.40} are not run here ({', '.join(sorted(FAMILIES))} are)"
    first = header[f"{family}.block_count"] - count
    if count > 1 or first < 1:
        return f"it has {count} next-token layers behind {first} others: one is run here, behind some"
    names = {f"blk.{first}.nextn.{name}.weight" for name in _NEEDED}
    if not names <= read_tensors(path).keys():
        return "its next-token layer (MTP) was left out of the file, or a part of it"
    width = header.get(f"{family}.embedding_length")
    if header.get(f"{family}.embedding_length_out", width) != width:
        return "its states are not as wide as its embedding"
    return None


def cut_out(path: Path) -> Path:
    """A file of a model's next-token layers alone, made at the first call and kept in the cache. Raises ModelError for
    one that has none, or that are not run, or where the disk refuses."""
    if not path.is_file():
        raise ModelError(f"{path}: next-token layers are taken of GGUF files")
    if (reason := why_not(path)) is not None:
        raise ModelError(f"{path}: {reason}: name another --draft")
    files, first = parts(path), read_metadata(path).layers
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()
    folder = cache_root() / "drafters" / f"{path.stem}-mtp-{digest}"
    made = folder / f"{path.stem}-mtp.gguf"
    if not made.is_file():
        with made_aside(folder) as aside:
            try:
                _cut(files, first, aside / made.name)
            except (ValueError, KeyError, IndexError) as error:  # of a type that the gguf package does not know, say
                raise ModelError(f"{path}: its next-token layers cannot be taken out of it ({error})") from None
    return made


def _cut(files: list[Path], first: int, out: Path) -> None:
    readers = [gguf.GGUFReader(file) for file in files]
    tensors = [as_it_is(tensor, None) for reader in readers for tensor in reader.tensors if _stays(tensor.name, first)]
    write_gguf(out, readers[0], dict.fromkeys(_SPLIT), "", tensors)


def _stays(name: str, first: int) -> bool:
    layer = name.removeprefix("blk.").partition(".")[0]
    return not name.startswith("blk.") or (layer.isdigit() and int(layer) >= first)
