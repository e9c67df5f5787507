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
from hetero.bench.sizes import SIZES, sized
from hetero.workers.engines.base import Engine
from hetero.workers.engines.llama_cpp import LlamaEngine, LlamaSettings
from hetero.workers.engines.octet.engine import OctetEngine, OctetSettings
from hetero.workers.engines.octet.library import library, why_not
from hetero.workers.engines.octet.source import open_source
from hetero.workers.models.metadata import read_metadata
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
        if size not in SIZES:
            continue
        for count in threads:
            own = {row["engine"]: row for row in rows if (row["model"], row["threads"]) == (size, count)}
            if "octet" not in own:
                continue
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
    """Rows of the report for one model (an inflated size, or a GGUF file) and thread count; to be called in a fresh
    process."""
    inflated = size in SIZES
    engines: dict[str, Callable[[], Engine]] = {
        name: lambda path=path: LlamaEngine(path, LlamaSettings(threads, sequences=1, context=CONTEXT))  # type: ignore[misc]
        for name, path in _llama_files(size).items()
    }
    source = sized(size, "bf16") if inflated else Path(size)
    if why_not() is None:
        for bits, name in ((8, "octet"), (4, "octet4")):
            settings = OctetSettings(threads, 1, CONTEXT, bits=bits)
            engines[name] = lambda settings=settings: OctetEngine(source, settings)  # type: ignore[misc]
    loaded = {name: make() for name, make in engines.items()}
    times: Times = {}
    tokenizer = GgufTokenizer(source)
    linears = LinearLayers(open_source(source).numbers, threads) if inflated else None
    linear_times: dict[int, list[float]] = {n: [] for n in WIDTHS}
    for _ in timed(loaded, held_out(tokenizer, PREFIX + max(WIDTHS)), repeats, times):
        for width in WIDTHS if linears is not None else ():  # the library alternative, in the same rounds
            assert linears is not None
            linear_times[width].append(linears.seconds(width))
    common: dict[str, Any] = {"model": size if inflated else source.stem, "threads": threads}
    found: list[dict[str, Any]] = []
    for name, engine in loaded.items():
        figures = {f"T({n})": statistics.median(times[name][n]) * 1e3 for n in WIDTHS}
        quality = round(perplexity(engine, held_out(tokenizer, 600)), 3)
        found.append({**common, "engine": name, **figures, "perplexity": quality})
    if linears is not None:
        linear = {f"T({n})": statistics.median(linear_times[n][1:]) * 1e3 for n in WIDTHS}
        found.append({**common, "engine": "oneDNN int8, linears alone", **linear, "perplexity": 0.0})
    # Q8_0 blocks: 34 bytes for 32 weights.
    weights = sized(size, "q8_0").stat().st_size * 32 / 34 if inflated else float(source.stat().st_size)
    floor = _floor(weights, threads)
    if floor:
        mine = next(row for row in found if row["engine"] == "octet")
        share = {f"T({n})": 100 * floor[n] / mine[f"T({n})"] for n in WIDTHS}
        what = "floor of 8 bits" if inflated else "floor of the file's bytes, int8 operations"
        found.append({**common, "engine": what, **{f"T({n})": floor[n] for n in WIDTHS}, "perplexity": 0.0})
        found.append({**common, "engine": "octet, % of floor", **share, "perplexity": 0.0})
    return found


def _llama_files(size: str) -> dict[str, Path]:
    """The files that llama.cpp runs, by the contender's name."""
    if size in SIZES:
        return {f"llama.cpp {kind.upper()}": sized(size, kind) for kind in ("q4_0", "q8_0", "bf16")}
    return {f"llama.cpp {read_metadata(Path(size)).quantisation}": Path(size)}


def _floor(weights: float, threads: int) -> dict[int, float]:
    """Milliseconds no int8 engine can beat here with ``weights`` bytes; empty where the kernel cannot measure it."""
    lib = library()
    if lib is None or why_not() is not None:
        return {}
    memory = np.ones(1 << 29, np.uint8)
    read = max(lib.octet_bandwidth(memory.ctypes.data, memory.nbytes, threads, 2) for _ in range(3))
    rate = max(lib.octet_arithmetic(threads, 20_000_000) for _ in range(3))
    return {n: 1e3 * max(weights / read, n * weights / rate) for n in WIDTHS}


if __name__ == "__main__":
    pin(range(int(sys.argv[2])), None)
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
