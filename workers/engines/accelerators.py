"""Which GPUs the engines' libraries can use on this machine, by the names hetero gives them."""

from __future__ import annotations

import ctypes
import platform
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from hetero.workers.errors import ModelError

_KINDS = {"CUDA": "cuda", "ROCm": "rocm", "HIP": "rocm", "Vulkan": "vulkan", "MTL": "mps", "Metal": "mps"}
_FLAGS = {"cuda": "-DGGML_CUDA=on", "rocm": "-DGGML_HIP=on", "vulkan": "-DGGML_VULKAN=on", "mps": "-DGGML_METAL=on"}


@dataclass(frozen=True)
class Accelerator:
    """A GPU as llama.cpp sees it; ``handle`` is its ggml device, ``free`` bytes where it tells."""

    kind: str
    number: int
    name: str
    free: int
    handle: int


@cache
def llama_gpus() -> tuple[Accelerator, ...]:
    """The GPUs that llama-cpp-python was built for and finds."""
    if find_spec("llama_cpp") is None:
        return ()
    import llama_cpp
    from llama_cpp import _ggml

    if not llama_cpp.llama_supports_gpu_offload():
        return ()
    llama_cpp.llama_backend_init()
    lib = _ggml.libggml
    lib.ggml_backend_dev_count.restype = ctypes.c_size_t
    lib.ggml_backend_dev_get.restype, lib.ggml_backend_dev_get.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    for call in (lib.ggml_backend_dev_name, lib.ggml_backend_dev_description):
        call.restype, call.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    lib.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_size_t)] * 2]
    found = []
    for n in range(lib.ggml_backend_dev_count()):
        handle = lib.ggml_backend_dev_get(n)
        match = re.fullmatch(r"([A-Za-z]+)(\d*)", lib.ggml_backend_dev_name(handle).decode())
        if match is None or match[1] not in _KINDS:
            continue
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        lib.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
        name = lib.ggml_backend_dev_description(handle).decode(errors="replace")
        found.append(Accelerator(_KINDS[match[1]], int(match[2] or 0), name, free.value, handle))
    return tuple(found)


def gpu_handles(path: Path, kind: str, count: int = 1) -> list[int]:
    """The ggml devices of the ``count`` GPUs of a kind that this process sees; none for kind "". Raises ModelError."""
    found = [gpu.handle for gpu in llama_gpus() if gpu.kind == kind][:count]
    if kind and len(found) < count:
        what = f"{len(found)} of {count} {kind} devices" if found else f"no {kind} device"
        raise ModelError(f"{path}: llama.cpp finds {what} in this process: {install_line(kind)}")
    return found


@cache
def llama_kinds() -> frozenset[str]:
    """The kinds of GPU llama.cpp can use."""
    return frozenset(gpu.kind for gpu in llama_gpus())


def torch_kinds() -> frozenset[str]:
    """The kinds of GPU the installed torch was built for, without loading it."""
    if find_spec("torch") is None:
        return frozenset()
    build = version("torch").partition("+")[2]
    if platform.system() == "Darwin":
        return frozenset({"mps"} if platform.machine() == "arm64" else ())
    if build.startswith("rocm"):
        return frozenset({"rocm"})
    return frozenset({"cuda"} if not build or build.startswith("cu") else ())


def install_line(kind: str) -> str:
    """The command that builds llama-cpp-python for a kind of GPU, or ("cpu") for the plainest CPU of this family."""
    flags = _FLAGS.get(kind, "-DGGML_NATIVE=OFF")
    wanted = f"llama-cpp-python=={version('llama-cpp-python')}" if find_spec("llama_cpp") else "'hetero[llama]'"
    return (
        f"CMAKE_ARGS='{flags}' pip install --force-reinstall --no-cache-dir --no-deps "
        f"--no-binary llama-cpp-python {wanted}"
    )
