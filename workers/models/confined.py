"""What a process does that exists to die of strangers' input: little memory, an answer for each line it reads."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def limit_memory(more: int) -> None:
    """Let this process take ``more`` bytes of addresses beyond what it has; kept on Linux only."""
    if sys.platform == "linux":
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))


def answer_lines(begin: Callable[[Any], Callable[[Any], Any]]) -> None:
    """Read JSON, a line each, until the input ends: the first goes to ``begin``, which gives the function that answers
    all others. What it raises ends the process."""
    answer = begin(json.loads(sys.stdin.readline()))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
