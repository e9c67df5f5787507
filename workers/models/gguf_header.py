"""A GGUF file's header: its key-value pairs, and where its tensors lie, in one file or split into several.

Arrays of texts are skipped, so that reading takes a moment whatever the vocabulary is (the gguf package makes an object
of each of its entries, which takes seconds). ggml's docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import re
import struct
from pathlib import Path
from typing import Any

from hetero.workers.errors import ModelError
from hetero.workers.models.tensors import TensorInfo

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_MOST_KEYS = 1 << 16
_MOST_TENSORS = 1 << 20
_MOST_DIMENSIONS = 4
_MOST_PARTS = 1000
_MOST_ENTRIES = 1 << 24  # of all arrays
_LONGEST_TEXT = 64 << 20
_LONGEST_KEY = 1 << 16
_LARGEST = 1 << 31  # of a dimension
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def parts(path: Path) -> list[Path]:
    """The files of a model that begins in this one: itself, or all of a split model, whichever of them it is. Raises
    ModelError where one is missing."""
    found = _PART.fullmatch(path.name)
    if found is None:
        return [path]
    stem, count = found[1], int(found[3])
    if not 0 < count <= _MOST_PARTS:
        raise ModelError(f"{path.name}: a model in {count} parts")
    files = [path.with_name(f"{stem}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(f"{path.name}: the model's part {missing[0]} is missing: put all {count} into one folder")
    return files


def read_header(path: Path) -> dict[str, Any]:
    """The key-value pairs of a GGUF file, of a split model those of its first part: numbers, truths and texts as they
    are, of an array of numbers the list, of an array of texts its length. Raises ModelError."""
    return _read(parts(path)[0])[0]


def read_tensors(path: Path) -> dict[str, TensorInfo]:
    """All tensors of a model, by name. Their data may still reach beyond their file. Raises ModelError."""
    return {tensor.name: tensor for file in parts(path) for tensor in _read(file)[1]}


def _read(path: Path) -> tuple[dict[str, Any], list[TensorInfo]]:
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != b"GGUF":
            raise ModelError(f"{path}: not a GGUF file (it begins with {magic!r})")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                cursor = _Cursor(data)
                pairs = cursor.pairs()
                return pairs, cursor.tensors(path, pairs.get("general.alignment", 32))
            except (struct.error, ValueError, OverflowError, MemoryError) as error:
                raise ModelError(f"{path}: its GGUF header is damaged ({error})") from None


class _Cursor:
    """A place in a mapped file. Raises struct.error or ValueError where the file is not what it says."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at, self._entries = 4, 0
        version, self._tensors, self._pairs = self._take("<I"), self._take("<Q"), self._take("<Q")
        if version not in (2, 3):
            raise ValueError(f"version {version}")
        if self._pairs > _MOST_KEYS:
            raise ValueError(f"{self._pairs} keys")
        if self._tensors > _MOST_TENSORS:
            raise ValueError(f"{self._tensors} tensors")

    def pairs(self) -> dict[str, Any]:
        return {self._text(_LONGEST_KEY): self._value(self._take("<I")) for _ in range(self._pairs)}

    def tensors(self, file: Path, alignment: Any) -> list[TensorInfo]:
        if type(alignment) is not int or not 0 < alignment <= 1 << 16:
            raise ValueError(f"alignment {alignment!r:.40}")
        found = []
        for _ in range(self._tensors):
            name, count = self._text(_LONGEST_KEY), self._take("<I")
            if count > _MOST_DIMENSIONS:
                raise ValueError(f"a tensor of {count} dimensions")
            shape = tuple(self._take("<Q") for _ in range(count))[::-1]
            if any(not 0 < size < _LARGEST for size in shape):
                raise ValueError(f"a tensor of shape {shape}")
            found.append((name, self._take("<I"), shape, self._take("<Q")))
        first = -(-self._at // alignment) * alignment
        return [TensorInfo(name, kind, shape, file, first + offset) for name, kind, shape, offset in found]

    def _take(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def _text(self, most: int) -> str:
        size = self._take("<Q")
        if size > min(most, len(self._data) - self._at):
            raise ValueError(f"a text of {size} bytes")
        self._at += size
        return self._data[self._at - size : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text(_LONGEST_TEXT)
        if kind == _ARRAY:
            return self._array(self._take("<I"), self._take("<Q"))
        if kind not in _SCALARS:
            raise ValueError(f"type {kind}")
        return self._take(_SCALARS[kind])

    def _array(self, kind: int, count: int) -> Any:
        self._entries += count
        if self._entries > min(_MOST_ENTRIES, len(self._data)):
            raise ValueError(f"an array of {count} entries")
        if kind == _STRING:
            unpack, data, at = struct.Struct("<Q").unpack_from, self._data, self._at
            for _ in range(count):
                at += 8 + unpack(data, at)[0]
            self._at = at
            return count
        if kind not in _SCALARS:  # arrays of arrays: no model has them
            raise ValueError(f"an array of type {kind}")
        form = f"<{count}{_SCALARS[kind][1]}"
        values = list(struct.unpack_from(form, self._data, self._at))
        self._at += struct.calcsize(form)
        return values
