"""GGUF files made of others: the same header but for what changes, other tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Bytes = NDArray[np.uint8]
TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q5_1": "Q5_1", "q4_1": "Q4_1", "q4_0": "Q4_0"}
_FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_1": 9,
    "bf16": 32,
}  # llama.cpp's numbers of them
_SHORT = ("q5_1", "q4_1", "q4_0")
_OWN = ("general.architecture", "general.file_type")  # of each file anew


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written: ``make`` is called when its turn comes, since the whole may not fit in memory. ``kind``:
    the type of what it makes, where those are a file's own bytes; None: numbers."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Matrix | Bytes]
    kind: gguf.GGMLQuantizationType | None = None


def header_of(reader: gguf.GGUFReader) -> dict[str, Any]:
    """A file's keys and values, arrays of texts among them (which ``gguf_header`` leaves out, for speed)."""
    return {name: field.contents() for name, field in reader.fields.items()}


def write_gguf(
    path: Path, like: gguf.GGUFReader, changed: Mapping[str, Any], kind: str, tensors: Sequence[Tensor]
) -> None:
    """A file with the header of ``like`` but for the keys of ``changed`` (None: left out). ``kind``: one of TYPES; "":
    that of ``like``, where all tensors have one of their own."""
    architecture = changed.get("general.architecture") or like.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, architecture)
    writer.data_alignment = like.alignment
    for name, field in like.fields.items():
        if name.startswith("GGUF.") or (name in _OWN if kind else name == _OWN[0]):
            continue
        if name in changed and changed[name] is None:
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, changed.get(name, field.contents()), field.types[0], inner)
    if kind:
        writer.add_file_type(_FILE_TYPES[kind])
    kinds = {tensor.name: tensor.kind if tensor.kind is not None else _type(tensor, kind) for tensor in tensors}
    for tensor in tensors:
        own = kinds[tensor.name]
        shape = gguf.quant_shape_to_byte_shape(tensor.shape, own)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        made = tensor.make()
        writer.write_tensor_data(
            (made if tensor.kind is not None else gguf.quantize(made, kinds[tensor.name])).view(np.uint8)
        )
    writer.close()


def as_it_is(tensor: gguf.ReaderTensor, rows: Sequence[int] | None) -> Tensor:
    """A file's own tensor, byte for byte; of its rows those, or (None) all."""
    shape = tuple(int(n) for n in tensor.shape[::-1])

    def make() -> Bytes:
        data = np.asarray(tensor.data)
        found: Bytes = np.ascontiguousarray(data if rows is None else data[rows]).view(np.uint8)
        return found

    return Tensor(tensor.name, shape if rows is None else (len(rows), *shape[1:]), make, tensor.tensor_type)


def _type(tensor: Tensor, kind: str) -> gguf.GGMLQuantizationType:
    """Norms stay F32; a file of few bits keeps its embedding, which is also the head, at 8, as is usual."""
    if len(tensor.shape) == 1:
        return gguf.GGMLQuantizationType.F32
    if kind in _SHORT and tensor.name in ("token_embd.weight", "output.weight"):
        return gguf.GGMLQuantizationType.Q8_0
    return gguf.GGMLQuantizationType[TYPES[kind]]
