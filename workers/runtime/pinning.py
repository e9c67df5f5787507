"""Threads and cores of a worker process: set first thing, before a numeric library counts them."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD

# What each kind of GPU calls the list of those a process may see. HIP also heeds CUDA's.
_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "rocm": "HIP_VISIBLE_DEVICES", "vulkan": "GGML_VK_VISIBLE_DEVICES"}


def keep_memory() -> None:
    """Let the C library keep what is freed, so that numpy's arrays of a megabyte are not faulted in anew at each use:
    that took three quarters of the time to sample from a vocabulary of 131,072."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's alone
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 256 << 20)


def pin(cores: Sequence[int], gpus: Sequence[int], kind: str = "cuda") -> None:
    """Confine this process to ``cores`` and some GPUs or none, and let its libraries use as many threads.

    Ray and ``ray up`` set OMP_NUM_THREADS=1, and Ray's own threads already run: each is moved. Ray leaves every
    GPU visible to an actor without ``num_gpus``: a CPU worker must see none. Empty ``cores`` mean all.
    """
    for other, variable in _VISIBLE.items():
        seen = os.environ.get(variable)  # the user's own choice: our numbers count within it
        names = seen.split(",") if seen else []
        wanted = gpus if other == kind else ()
        os.environ[variable] = ",".join(names[n] if n < len(names) else str(n) for n in wanted)
    if kind == "rocm" and gpus:
        del os.environ[_VISIBLE["cuda"]]
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # llama.cpp's own debugger hangs where it fails
    keep_memory()
    sys.setswitchinterval(0.0005)  # the socket thread must not wait 5 ms for the interpreter
    if not cores:
        return
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(len(cores))
    # Threads that wait for each other within a forward spin some 50 us, then sleep: others may need the core. Ten times
    # that gained 2 % on idle cores and made the built-in pair's forwards 8 times as slow beside two busy programs.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if not hasattr(os, "sched_setaffinity"):  # macOS has no affinity; the threads are bounded all the same
        return
    for task in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(task.name), cores)
        except ProcessLookupError:  # a thread that ended meanwhile
            continue
