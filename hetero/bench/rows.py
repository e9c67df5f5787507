"""T(n): the seconds of a forward of n rows, of several engines in turn."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from hetero.workers.engines.base import Engine, Row

WIDTHS = (1, 2, 4, 8, 16, 32)
CONTEXT = 1024
PREFIX = 256  # tokens in the cache while the rows are timed, if nothing else is said

_SETTLED = 0.05  # seconds: the engine before may still spin on the cores, waiting for work that does not come

Times = dict[str, dict[int, list[float]]]


def timed(
    engines: Mapping[str, Engine], tokens: Sequence[int], repeats: int, times: Times, depth: int = PREFIX
) -> Iterator[None]:
    """Adds to ``times`` (engine -> n -> seconds); yields after each round, for others to be timed between.

    ``depth``: tokens in the cache; ``tokens``: at least those and the widest row's. The first of ``repeats`` + 1 rounds
    warms up and is not kept.
    """
    for name, engine in engines.items():
        times[name] = {width: [] for width in WIDTHS}
        for first in range(0, depth, engine.limits.chunk):
            engine.prefill(1, tokens[first : min(first + engine.limits.chunk, depth)])
    node = 1
    for repeat in range(repeats + 1):
        for name, engine in engines.items():
            time.sleep(_SETTLED)
            for count, width in enumerate((1, *WIDTHS)):
                rows = [Row(1, node + n, node + n - 1 if n else 0, tokens[depth + n]) for n in range(width)]
                node += width
                began = time.perf_counter()
                engine.extend(rows).logits(width - 1)
                if repeat and count:  # the first of each round warms up, too
                    times[name][width].append(time.perf_counter() - began)
                engine.commit(1, 0)
        yield
    for engine in engines.values():
        engine.close(1)
