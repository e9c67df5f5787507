"""Calls that use more stack than a thread has: llama.cpp splits texts by std::regex, which recurses by character."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")
_LOCK = threading.Lock()  # the size is that of the process's next thread


def with_stack(size: int, call: Callable[[], _Result]) -> _Result:
    """The result of a call made on a stack of ``size`` bytes; what it does not touch of it costs nothing."""
    found: list[_Result] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:
            raised.append(error)

    with _LOCK:
        before = threading.stack_size(size // 4096 * 4096)
        try:
            thread = threading.Thread(target=work, name="hetero-deep", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if raised:
        raise raised[0]
    return found[0]
