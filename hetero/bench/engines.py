"""T(n): milliseconds to check n rows, engine by engine on the same model, beside the machine's floor.

The floor of n rows is what this machine cannot beat: the time to read the weights once at the bandwidth measured
here, or to do their multiply-adds at the rate measured here, whichever is longer.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from hetero.bench.onednn import LinearLayers
from hetero.bench.quality import held_out, perplexity
from hetero.bench.report import report
from hetero.bench.rows import CONTEXT, PREFIX, WIDTHS, Times, timed
from hetero.bench.sizes import sized
from hetero.workers.engines.base import Engine
from hetero.workers.engines.llama_cpp import LlamaEngine, LlamaSettings
from hetero.workers.engines.octet.engine import OctetEngine, OctetSettings
from hetero.workers.engines.octet.library import library, why_not
from hetero.workers.engines.octet.source import open_source
from hetero.workers.models.tokenizer import GgufTokenizer
from hetero.workers.runtime.pinning import pin


def run(sizes: list[str], threads: list[int], repeats: int, json_file: Path | None, console: Console) -> None:
    """Print T(n) of each engine, interleaved, and its perplexity."""
    rows: list[dict[str, Any]] = []
    for size in sizes:
        for count in threads:
            # A process of its own: cores are pinned and libraries count their threads at the start.
            command = [sys.executable, "-P", "-m", "hetero.bench.engines", size, str(count), str(repeats)]
            found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.extend(json.loads(found.stdout))
    report("engines", rows, json_file, console)
    for size in sizes:
        for count in threads:
            own = {row["engine"]: row for row in rows if (row["model"], row["threads"]) == (size, count)}
            if "octet" in own:
                others = {name: row for name, row in own.items() if name.startswith("llama.cpp")}
                best = min(row["T(8)"] for row in others.values())
                single = own["llama.cpp Q8_0"]["T(1)"]
                mine = own["octet"]["T(8)"]
                console.print(
                    f"{size}, {count} thread(s): octet checks 8 rows in {mine:.1f} ms: {mine / single:.2f} x llama.cpp "
                    f"Q8_0's single row, {mine / best:.2f} x llama.cpp's best 8 rows",
                    highlight=False,
                )


def measure(size: str, threads: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of the report for one model and thread count; to be called in a fresh process."""
    engines: dict[str, Callable[[], Engine]] = {
        f"llama.cpp {kind.upper()}": lambda kind=kind: _llama(size, kind, threads)  # type: ignore[misc]
        for kind in ("q4_0", "q8_0", "bf16")
    }
    if why_not() is None:
        for bits, name in ((8, "octet"), (4, "octet4")):
            settings = OctetSettings(threads, 1, CONTEXT, bits=bits)
            engines[name] = lambda settings=settings: OctetEngine(sized(size, "bf16"), settings)  # type: ignore[misc]
    loaded = {name: make() for name, make in engines.items()}
    times: Times = {}
    linears = LinearLayers(open_source(sized(size, "q8_0")).numbers, threads)
    linear_times: dict[int, list[float]] = {n: [] for n in WIDTHS}
    tokens = held_out(GgufTokenizer(sized(size, "q8_0")), PREFIX + max(WIDTHS))
    for _ in timed(loaded, tokens, repeats, times):
        for width in WIDTHS:  # the library alternative, in the same rounds
            linear_times[width].append(linears.seconds(width))
    found: list[dict[str, Any]] = []
    for name, engine in loaded.items():
        found.append(
            {
                "model": size,
                "threads": threads,
                "engine": name,
                **{f"T({n})": statistics.median(times[name][n]) * 1e3 for n in WIDTHS},
                "perplexity": round(perplexity(engine, held_out(GgufTokenizer(sized(size, "q8_0")), 600)), 3),
            }
        )
    common: dict[str, Any] = {"model": size, "threads": threads}
    linear = {f"T({n})": statistics.median(linear_times[n][1:]) * 1e3 for n in WIDTHS}
    found.append({**common, "engine": "oneDNN int8, linears alone", **linear, "perplexity": 0.0})
    floor = _floor(size, threads)
    if floor:
        mine = next(row for row in found if row["engine"] == "octet")
        share = {f"T({n})": 100 * floor[n] / mine[f"T({n})"] for n in WIDTHS}
        found.append(
            {**common, "engine": "floor of 8 bits", **{f"T({n})": floor[n] for n in WIDTHS}, "perplexity": 0.0}
        )
        found.append({**common, "engine": "octet, % of floor", **share, "perplexity": 0.0})
    return found


def _llama(size: str, kind: str, threads: int) -> Engine:
    return LlamaEngine(sized(size, kind), LlamaSettings(threads, sequences=1, context=CONTEXT))


def _floor(size: str, threads: int) -> dict[int, float]:
    """Milliseconds no int8 engine can beat on this machine; empty where the kernel cannot measure it."""
    lib = library()
    if lib is None or why_not() is not None:
        return {}
    weights = sized(size, "q8_0").stat().st_size * 32 / 34  # Q8_0 blocks: 34 bytes for 32 weights
    memory = np.ones(1 << 29, np.uint8)
    read = max(lib.octet_bandwidth(memory.ctypes.data, memory.nbytes, threads, 2) for _ in range(3))
    rate = max(lib.octet_arithmetic(threads, 20_000_000) for _ in range(3))
    return {n: 1e3 * max(weights / read, n * weights / rate) for n in WIDTHS}


if __name__ == "__main__":
    pin(range(int(sys.argv[2])), None)
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
