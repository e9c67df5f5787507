"""One engine tries itself: ``python -m hetero.workers.engines.selftest ENGINE MODEL``, in a process that may die of it.

Prints one line. Exit status 0: it works; 3: it is not for this machine, the line says why; else it is broken.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from hetero.workers.engines.base import Row
from hetero.workers.engines.registry import EngineSettings, find_engine

_ROWS = 8


def main(name: str, model: str) -> int:
    """Load, prefill, check a window, and time one row."""
    entry = find_engine(name)
    if (reason := entry.objection("cpu", here=True)) is not None:
        print(reason)
        return 3
    engine = entry.load(EngineSettings(Path(model), os.cpu_count() or 1, sequences=1, context=256))
    prompt = [token % engine.limits.vocabulary for token in range(5, 5 + _ROWS)]
    engine.prefill(1, prompt)
    outcome = engine.extend([Row(1, node, node - 1, 7) for node in range(1, _ROWS + 1)])
    finite = all(np.isfinite(outcome.logits(row)).all() for row in range(_ROWS))
    began = time.perf_counter()
    engine.extend([Row(1, _ROWS + 1, _ROWS, 7)])
    took = time.perf_counter() - began
    engine.shutdown()
    works = f"works ({entry.variant()})" if entry.variant() else "works"
    print(
        f"{works}, {1e3 * took:.2f} ms a token of the tiny model" if finite else "computes numbers that are not finite"
    )
    return 0 if finite else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
