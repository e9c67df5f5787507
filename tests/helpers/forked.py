"""Calls made in a process of their own, cheaply: a fork of this one."""

from __future__ import annotations

import faulthandler
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_Result = TypeVar("_Result")


class Died(Exception):
    """The process ended before it had an answer; the number of the signal that ended it, if one did."""


def forked(call: Callable[[], _Result], seconds: int = 60, memory: int = 8 << 30) -> _Result:
    """The result of a call, made in a fork of this process. Raises Died, and what the call raises."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            faulthandler.disable()
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
            signal.alarm(seconds)
            try:
                answer = (True, call())
            except BaseException as error:
                answer = (False, error)
            with os.fdopen(write, "wb") as out:
                pickle.dump(answer, out)
        except BaseException as error:
            sys.stdout.write(repr(error))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as source:
        data = source.read()
    _, status = os.waitpid(child, 0)
    if not data:
        raise Died(os.WTERMSIG(status) if os.WIFSIGNALED(status) else -1)
    well, answer = pickle.loads(data)
    if not well:
        raise answer
    return answer
