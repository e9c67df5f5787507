"""What happened when: spans and marks on lanes. Who keeps them is not the state machines' affair."""

from __future__ import annotations

from typing import Any, Protocol


class Trace(Protocol):
    """Takes events. Times are seconds of the monotonic clock that the workers of one machine share."""

    def span(self, lane: str, name: str, begin: float, end: float, **facts: Any) -> None:
        """Something lasted from ``begin`` to ``end``."""

    def mark(self, lane: str, name: str, at: float, **facts: Any) -> None:
        """Something happened."""
