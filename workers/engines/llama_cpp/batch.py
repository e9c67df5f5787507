"""The rows of a llama.cpp forward: tokens, or tokens with a hidden state each."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from hetero.workers.errors import Aborted, EngineError, KvFull

State: TypeAlias = NDArray[np.float32] | NDArray[np.float16]


def failure(code: int) -> EngineError:
    """What llama_decode's code means, where it is not 0."""
    if code == 1:
        return KvFull("no KV cells are left for these rows")
    return Aborted("the forward was aborted") if code == 2 else EngineError(f"llama.cpp failed to decode (code {code})")


class Batch(Protocol):
    """The rows of a forward. ``ids``: the llama sequence ids that there are."""

    ids: range

    def clear(self) -> None:
        """Take all rows back."""

    def add(self, token: int, position: int, ids: Sequence[int], logits: bool) -> None:
        """A row, of these sequences; ``logits``: whether its are wanted."""

    def run(self, context: object) -> int:
        """The forward; llama_decode's code."""


class RowBatch(Batch):
    """A llama_batch over arrays of our own."""

    def __init__(self, rows: int, ids: int) -> None:
        self._token = (ctypes.c_int32 * rows)()
        self._position = (ctypes.c_int32 * rows)()
        self._count = (ctypes.c_int32 * rows)()
        self._row_ids = [(ctypes.c_int32 * ids)() for _ in range(rows)]
        self._pointers = (ctypes.POINTER(ctypes.c_int32) * rows)(
            *[ctypes.cast(row, ctypes.POINTER(ctypes.c_int32)) for row in self._row_ids]
        )
        self._wanted = (ctypes.c_int8 * rows)()
        self.ids = range(ids)
        self.struct = llama_cpp.llama_batch(
            n_tokens=0,
            token=self._token,
            embd=None,
            pos=self._position,
            n_seq_id=self._count,
            seq_id=self._pointers,
            logits=self._wanted,
        )

    def run(self, context: object) -> int:
        code: int = llama_cpp.llama_decode(context, self.struct)
        return code

    def clear(self) -> None:
        self.struct.n_tokens = 0

    def add(self, token: int, position: int, ids: Sequence[int], logits: bool) -> None:
        at = self.struct.n_tokens
        self._token[at] = token
        self._position[at] = position
        self._count[at] = len(ids)
        for n, i in enumerate(ids):
            self._row_ids[at][n] = i
        self._wanted[at] = logits
        self.struct.n_tokens = at + 1


class StateBatch(Batch):
    """Rows with a state each: those ``given``, in order (None: not known)."""

    def __init__(self, context: object, width: int, ids: int) -> None:
        self.ids = range(ids)
        self.given: list[State | None] = []
        self._nothing = np.zeros(width, np.float32)
        self._batch = llama_cpp.llama_batch_ext_init(context)
        self._count = 0

    def clear(self) -> None:
        llama_cpp.llama_batch_ext_clear(self._batch)
        self._count = 0

    def add(self, token: int, position: int, ids: Sequence[int], logits: bool) -> None:
        state = self.given[self._count]
        state = np.ascontiguousarray(state if state is not None else self._nothing, np.float32)
        at = llama_cpp.llama_batch_ext_add_token(self._batch, ids[0], token)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        told = [llama_cpp.llama_batch_ext_add_seq(self._batch, at, i) for i in ids[1:]]
        told.append(llama_cpp.llama_batch_ext_set_pos(self._batch, at, ctypes.byref(ctypes.c_int32(position))))
        embedding = llama_cpp.llama_embd(pointer, 1, len(state))
        told.append(llama_cpp.llama_batch_ext_set_embd_token(self._batch, at, embedding))
        told.append(llama_cpp.llama_batch_ext_set_output_logits(self._batch, at, logits))
        if at != self._count or not all(told):
            raise EngineError(f"llama.cpp takes no row {self._count} of token {token} (code {at})")
        self._count += 1

    def run(self, context: object) -> int:
        code: int = llama_cpp.llama_process(context, llama_cpp.LLAMA_PROCESS_TYPE_DECODE, self._batch)
        return code

    def free(self) -> None:
        if self._batch:
            llama_cpp.llama_batch_ext_free(self._batch)
            self._batch = None
