"""What a doctor finds."""

from __future__ import annotations

from dataclasses import dataclass

GOOD, ODD, BAD = "ok", "note", "PROBLEM"


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, its state, what was found, and what to do about it."""

    what: str
    state: str
    found: str
    fix: str = ""
