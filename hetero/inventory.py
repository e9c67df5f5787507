"""What this machine has: cores this process may use, free memory, NVIDIA GPUs."""

from __future__ import annotations

import os
import shutil
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
    # Importing torch takes seconds; without NVIDIA's driver there is nothing for it to find.
    if shutil.which("nvidia-smi") is None and not Path("/proc/driver/nvidia").exists():
        return ()
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(
        (n, torch.cuda.get_device_name(n), torch.cuda.mem_get_info(n)[0]) for n in range(torch.cuda.device_count())
    )
