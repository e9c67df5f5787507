"""Files that come with hetero: the built-in pair of toy models, and the text that benchmarks measure on."""

from __future__ import annotations

from pathlib import Path

PAIR = Path(__file__).parent / "pair"
HELD_OUT = Path(__file__).parent / "held_out.txt"
