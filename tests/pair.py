"""The built-in pair, for tests."""

from pathlib import Path

import hetero

DATA = Path(hetero.__file__).parent / "data" / "pair"
TARGET = DATA / "target.gguf"
DRAFTER = DATA / "drafter.gguf"
