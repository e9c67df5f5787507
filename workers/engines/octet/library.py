"""The compiled kernel: its C structs, and whether this machine can run it."""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import Structure, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from functools import cache


class CMatrix(Structure):
    _fields_ = [("tiles", c_void_p), ("scales", c_void_p), ("outputs", c_int32), ("inputs", c_int32), ("bits", c_int32)]


class CLayer(Structure):
    _fields_ = [
        ("qkv", CMatrix),
        ("out", CMatrix),
        ("gate_up", CMatrix),
        ("down", CMatrix),
        ("attn_norm", c_void_p),
        ("ffn_norm", c_void_p),
        ("bias", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
    ]


class CShape(Structure):
    _fields_ = [
        *[(name, c_int32) for name in ("layers", "width", "heads", "kv_heads", "head", "ffn", "vocabulary")],
        *[(name, c_int32) for name in ("max_rows", "slots", "capacity", "threads", "neox")],
        ("epsilon", c_float),
    ]


class CPart(Structure):
    _fields_ = [(name, c_int32) for name in ("slot", "first", "count", "prefix")]


@cache
def library() -> ctypes.CDLL | None:
    """The kernel, or None where it was not built (no C++ compiler at installation)."""
    spec = importlib.util.find_spec("hetero.workers.engines.octet._kernel")
    if spec is None or spec.origin is None:
        return None
    return declared(ctypes.CDLL(spec.origin))


def declared(lib: ctypes.CDLL) -> ctypes.CDLL:
    """A compiled kernel with the types of its functions told."""
    lib.octet_supported.restype = c_int
    lib.octet_create.argtypes = [c_void_p] * 7
    lib.octet_create.restype = c_void_p
    for name in ("octet_free", "octet_abort"):
        getattr(lib, name).argtypes = [c_void_p]
        getattr(lib, name).restype = None
    lib.octet_forward.argtypes = [
        c_void_p, c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_void_p, c_int, c_void_p, c_int, c_void_p,
    ]  # fmt: skip
    lib.octet_forward.restype = c_int
    lib.octet_move.argtypes = [c_void_p, c_int, c_void_p, c_void_p, c_int]
    lib.octet_move.restype = c_int
    for name in ("octet_save", "octet_load"):
        getattr(lib, name).argtypes = [c_void_p, c_int, c_int, c_void_p]
        getattr(lib, name).restype = None
    lib.octet_saved_size.argtypes = [c_void_p, c_int]
    lib.octet_saved_size.restype = c_size_t
    lib.octet_bandwidth.argtypes = [c_void_p, c_size_t, c_int, c_int]
    lib.octet_arithmetic.argtypes = [c_int, c_int64]
    lib.octet_bandwidth.restype = lib.octet_arithmetic.restype = c_double
    return lib


def why_not() -> str | None:
    """Why the kernel cannot run here, in words; None when it can."""
    lib = library()
    if lib is None:
        return "the octet kernel was not built: reinstall hetero with a C++ compiler (g++) at hand"
    if not lib.octet_supported():
        return "this CPU lacks the int8 instructions (AVX512-VNNI) that the octet engine needs"
    return None
