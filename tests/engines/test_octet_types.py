"""The file's own weights: what octet repacks is what the file says, for every type, on every path of this machine."""

from __future__ import annotations

import ctypes

import gguf
import numpy as np
import pytest
from helpers.quantised import TYPES, blocks

from hetero.workers.engines.octet.library import CMatrix, library, paths, why_not
from hetero.workers.engines.octet.source import Raw
from hetero.workers.engines.octet.weights import repacked
from hetero.workers.errors import ModelError

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

SHAPES = [(16, 256), (37, 512), (200, 2304)]
HERE = [(number, name) for number, name, there in paths(library()) if there] if library() else []


def raw(kind: str, rows: int, columns: int, seed: int = 0) -> Raw:
    data = np.ascontiguousarray(blocks(kind, rows, columns, seed)).reshape(-1)
    return Raw(f"a.{kind}", int(gguf.GGMLQuantizationType[kind]), rows, columns, data)


def theirs(kind: str, tensor: Raw) -> np.ndarray:
    """The values by the gguf package."""
    data = tensor.data.reshape(tensor.rows, -1)
    return np.asarray(gguf.dequantize(data, gguf.GGMLQuantizationType[kind]), np.float32).reshape(tensor.rows, -1)


def product(tensor: Raw, x: np.ndarray, path: int, bits: int = 8) -> np.ndarray:
    matrix = repacked(tensor, tensor.rows, bits, 2)
    held = CMatrix(matrix.tiles.ctypes.data, matrix.scales.ctypes.data, matrix.outputs, matrix.inputs, matrix.format)
    found = np.full((len(x), tensor.rows), np.nan, np.float32)
    library().octet_product(path, ctypes.byref(held), len(x), x.ctypes.data, found.ctypes.data)
    return found


@pytest.mark.parametrize("kind", TYPES)
def test_values_are_those_the_file_says(kind):
    for rows, columns in SHAPES:
        tensor = raw(kind, rows, columns)
        ours, wanted = tensor.floats(), theirs(kind, tensor)
        assert np.allclose(ours, wanted, rtol=2e-7, atol=1e-9), np.abs(ours - wanted).max()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("path, name", HERE)
def test_a_repacked_tensor_times_a_vector_is_the_dequantised_one(kind, path, name):
    """Inputs that int8 holds as they are: what differs is the rounding of sums."""
    rng = np.random.default_rng(1)
    for rows, columns in SHAPES:
        tensor = raw(kind, rows, columns, rows)
        x = rng.integers(-127, 128, (9, columns)).astype(np.float32)
        x[:, ::32] = 127  # a group's largest: its scale is 1
        wanted = theirs(kind, tensor).astype(np.float64)
        if kind in ("F32", "F16", "BF16"):  # to int8 with a scale for 32
            grouped = theirs(kind, tensor).reshape(rows, -1, 32)
            top = np.abs(grouped).max(axis=2, keepdims=True)
            rounded = np.rint(grouped * (np.float32(127) / top)).astype(np.float64)
            wanted = (rounded * (top / np.float32(127))).reshape(rows, columns)
        exact = x @ wanted.T
        size = np.abs(x) @ np.abs(wanted).T
        found = product(tensor, x, path)
        assert (np.abs(found - exact) <= 2e-6 * size + 1e-6).all(), (np.abs(found - exact) / size).max()


@pytest.mark.parametrize("kind", TYPES)
def test_rows_alone_and_paths_have_the_same_bits(kind):
    rng = np.random.default_rng(2)
    tensor = raw(kind, 52, 768, 5)
    x = rng.standard_normal((19, 768)).astype(np.float32) * rng.uniform(0.01, 30, (19, 1)).astype(np.float32)
    first = product(tensor, x, HERE[0][0])
    for path, name in HERE:
        assert product(tensor, x, path).tobytes() == first.tobytes(), name
        for count in (1, 2, 3, 5, 8):
            assert product(tensor, x[:count].copy(), path).tobytes() == first[:count].tobytes(), (name, count)


def test_floats_may_have_four_bits():
    tensor = raw("BF16", 40, 320)
    x = np.random.default_rng(3).standard_normal((4, 320)).astype(np.float32)
    wanted = x @ theirs("BF16", tensor).T
    eight, four = (product(tensor, x, HERE[0][0], bits) for bits in (8, 4))
    assert np.abs(eight - wanted).max() < np.abs(four - wanted).max() < 0.3 * np.abs(wanted).max()


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q4_1", "Q8_0", "Q4_K", "Q6_K"])
def test_weights_that_are_no_numbers_are_told(kind):
    tensor = raw(kind, 20, 256)
    tensor.data[-4:] = 255  # of Q4_K and Q8_0 these are weights
    tensor.data[:4] = 255
    if kind == "Q6_K":
        tensor.data[208:210] = 255
    with pytest.raises(ModelError, match="no numbers"):
        repacked(tensor, tensor.rows, 8, 2)


def test_padding_is_nothing():
    """Outputs and inputs that are no whole tiles."""
    tensor = raw("F16", 21, 80)
    x = np.random.default_rng(3).standard_normal((3, 96)).astype(np.float32)
    matrix = repacked(tensor, 32, 8, 1)
    held = CMatrix(matrix.tiles.ctypes.data, matrix.scales.ctypes.data, 32, 96, matrix.format)
    found = np.empty((3, 32), np.float32)
    library().octet_product(HERE[0][0], ctypes.byref(held), 3, x.ctypes.data, found.ctypes.data)
    assert not found[:, 21:].any()
    assert np.abs(found[:, :21] - x[:, :80] @ theirs("F16", tensor).T).max() < 0.2
