"""The compiled kernel: its C structs, its functions, and which of its paths this machine can run."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterator
from ctypes import Structure, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from functools import cache

_VERSION = 3  # as in the kernel's api.cpp
PATH_VARIABLE = "HETERO_OCTET_PATH"  # forces one of the paths
_PLAIN = "plain"  # for tests: without vector instructions other engines are faster


class CMatrix(Structure):
    _fields_ = [("tiles", c_void_p), ("scales", c_void_p), *[(n, c_int32) for n in ("outputs", "inputs", "format")]]


class CRows(Structure):
    _fields_ = [("data", c_void_p), ("type", c_int32), ("inputs", c_int32), ("stride", c_int64)]


MATRICES = ("q", "k", "v", "out", "gate", "up", "down")
VECTORS = (
    "attn_norm", "ffn_norm", "attn_post_norm", "ffn_post_norm", "q_bias", "k_bias", "v_bias", "out_bias", "q_norm",
    "k_norm",
)  # fmt: skip


class CLayer(Structure):
    _fields_ = [
        *[(name, CMatrix) for name in MATRICES],
        *[(name, c_void_p) for name in VECTORS],
        ("rotation", c_int32),
        ("window", c_int32),
        ("experts", c_void_p),
        ("sinks", c_void_p),
    ]


class CExperts(Structure):
    _fields_ = [
        *[(name, c_int32) for name in ("count", "used", "ffn", "shared_ffn", "late", "rescaled")],
        *[(name, c_void_p) for name in ("gate", "up", "down", "router", "router_bias")],
        *[(name, c_void_p) for name in ("gate_bias", "up_bias", "down_bias")],
        *[(name, CMatrix) for name in ("shared_gate", "shared_up", "shared_down")],
        ("shared_router", c_void_p),
    ]


class CShape(Structure):
    _fields_ = [
        *[(name, c_int32) for name in ("layers", "width", "heads", "kv_heads", "head", "ffn", "vocabulary")],
        *[(name, c_int32) for name in ("max_rows", "slots", "capacity", "threads", "rotated", "neox", "activation")],
        *[(name, c_float) for name in ("epsilon", "embedding_scale", "attention_scale", "residual_scale")],
        *[(name, c_float) for name in ("logit_scale", "attention_cap", "logit_cap")],
        ("bytes", c_int32),
    ]


class CPart(Structure):
    _fields_ = [(name, c_int32) for name in ("slot", "first", "count", "prefix")]


class CBatch(Structure):
    _fields_ = [
        *[(name, c_int32) for name in ("rows", "parts", "path", "wanted_rows")],
        *[(name, c_void_p) for name in ("tokens", "positions", "cells", "part", "paths", "wanted", "logits")],
        ("taps", c_int32),
        *[(name, c_void_p) for name in ("tapped", "states")],
    ]


@cache
def library() -> ctypes.CDLL | None:
    """The kernel, or None where it was not built (no C++ compiler at installation), or for another version of this."""
    spec = importlib.util.find_spec("hetero.workers.engines.octet._kernel")
    if spec is None or spec.origin is None:
        return None
    found = ctypes.CDLL(spec.origin)
    return declared(found) if hasattr(found, "octet_version") and found.octet_version() == _VERSION else None


def declared(lib: ctypes.CDLL) -> ctypes.CDLL:
    """A compiled kernel with the types of its functions told."""
    p, i = c_void_p, c_int
    for name, returned, *arguments in (
        ("octet_path", c_char_p, i, p),
        ("octet_format", i, i, i, i, i, p, p),
        ("octet_row_bytes", c_size_t, i, i),
        ("octet_repack", i, p, i, i, i, i, i, i, i, p, p),
        ("octet_dequantise", None, p, i, i, i, p),
        ("octet_create", p, p, p, p, p, p, p, p, i),
        ("octet_free", None, p),
        ("octet_abort", None, p),
        ("octet_forward", i, p, p),
        ("octet_move", i, p, i, p, p, i),
        ("octet_save", None, p, i, i, p),
        ("octet_load", None, p, i, i, p),
        ("octet_saved_size", c_size_t, p, i),
        ("octet_bandwidth", c_double, p, c_size_t, i, i),
        ("octet_product", None, i, p, i, p, p),
        ("octet_arithmetic", c_double, i, i, c_int64),
    ):
        function = getattr(lib, str(name))
        function.restype, function.argtypes = returned, arguments
    return lib


def paths(lib: ctypes.CDLL) -> Iterator[tuple[int, str, bool]]:
    """The kernel's paths, the fastest first: number, name, and whether this machine has its instructions."""
    there, number = c_int(), 0
    while (name := lib.octet_path(number, ctypes.byref(there))) is not None:
        yield number, name.decode(), bool(there.value)
        number += 1


def path() -> tuple[int, str]:
    """The path this machine runs: its number and name; only to be asked where ``why_not`` has no objection."""
    lib = library()
    assert lib is not None
    forced = os.environ.get(PATH_VARIABLE)
    return next((n, name) for n, name, there in paths(lib) if there and forced in (None, "", name))


def why_not() -> str | None:
    """Why the kernel cannot run here, in words; None when it can."""
    lib = library()
    if lib is None:
        return (
            "the octet kernel was not built, or for another version: reinstall hetero with a C++ compiler (g++) at hand"
        )
    here = [name for _, name, there in paths(lib) if there]
    forced = os.environ.get(PATH_VARIABLE)
    if forced and forced not in here:
        return f"{PATH_VARIABLE}={forced}: this machine has {', '.join(here)}"
    if here == [_PLAIN] and not forced:
        return "this CPU lacks the instructions (AVX2 and FMA, or Arm's dot products) that the octet engine needs"
    return None
