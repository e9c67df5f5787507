"""T(n): milliseconds to check n rows, engine by engine on the same file, beside the machine's floor.

The floor of n rows is what this machine cannot beat: the time to read the file's weights and the cached keys and values
once at the bandwidth measured here, or to do the multiply-adds at the rate measured here, whichever is longer.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from hetero.bench.quality import held_out, perplexity
from hetero.bench.report import report
from hetero.bench.rows import WIDTHS, Times, timed
from hetero.bench.sizes import SIZES, sized
from hetero.placement.memory import F16, Q8_0, KvCache, kv_bytes
from hetero.workers.engines.base import Engine
from hetero.workers.engines.llama_cpp.engine import LlamaEngine, LlamaSettings
from hetero.workers.engines.octet.engine import OctetEngine, OctetSettings
from hetero.workers.engines.octet.library import library, path, why_not
from hetero.workers.engines.registry import find_engine
from hetero.workers.models.metadata import read_metadata
from hetero.workers.models.model import read_model
from hetero.workers.models.tokenizer import GgufTokenizer
from hetero.workers.runtime.pinning import pin

_PREFILL = 512  # tokens of the prompt that is timed
_QUALITY = 600  # tokens whose perplexity is measured


def run(
    models: list[str], threads: list[int], depths: list[int], caches: list[str], busy: int, repeats: int,
    json_file: Path | None, console: Console,
) -> None:  # fmt: skip
    """Print T(n) of each engine, interleaved, with prefill, perplexity and memory; ``models``: inflated sizes or GGUF
    files; ``depths``: tokens in the cache while rows are checked; ``caches``: how they are kept; ``busy``: other
    processes that want the cores."""
    rows: list[dict[str, Any]] = []
    for file, count, depth, kept in product((f for model in models for f in _files(model)), threads, depths, caches):
        # A process of its own: cores are pinned and libraries count their threads at the start.
        command = [sys.executable, "-P", "-m", "hetero.bench.engines", str(file), kept]
        command += [str(number) for number in (count, depth, repeats)]
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        finally:
            for other in others:
                other.kill()
                other.wait()
        rows.extend(json.loads(found.stdout))
    report("engines", rows, json_file, console)
    cases: dict[tuple[str, int, int, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault((row["model"], row["threads"], row["depth"], row["cache"]), {})[row["engine"]] = row
    for (model, count, depth, kept), own in cases.items():
        if "octet" not in own:
            continue
        mine, theirs = own["octet"], own["llama_cpp"]
        console.print(
            f"{model}, {count} thread(s), {depth} positions ({kept}): octet checks 8 rows in {mine['T(8)']:.1f} ms: "
            f"{mine['T(8)'] / theirs['T(8)']:.2f} x llama.cpp's 8 rows, {mine['T(8)'] / mine['T(1)']:.2f} x its own "
            f"single row, which is {mine['T(1)'] / theirs['T(1)']:.2f} x llama.cpp's; perplexity "
            f"{mine['perplexity']:.3f} and {theirs['perplexity']:.3f}",
            highlight=False,
        )


def _files(model: str) -> list[Path]:
    """A GGUF file, or those of an inflated size."""
    return [sized(model, kind) for kind in ("q4_0", "q8_0")] if model in SIZES else [Path(model)]


def measure(file: Path, kept: KvCache, threads: int, depth: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of the report for one file; to be called in a fresh process."""
    context = max(depth, _PREFILL, _QUALITY) + 2 * max(WIDTHS)
    engines: dict[str, Callable[[], Engine]] = {
        "llama_cpp": lambda: LlamaEngine(file, LlamaSettings(threads, 1, context, kv_cache=kept))
    }
    if why_not() is None:
        engines["octet"] = lambda: OctetEngine(file, OctetSettings(threads, 1, context, kv_cache=kept))
    tokens = held_out(GgufTokenizer(file), max(depth + max(WIDTHS), _PREFILL))
    loaded, memory = {}, {}
    for name, make in engines.items():
        before = psutil.Process().memory_full_info().uss
        loaded[name] = make()
        _prefill(loaded[name], tokens[:32])  # what an engine makes at its first forward
        memory[name] = psutil.Process().memory_full_info().uss - before
    times: Times = {}
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for _ in timed(loaded, tokens, repeats, times, depth):
        pass
    for _ in range(max(2, repeats // 3)):
        for name, engine in loaded.items():
            rates[name].append(_PREFILL / _prefill(engine, tokens[:_PREFILL]))
    common: dict[str, Any] = {
        "model": f"{file.stem} {read_metadata(file).quantisation}", "threads": threads, "depth": depth,
        "cache": kept,
    }  # fmt: skip
    found: list[dict[str, Any]] = []
    for name, engine in loaded.items():
        figures = {f"T({n})": statistics.median(times[name][n]) * 1e3 for n in WIDTHS}
        quality = round(perplexity(engine, held_out(GgufTokenizer(file), _QUALITY)), 3)
        found.append(
            {
                **common, "engine": name, **figures, "prefill": statistics.median(rates[name]), "perplexity": quality,
                "MiB": round(memory[name] / 2**20),
            }
        )  # fmt: skip
    if "octet" in loaded:
        floor = _floor(file, threads, depth, find_engine("octet").kv_width("", kept))
        none = {"prefill": 0.0, "perplexity": 0.0, "MiB": 0}
        share = {f"T({n})": 100 * floor[n] / found[-1][f"T({n})"] for n in WIDTHS}
        found.append({**common, "engine": "floor", **{f"T({n})": floor[n] for n in WIDTHS}, **none})
        found.append({**common, "engine": f"octet ({path()[1]}), % of floor", **share, **none})
    return found


def _prefill(engine: Engine, tokens: list[int]) -> float:
    """Seconds of a prompt."""
    began = time.perf_counter()
    for first in range(0, len(tokens), engine.limits.chunk):
        engine.prefill(2, tokens[first : first + engine.limits.chunk]).logits(0)
    seconds = time.perf_counter() - began
    engine.close(2)
    return seconds


def _floor(file: Path, threads: int, depth: int, width: float) -> dict[int, float]:
    """Milliseconds no engine can beat here: the bytes of file and cache (``width`` a number), or the operations."""
    lib = library()
    assert lib is not None
    shape, numbers = read_model(file).shape, read_metadata(file)
    memory = np.ones(1 << 29, np.uint8)
    read = max(lib.octet_bandwidth(memory.ctypes.data, memory.nbytes, threads, 2) for _ in range(3))
    rate = max(lib.octet_arithmetic(path()[0], threads, 2_000_000) for _ in range(3))
    data = shape.weights + depth * kv_bytes(shape, width)
    layers = shape.parameters - shape.vocabulary * numbers.width  # the embedding is looked up
    attention = 2 * depth * numbers.layers * numbers.heads * numbers.head * 4  # floats: a quarter of bytes' rate
    return {n: 1e3 * max(data / read, n * (layers + attention) / rate) for n in WIDTHS}


if __name__ == "__main__":
    pin(range(int(sys.argv[3])), [])
    print(json.dumps(measure(Path(sys.argv[1]), Q8_0 if sys.argv[2] == Q8_0 else F16, *map(int, sys.argv[3:6]))))
