"""Llama-family models on disk, tensor by tensor: GGUF files and safetensors directories under one set of names."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hetero.workers.engines.octet.architecture import read_architecture
from hetero.workers.engines.octet.library import library
from hetero.workers.errors import ModelError, Unsupported
from hetero.workers.models.gguf_header import read_tensors
from hetero.workers.models.tensors import TensorInfo, read_safetensors

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Raw:
    """A tensor's bytes as its file has them, ``type`` in ggml's numbers; [rows, columns], or one row for a vector."""

    name: str
    type: int
    rows: int
    columns: int
    data: NDArray[np.uint8]

    def part(self, first: int, rows: int) -> Raw:
        """Some of its rows."""
        row = self.data.nbytes // self.rows
        return Raw(self.name, self.type, rows, self.columns, self.data[first * row : (first + rows) * row])

    def floats(self) -> Array:
        """Its values, [rows, columns]. Raises ModelError for values that are no numbers."""
        lib = library()
        assert lib is not None
        found = np.empty((self.rows, self.columns), np.float32)
        lib.octet_dequantise(self.data.ctypes.data, self.type, self.rows, self.columns, found.ctypes.data)
        if not np.isfinite(found).all():
            raise ModelError(f"tensor {self.name} has values that are no numbers")
        return found


class Source:
    """A model to read. Names are GGUF's: ``blk.0.attn_q.weight``. Raises ModelError or Unsupported."""

    def __init__(self, path: Path) -> None:
        self.architecture = read_architecture(path)
        self._tensors = _renamed(read_safetensors(path)) if path.is_dir() else read_tensors(path)
        self._read: set[str] = set()
        self._maps = {file: _mapped(file) for file in {tensor.file for tensor in self._tensors.values()}}
        embedding = self._tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise ModelError(f"{path.name}: the model has no matrix token_embd.weight")
        self.vocabulary = embedding.shape[0]

    def get(self, name: str) -> Raw | None:
        """A tensor, or None if the model has none of that name."""
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        self._read.add(name)
        if not 1 <= len(tensor.shape) <= 3:
            raise ModelError(f"tensor {name} is {tensor.shape}: neither a vector nor matrices")
        rows, columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]  # experts' matrices lie one behind the other
        lib = library()
        assert lib is not None
        row = lib.octet_row_bytes(tensor.type, columns) if isinstance(tensor.type, int) else 0
        if not row:
            raise Unsupported(f"octet cannot read {name}: its type is {_type_name(tensor.type)}")
        data = self._maps[tensor.file]
        if tensor.start + rows * row > len(data):
            raise ModelError(f"tensor {name} is damaged (it ends beyond {tensor.file.name})")
        return Raw(name, int(tensor.type), rows, columns, np.frombuffer(data, np.uint8, rows * row, tensor.start))

    def unread(self) -> str | None:
        """A tensor that nobody asked for, and that is not just a table of what can be computed."""
        rest = (name for name in self._tensors if name not in self._read and not name.endswith(_TABLES))
        return next(rest, None)

    def done(self, raw: Raw) -> None:
        """The tensor's bytes are not read again soon: its pages count as ours no longer, so that what was repacked is
        not held twice."""
        tensor = self._tensors[raw.name]
        first = tensor.start // mmap.PAGESIZE * mmap.PAGESIZE
        self._maps[tensor.file].madvise(mmap.MADV_DONTNEED, first, tensor.start + raw.data.nbytes - first)


def _mapped(file: Path) -> mmap.mmap:
    with file.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


def _type_name(kind: int | str) -> str:
    from gguf import GGMLQuantizationType

    return next((each.name for each in GGMLQuantizationType if each == kind), str(kind))


_TABLES = ("inv_freq", "attn_rot_embd.weight", "rope_freqs.weight")
_GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _renamed(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """A transformers model's tensors by GGUF's names: model.layers.0.self_attn.q_proj.weight is blk.0.attn_q.weight."""
    found = {}
    names = dict(_GGUF_NAMES)
    if any("pre_feedforward_layernorm" in name for name in tensors):  # gemma's norm after attention is one of its own
        names["post_attention_layernorm"] = "post_attention_norm"
    for name, tensor in tensors.items():
        stem, _, kind = name.removeprefix("language_model.").removeprefix("model.").rpartition(".")
        layer = ""
        if stem.startswith("layers."):
            _, number, stem = (*stem.split(".", 2), "", "")[:3]
            layer = f"blk.{number}."
        known = names.get(stem)
        ours = f"{layer}{known}.{kind}" if known is not None else name
        found[ours] = replace(tensor, name=ours)
    return found


def need(source: Source, name: str, *shape: int) -> Raw:
    """A tensor the family must have. Raises ModelError."""
    found = maybe(source, name, *shape)
    if found is None:
        raise ModelError(f"the model has no tensor {name}")
    return found


def maybe(source: Source, name: str, *shape: int) -> Raw | None:
    """A tensor some models have. Raises ModelError for one of another shape."""
    found = source.get(name)
    if found is not None and (found.rows, found.columns) != (1, *shape)[-2:]:
        raise ModelError(f"tensor {name} is {found.rows} x {found.columns}, the model's numbers make it {shape}")
    return found
