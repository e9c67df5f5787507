"""Where a text ends, and which part of it may be shown: a pure matcher over token bytes."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class StopMatcher:
    """Feeds on the bytes of one token after another; releases text that no stop string can still claim.

    A stop string may span tokens: bytes that begin one are held back until it is ruled out. A UTF-8 character is
    released whole; bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop.encode() for stop in stops if stop)
        self._held = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.matched = ""

    def feed(self, piece: bytes) -> str:
        """Take one token's bytes, return the text this releases. After a match ``matched`` is what was found.

        The match that ends first wins (the longest of those that end together), whatever the token borders.
        """
        data = self._held + piece
        ends = [(at + len(stop), at) for stop in self._stops if (at := data.find(stop)) >= 0]
        if ends:
            end, at = min(ends)
            self.matched = data[at:end].decode()
            self._held = b""
            return self._decoder.decode(data[:at], final=True)
        keep = self._claimed(data)
        self._held = data[len(data) - keep :]
        return self._decoder.decode(data[: len(data) - keep])

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return bool(self.matched)

    def flush(self) -> str:
        """The rest of the text, when it ends for another reason than a stop string."""
        data, self._held = self._held, b""
        return self._decoder.decode(data, final=True)

    def _claimed(self, data: bytes) -> int:
        """Length of the longest end of ``data`` that begins a stop string."""
        return max((self._begun(stop, data) for stop in self._stops), default=0)

    def _begun(self, stop: bytes, data: bytes) -> int:
        """Length of the longest end of ``data`` that begins this one."""
        sizes = range(min(len(stop) - 1, len(data)), 0, -1)
        return next((size for size in sizes if data.endswith(stop[:size])), 0)
