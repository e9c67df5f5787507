"""Messages to bytes and back: msgpack makes and reads the bytes, msgspec checks them into typed structs."""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec

from hetero.workers.errors import WireError
from hetero.workers.wire.messages import MAX_FRAME, MAX_TOKENS, Message


def encode(message: Message) -> bytes:
    """The frame of one message."""
    frame: bytes = msgpack.packb(msgspec.to_builtins(message))
    return frame


def decode(frame: bytes) -> Message:
    """The message of one frame. Raises WireError for anything else than one known, bounded message."""
    if len(frame) > MAX_FRAME:
        raise WireError(f"a frame of {len(frame)} bytes exceeds the limit of {MAX_FRAME}")
    try:
        raw: Any = msgpack.unpackb(
            frame,
            strict_map_key=True,
            max_array_len=MAX_TOKENS,
            max_map_len=64,
            max_str_len=1 << 20,
            max_bin_len=0,
            max_ext_len=0,
        )
        message: Message = msgspec.convert(raw, Message)
    except (msgpack.UnpackException, msgspec.ValidationError, ValueError, RecursionError) as error:
        raise WireError(f"not a message of hetero: {error}") from None
    return message
