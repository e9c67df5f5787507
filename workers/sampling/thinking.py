"""How far an output is with its reasoning: a grammar begins after it, and it may be cut short."""

from __future__ import annotations

from collections.abc import Callable

from hetero.workers.wire.messages import Thinking


class ThinkingState:
    """Follows the committed tokens of one output. ``within``: it reasons now."""

    def __init__(self, spec: Thinking, bytes_of: Callable[[int], bytes]) -> None:
        """``bytes_of`` a token, of control tokens their names."""
        self.within = spec.opened
        self._spec, self._bytes_of = spec, bytes_of
        self._end = spec.end.encode()
        self._tail = b""
        self._count = self._closed = 0
        self._fresh = not spec.opened  # nothing was said yet

    @property
    def begin(self) -> int | None:
        """The token that would begin it now."""
        return self._spec.begin if self._fresh and self._spec.begin >= 0 else None

    @property
    def forced(self) -> int | None:
        """The token that must come next, since the budget is used up."""
        spent = self.within and 0 <= self._spec.budget <= self._count
        return self._spec.closing[self._closed] if spent and self._closed < len(self._spec.closing) else None

    def commit(self, token: int) -> bool:
        """A token was decided; whether it belongs to the reasoning."""
        if token == self.begin:
            self.within, self._fresh = True, False
            return True
        self._fresh = self._fresh and not self._bytes_of(token).strip()
        if not self.within:
            return False
        closing = self.forced == token
        self._closed += closing
        self._count += 1
        self._tail += self._bytes_of(token)
        whole = closing and self._closed == len(self._spec.closing)
        # Models go on after the marker with a line's end, which is no part of the answer.
        self.within = not (whole or (not self._closed and self._end in self._tail))
        self._tail = self._tail[-len(self._end) :]
        return True
