"""Messages to bytes and back: msgpack makes the bytes, msgspec reads them straight into typed structs.

Nothing is built of what no message has: a frame of millions of empty lists is refused at the first of them.
"""

from __future__ import annotations

import logging
import time
from typing import TypeVar

import msgpack
import msgspec

from hetero.workers.errors import WireError
from hetero.workers.wire.messages import MAX_FRAME, Message

_reader = msgspec.msgpack.Decoder(Message)
_Kind = TypeVar("_Kind")
_QUIET = 10.0  # seconds between two lines about dropped frames


def encode(message: Message) -> bytes:
    """The frame of one message."""
    frame: bytes = msgpack.packb(msgspec.to_builtins(message, builtin_types=(bytes,)))
    return frame


def decode(frame: bytes) -> Message:
    """The message of one frame. Raises WireError for anything else than one known, bounded message."""
    message: Message = checked(_reader, frame)
    return message


def checked(reader: msgspec.msgpack.Decoder[_Kind], frame: bytes) -> _Kind:
    """What a reader makes of a frame. Raises WireError for anything else than one of its kinds, and for too much."""
    if len(frame) > MAX_FRAME:
        raise WireError(f"a frame of {len(frame)} bytes exceeds the limit of {MAX_FRAME}")
    try:
        return reader.decode(frame)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise WireError(f"not a message of hetero: {error}") from None


class Drops:
    """Counts frames that were no message, and tells of them: a line every ten seconds at most."""

    def __init__(self, log: logging.Logger) -> None:
        self.count = 0
        self._log, self._told, self._said = log, -_QUIET, 0

    def add(self, frame: bytes, why: WireError) -> None:
        self.count += 1
        now = time.monotonic()
        if now - self._told >= _QUIET:
            self._log.warning("dropped %d frames, the last of %d bytes: %s", self.count - self._said, len(frame), why)
            self._told, self._said = now, self.count
