"""Hidden states of llama.cpp's forwards: what a head on another device drafts from.

Of the library's staging interface (``llama-ext.h``), which llama-cpp-python binds in part; its graphs name what enters
their layers for some architectures only (``registry``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import llama_cpp_ext
from numpy.typing import NDArray

from hetero.workers.errors import Unsupported
from hetero.workers.models.head import NEXT


def _bound(name: str, mangled: str, arguments: list[Any], result: Any) -> Any:
    """A function of the library, which exports its staging ones by their C++ names."""
    library = llama_cpp.llama_cpp._lib
    found = getattr(library, name, None) or getattr(library, mangled)
    found.argtypes, found.restype = arguments, result
    return found


_set_entering = _bound(
    "llama_set_embeddings_layer_inp",
    "_Z30llama_set_embeddings_layer_inpP13llama_contextjb",
    [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_bool],
    None,
)
_entering = _bound(
    "llama_get_embeddings_layer_inp",
    "_Z30llama_get_embeddings_layer_inpP13llama_contextj",
    [ctypes.c_void_p, ctypes.c_uint32],
    ctypes.POINTER(ctypes.c_float),
)


class LlamaStates:
    """Of a context's latest forward, until its next; ``width``: numbers of a token's."""

    def __init__(self, context: object, layers: Sequence[int]) -> None:
        """``layers``: whose input is kept; NEXT: what the model's own next-token layers draw from."""
        self._context, self._layers = context, layers
        """Raises Unsupported."""
        model = llama_cpp.llama_get_model(context)
        self._own = llama_cpp.llama_model_n_embd(model)
        if NEXT in layers and llama_cpp.llama_model_n_embd_out(model) != self._own:
            raise Unsupported("the model's states are not as wide as its embedding")
        self.width = self._own * len(layers)
        for layer in layers:
            if layer == NEXT:
                llama_cpp_ext.llama_set_embeddings_nextn(context, True, False)
            else:
                _set_entering(context, layer, True)

    def taken(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Of rows of the batch, [rows, width]."""
        found = np.empty((len(rows), len(self._layers), self._own), np.float32)
        for at, layer in enumerate(self._layers):
            if layer == NEXT:
                pointer = llama_cpp_ext.llama_get_embeddings_nextn(self._context)
            else:
                pointer = _entering(self._context, layer)
            found[:, at] = np.ctypeslib.as_array(pointer, (max(rows) + 1, self._own))[list(rows)]
        return found.reshape(len(rows), self.width)
