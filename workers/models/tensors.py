"""Where a model's tensors lie on disk, and those of safetensors files."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetero.workers.errors import ModelError

_LONGEST_HEADER = 100 << 20  # bytes; as in the safetensors library
_LARGEST = 1 << 31  # of a dimension
_LONGEST = 1 << 48  # bytes of a file


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as a file lists it: ``type`` is ggml's number of it, or the name of one that ggml has not; ``shape`` is
    torch's; ``start`` the byte its data begin at in ``file``."""

    name: str
    type: int | str
    shape: tuple[int, ...]
    file: Path
    start: int


_TYPES = {"F32": 0, "F16": 1, "BF16": 30}


def read_safetensors(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a transformers directory, by name. Their data may still reach beyond their file.

    The format: 8 bytes of the header's length, a header in JSON, data (huggingface/safetensors, "Format"). Raises
    ModelError.
    """
    found: dict[str, TensorInfo] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as opened:
                (length,) = struct.unpack("<Q", opened.read(8))
                if length > _LONGEST_HEADER:
                    raise ValueError(f"a header of {length} bytes")
                header = json.loads(opened.read(length))
            for name, entry in header.items():
                if name != "__metadata__":
                    shape = tuple(_size(size, 1, _LARGEST) for size in entry["shape"])
                    start = 8 + length + _size(entry["data_offsets"][0], 0, _LONGEST)
                    found[name] = TensorInfo(
                        name, _TYPES.get(entry["dtype"], str(entry["dtype"])[:20]), shape, file, start
                    )
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            IndexError,
            AttributeError,
            RecursionError,
            struct.error,
        ) as error:
            raise ModelError(f"{file}: its header is damaged ({error or type(error).__name__})") from None
    return found


def _size(value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value < most:
        raise ValueError(f"a size of {value!r:.40}")
    return value
