"""What a process does that exists to die of strangers' input: little memory, an answer for each line it reads."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LAST_WORDS = re.compile(r".*(?:ASSERT|[Ee]rror: |terminate called|what\(\)).*")
_DIE_WITH_PARENT = 1  # prctl's number


def last_words(said: str) -> str:
    """What a process told of its end on its standard error: the line that names the cause, or ""."""
    found = _LAST_WORDS.search(said)
    return re.sub(r"\S*/", "", found[0]).strip()[:200] if found else ""


def limit_memory(more: int) -> None:
    """Let this process take ``more`` bytes of addresses beyond what it has; kept on Linux only."""
    if sys.platform == "linux":
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))


def answer_lines(begin: Callable[[Any], Callable[[Any], Any]]) -> None:
    """Read JSON, a line each, until the input ends: the first goes to ``begin``, which gives the function that answers
    all others. What it raises ends the process."""
    if sys.platform == "linux":  # else one that hangs would outlive a server that is killed
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    answer = begin(json.loads(sys.stdin.readline()))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
