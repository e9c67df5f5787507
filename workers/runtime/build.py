"""Which hetero this is: machines that work together must run the same."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent.parent


@cache
def build() -> str:
    """hetero's version, a digest of what workers run, and Python's version: ``0.1.0-5f3a9c21-py3.11``."""
    digest = hashlib.blake2b(digest_size=4)
    for room in ("placement", "workers"):
        for path in sorted((_PACKAGE / room).resolve().rglob("*.py")):
            digest.update(path.read_bytes())
    return f"{version('hetero')}-{digest.hexdigest()}-py{'.'.join(platform.python_version_tuple()[:2])}"
