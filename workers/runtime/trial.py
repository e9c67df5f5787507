"""How fast an engine runs a model on some cores: ``python -m hetero.workers.runtime.trial ENGINE MODEL CORES WEIGHTS``,
in a process of its own that may die of it.

Prints seconds of a forward by its rows, as JSON. Exit status 3: the engine does not run this model, the line says why.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

from hetero.placement.errors import HeteroError
from hetero.workers.engines.base import Row
from hetero.workers.engines.registry import EngineSettings, find_engine
from hetero.workers.errors import Unsupported
from hetero.workers.runtime.pinning import pin

WIDTHS = (1, 4, 8)
NOT_THIS_MODEL = 3  # exit status
_PROMPT = 48
_REPEATS, _LONGEST = 7, 2.0  # forwards of a width, or seconds of them


def main(name: str, model: str, cores: list[int], weights: str) -> int:
    """Load, prefill, and time windows."""
    entry = find_engine(name)
    try:
        engine = entry.load(EngineSettings(Path(model), len(cores), sequences=1, context=512, weights=weights))
    except HeteroError as error:
        print(error)
        return NOT_THIS_MODEL if isinstance(error, Unsupported) else 1
    tokens = [token % engine.limits.vocabulary for token in range(100, 100 + _PROMPT)]
    engine.prefill(1, tokens)
    node, found = 1, {}
    for width in WIDTHS:
        times: list[float] = []
        began = time.perf_counter()
        while len(times) <= _REPEATS and (len(times) < 3 or time.perf_counter() - began < _LONGEST):
            rows = [Row(1, node + n, node + n - 1 if n else 0, tokens[n]) for n in range(width)]
            node += width
            start = time.perf_counter()
            engine.extend(rows).logits(width - 1)
            times.append(time.perf_counter() - start)
            engine.commit(1, 0)
        found[str(width)] = statistics.median(times[1:])  # the first warms up
    engine.shutdown()
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    asked = json.loads(sys.argv[3])
    pin(asked, None)
    sys.exit(main(sys.argv[1], sys.argv[2], asked, sys.argv[4]))
