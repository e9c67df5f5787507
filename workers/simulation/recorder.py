"""Keeps what a simulated schedule did, for pictures and tests."""

from __future__ import annotations

from typing import Any


class Recorder:
    """A ``Trace`` that keeps its events in memory."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, float, float, dict[str, Any]]] = []
        self.marks: list[tuple[str, str, float, dict[str, Any]]] = []

    def span(self, lane: str, name: str, begin: float, end: float, **facts: Any) -> None:
        self.spans.append((lane, name, begin, end, facts))

    def mark(self, lane: str, name: str, at: float, **facts: Any) -> None:
        self.marks.append((lane, name, at, facts))
