"""Weights as the kernel reads them: int8 tiles and scales, made once, kept on disk, memory-mapped."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetero.workers.engines.octet.source import Array, Numbers, Source, layer_names, maybe, need, open_source
from hetero.workers.errors import ModelError, Unsupported
from hetero.workers.models.cache import cache_root, made_aside

GROUP = 256  # inputs that share a scale; as in kernel.cpp
FINE = 32  # inputs that share a scale in 4-bit weights; as in kernel.cpp
BLOCK = 32  # outputs of a tile; as in kernel.cpp
_FORMAT = "octet-2"


class Weights:
    """A converted model: ``numbers``, and arrays by name, mapped from disk. The kernel believes what it is handed, so
    arrays are given out only as what is asked for: raises ModelError where the disk has something else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self.numbers = Numbers(**json.loads((folder / "numbers.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise self._damaged("numbers.json", error) from None

    def get(self, name: str, dtype: type[np.generic], *shape: int) -> NDArray[Any] | None:
        """An array, or None if the model has none of that name."""
        file = self._folder / f"{name}.npy"
        if not file.is_file():
            return None
        try:
            found: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(file.name, error) from None
        if (found.dtype, found.shape) != (np.dtype(dtype), shape) or not found.flags.c_contiguous:
            raise self._damaged(file.name, f"{found.dtype} {found.shape} instead of {np.dtype(dtype)} {shape}")
        return found

    def need(self, name: str, dtype: type[np.generic], *shape: int) -> NDArray[Any]:
        """An array every model has."""
        found = self.get(name, dtype, *shape)
        if found is None:
            raise self._damaged(f"{name}.npy", "it is missing")
        return found

    def matrix(self, name: str, outputs: int, inputs: int, bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Tiles and scales, as ``pack`` or ``pack_fine`` makes them."""
        blocks, group = -(-outputs // BLOCK), GROUP if bits == 8 else FINE
        tiles = self.need(f"{name}.tiles", np.uint8, blocks, -(-inputs // 4), BLOCK * bits // 8, 4)
        return tiles, self.need(f"{name}.scales", np.float32, blocks, -(-inputs // group), BLOCK)

    def _damaged(self, file: str, why: object) -> ModelError:
        return ModelError(f"the converted model is damaged: {file}: {why}; delete {self._folder}, it is made again")


def cache_folder() -> Path:
    """Where converted models are kept."""
    return cache_root() / "octet"


def load_weights(path: Path, bits: int = 8) -> Weights:
    """The converted model of a GGUF file or safetensors directory, at 8 or 4 bits; converts at the first call.

    The cache's key is a hash of the files' paths, sizes and times: a replaced model is converted anew. Raises
    ModelError or Unsupported.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.blake2b(json.dumps([_FORMAT, bits, facts]).encode(), digest_size=16).hexdigest()
    folder = cache_folder() / key
    if not folder.is_dir():
        source = open_source(path)
        with made_aside(folder) as aside:
            _convert(source, aside, bits)
    return Weights(folder)


def _convert(source: Source, folder: Path, bits: int) -> None:
    numbers = source.numbers
    width, ffn, vocabulary = numbers.width, numbers.ffn, numbers.vocabulary
    heads, kv = numbers.heads * numbers.head, numbers.kv_heads * numbers.head
    if numbers.width % 16 or numbers.ffn % 16 or numbers.head % 16 or numbers.head > 256:
        raise Unsupported("octet needs width, ffn and head size in multiples of 16, and heads up to 256")
    if bits == 4 and (numbers.width % FINE or numbers.ffn % FINE or numbers.heads * numbers.head % FINE):
        raise Unsupported("octet4 needs width, ffn and heads x head size in multiples of 32")

    def save(name: str, array: NDArray[Any]) -> None:
        np.save(folder / f"{name}.npy", np.ascontiguousarray(array))

    def matrix(name: str, array: Array, bits: int = bits) -> None:
        tiles, scales = pack(array) if bits == 8 else pack_fine(array)
        save(f"{name}.tiles", tiles)
        save(f"{name}.scales", scales)

    embedding = need(source, "token_embd.weight", vocabulary, width)
    save("embedding", embedding.astype(np.float16))
    head = maybe(source, "output.weight", vocabulary, width)
    matrix("head", embedding if head is None else head, 8)  # the layer that quantisation hurts most
    save("norm", need(source, "output_norm.weight", width))
    frequencies = numbers.theta ** (-np.arange(0, numbers.head, 2, dtype=np.float64) / numbers.head)
    factors = maybe(source, "rope_freqs.weight", numbers.head // 2)
    if factors is not None and not (factors > 0).all():
        raise ModelError("tensor rope_freqs.weight has values that are not above zero")
    save("frequencies", frequencies if factors is None else frequencies / factors)
    for layer in layer_names(numbers.layers):
        sizes = {"q": heads, "k": kv, "v": kv}
        parts = [need(source, f"{layer}.attn_{part}.weight", size, width) for part, size in sizes.items()]
        matrix(f"{layer}.qkv", np.concatenate(parts))
        biases = {part: maybe(source, f"{layer}.attn_{part}.bias", size) for part, size in sizes.items()}
        if any(bias is not None for bias in biases.values()):
            all_three = [np.zeros(sizes[part], np.float32) if bias is None else bias for part, bias in biases.items()]
            save(f"{layer}.bias", np.concatenate(all_three))
        matrix(f"{layer}.out", need(source, f"{layer}.attn_output.weight", width, heads))
        gate, up = (need(source, f"{layer}.ffn_{part}.weight", ffn, width) for part in ("gate", "up"))
        # A tile holds 16 gate units and their 16 up units, so that the kernel multiplies them at once.
        both = np.stack([gate.reshape(-1, 16, numbers.width), up.reshape(-1, 16, numbers.width)], axis=1)
        matrix(f"{layer}.gate_up", both.reshape(-1, numbers.width))
        matrix(f"{layer}.down", need(source, f"{layer}.ffn_down.weight", width, ffn))
        for name in ("attn_norm", "ffn_norm"):
            save(f"{layer}.{name}", need(source, f"{layer}.{name}.weight", width))
        for name in ("attn_q_norm", "attn_k_norm"):
            found = maybe(source, f"{layer}.{name}.weight", numbers.head)
            if found is not None:
                save(f"{layer}.{name}", found)
    (folder / "numbers.json").write_text(json.dumps(asdict(numbers)))


def pack(matrix: Array) -> tuple[NDArray[np.uint8], Array]:
    """[outputs, inputs] to (tiles [blocks, inputs / 4, 32, 4] of int8 + 128, scales [blocks, groups, 32])."""
    outputs, inputs = matrix.shape
    groups = -(-inputs // GROUP)
    rows = -(-outputs // BLOCK) * BLOCK
    wide = np.zeros((rows, groups * GROUP), np.float32)
    wide[:outputs, :inputs] = matrix
    grouped = wide.reshape(rows, groups, GROUP)
    scales = np.abs(grouped).max(axis=2) / np.float32(127)
    back = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    quantised = np.rint(grouped * back[:, :, None]).astype(np.int16).reshape(rows, -1)
    depth = -(-inputs // 4) * 4
    tiles = (quantised[:, :depth] + 128).astype(np.uint8)
    tiles = tiles.reshape(rows // BLOCK, BLOCK, depth // 4, 4).transpose(0, 2, 1, 3)
    return tiles, scales.reshape(rows // BLOCK, BLOCK, groups).transpose(0, 2, 1)


def pack_fine(matrix: Array) -> tuple[NDArray[np.uint8], Array]:
    """[outputs, inputs] to 4-bit (tiles [blocks, inputs / 4, 16, 4], scales [blocks, inputs / 32, 32]), as in Q4_0."""
    outputs, inputs = matrix.shape
    rows = -(-outputs // BLOCK) * BLOCK
    wide = np.zeros((rows, inputs), np.float32)
    wide[:outputs] = matrix
    grouped = wide.reshape(rows, inputs // FINE, FINE)
    at = np.abs(grouped).argmax(axis=2)[:, :, None]
    scales: Array = (np.take_along_axis(grouped, at, axis=2)[:, :, 0] / -8).astype(np.float32)
    back = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    quantised = np.clip(np.rint(grouped * back[:, :, None]) + 8, 0, 15).astype(np.uint8)
    tiles = quantised.reshape(rows // BLOCK, 2, 16, inputs // 4, 4).transpose(0, 3, 1, 2, 4)
    both: NDArray[np.uint8] = tiles[:, :, 0] | (tiles[:, :, 1] << 4)
    return both, scales.reshape(rows // BLOCK, BLOCK, -1).transpose(0, 2, 1)
