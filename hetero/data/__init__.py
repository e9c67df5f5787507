"""Files that come with hetero: the built-in pair of toy models."""

from __future__ import annotations

from pathlib import Path

PAIR = Path(__file__).parent / "pair"
