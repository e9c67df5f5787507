"""The built-in pair, for tests."""

from pathlib import Path

import hetero

DATA = Path(hetero.__file__).parent / "data" / "pair"
TARGET = DATA / "target.gguf"
DRAFTER = DATA / "drafter.gguf"

PROMPTS = [
    "import os\n\n\ndef walk(path):\n    ",
    "class RunningServer:\n    def __init__(self):\n        ",
    "def test_addition():\n    assert ",
    "# Copyright\nfrom __future__ import annotations\n",
]

NO_END = {"0": -100, "2": -100}  # a logit_bias under which the target never ends a text by itself
