"""What this machine has: cores this process may use, free memory, NVIDIA GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import psutil

from placement.device import Inventory


def take_inventory() -> Inventory:
    """Look at this machine now."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return Inventory(tuple(sorted(cores)), psutil.virtual_memory().available, _gpus())


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
    gpus = "".join(f", {name}" for _, name, _ in found.gpus)
    total = psutil.virtual_memory().total / 2**30
    return f"{cpu_name()}, {len(found.cores)} cores, {total:.0f} GiB{gpus}"


def _gpus() -> tuple[tuple[int, str, int], ...]:
    """(number, name, free bytes) of each GPU the process may use. Asking CUDA itself would take memory on them."""
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
    return tuple((n, *every[name]) for n, name in enumerate(names) if name in every)
