"""What this machine has: cores this process may use, free memory, GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import psutil

from hetero.cluster.topology import memory_limit, read_topology
from hetero.placement.device import Gpu, Inventory
from hetero.workers.engines.accelerators import llama_gpus, torch_kinds


def take_inventory() -> Inventory:
    """Look at this machine now."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    numbers = tuple(sorted(cores))
    free, limit = psutil.virtual_memory().available, memory_limit()
    return Inventory(numbers, free if limit is None else min(free, limit), _gpus(), read_topology(numbers))


def cpu_name() -> str:
    """The processor's name, for tables and benchmark reports."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    import platform

    return platform.processor() or platform.machine()


def machine_line() -> str:
    """One line on the machine a figure came from."""
    found = take_inventory()
    gpus = "".join(f", {gpu.name}" for gpu in found.gpus)
    total = psutil.virtual_memory().total / 2**30
    return f"{cpu_name()}, {len(found.cores)} cores, {total:.0f} GiB{gpus}"


def _gpus() -> tuple[Gpu, ...]:
    """The GPUs this process may use: NVIDIA's by their own tool, since asking CUDA would take memory on them; others as
    llama.cpp finds them, and those torch alone can use."""
    nvidia = _nvidia()
    found = [gpu for gpu in llama_gpus() if gpu.kind != "cuda"]
    others = [Gpu(gpu.kind, gpu.number, gpu.name, gpu.free) for gpu in found]
    if not any(gpu.kind == "rocm" for gpu in others) and "rocm" in torch_kinds():
        import torch

        for number in range(torch.cuda.device_count()):
            others.append(Gpu("rocm", number, torch.cuda.get_device_name(number), torch.cuda.mem_get_info(number)[0]))
    if not any(gpu.kind == "mps" for gpu in others) and "mps" in torch_kinds():
        others.append(Gpu("mps", 0, cpu_name(), psutil.virtual_memory().available))
    order = ("cuda", "rocm", "mps", "vulkan")
    return tuple(sorted((*nvidia, *others), key=lambda gpu: (order.index(gpu.kind), gpu.number)))


def _nvidia() -> tuple[Gpu, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=index,uuid,name,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    lines = [[field.strip() for field in line.split(",")] for line in answer.splitlines() if line.count(",") == 3]
    every = {name: (what, int(free) << 20) for n, uuid, what, free in lines for name in (n, uuid)}
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [line[0] for line in lines] if chosen is None else chosen.split(",")
    return tuple(Gpu("cuda", n, *every[name]) for n, name in enumerate(names) if name in every)
