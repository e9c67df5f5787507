"""What layer-parallel guesses (EasySpec) are worth: how often they are the model's own next token, calibrated and not,
and what a draft forward costs, beside the same model's ordinary forward."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from hetero.bench.quality import held_out, perplexity
from hetero.bench.report import report
from hetero.models import find_model
from hetero.workers.engines.base import Engine, Row
from hetero.workers.engines.registry import EngineSettings, find_engine

_DRAFTED = 3  # tokens guessed behind an exact cache
_DEPTH = 64  # tokens in the cache while forwards are timed
_ROWS = 32


def run(
    models: Sequence[str], sizes: Sequence[int], tokens: int, repeats: int, threads: int, json_file: Path | None,
    plot: Path | None, console: Console,
) -> None:  # fmt: skip
    """``sizes``: layers of a group; ``tokens`` of the text."""
    rows: list[dict[str, Any]] = []
    for name in models:
        model = find_model(name, "drafter")
        text = held_out(model.tokenizer, tokens)
        plain = _engine(model.path, 1, threads, len(text))
        own = _choices(plain, text)
        quality = perplexity(plain, text)
        for size in track(sizes, model.name, console=console, transient=True):
            guessing = _engine(model.path, size, threads, len(text))
            shares = calibrated(guessing, text, own)
            loose = uncalibrated(guessing, text, own)
            one, two = _times((plain, guessing), text, repeats)
            guessing.shutdown()
            rows.append(
                {
                    "model": model.name,
                    "layers": model.shape.layers,
                    "N": size,
                    **{f"agrees at {n + 1}": round(share, 3) for n, share in enumerate(shares)},
                    "never calibrated": round(loose, 3),
                    "ms": 1e3 * two,
                    "ordinary ms": 1e3 * one,
                    "x ordinary": two / one,
                    "perplexity": quality,
                }
            )
        plain.shutdown()
    report("layer-parallel", rows, json_file, console)
    if plot is not None:
        from hetero.bench.plots import agreements

        agreements(rows, plot)


def calibrated(engine: Engine, text: Sequence[int], own: Sequence[int]) -> list[float]:
    """The shares of positions at which the 1st, 2nd, ... guess behind an exact cache is the model's ``own`` choice;
    the text is fed, whatever was guessed."""
    engine.prefill(1, text[:1])
    hits, count, node = [0] * _DRAFTED, 0, 0
    for first in range(1, len(text) - _DRAFTED, _DRAFTED):
        part, tip = text[first : first + _DRAFTED], node
        outcome = engine.extend(_chain(tip, node, part, committed=False))
        for n in range(_DRAFTED):
            hits[n] += int(outcome.logits(n).argmax()) == own[first + n]
        node += _DRAFTED
        engine.commit(1, tip)
        engine.extend(_chain(tip, node, part, committed=True))
        node += _DRAFTED
        engine.commit(1, node)
        count += 1
    engine.close(1)
    return [hit / count for hit in hits]


def uncalibrated(engine: Engine, text: Sequence[int], own: Sequence[int]) -> float:
    """The same share where the cache holds nothing but guesses."""
    engine.prefill(1, text[:1])
    hits, node = 0, 0
    for first in range(1, len(text), _ROWS):
        part = text[first : first + _ROWS]
        outcome = engine.extend(_chain(node, node, part, committed=False))
        hits += sum(int(outcome.logits(n).argmax()) == own[first + n] for n in range(len(part)))
        node += len(part)
        engine.commit(1, node)
    engine.close(1)
    return hits / (len(text) - 1)


def _choices(engine: Engine, text: Sequence[int]) -> list[int]:
    """The model's likeliest token behind each of a text's."""
    found: list[int] = []
    for first in range(0, len(text), engine.limits.chunk):
        part = text[first : first + engine.limits.chunk]
        outcome = engine.prefill(1, part, every=True)
        found += [int(outcome.logits(n).argmax()) for n in range(len(part))]
    engine.close(1)
    return found


def _chain(tip: int, node: int, tokens: Sequence[int], committed: bool) -> list[Row]:
    """Rows below ``tip`` whose nodes follow ``node``."""
    return [Row(1, node + 1 + n, node + n if n else tip, token, committed) for n, token in enumerate(tokens)]


def _times(engines: Sequence[Engine], text: Sequence[int], repeats: int) -> list[float]:
    """Median seconds of a draft forward of one row, engines in turn."""
    times: list[list[float]] = [[] for _ in engines]
    for engine in engines:
        engine.prefill(1, text[:_DEPTH])
    for n in range(repeats + 2):
        for engine, own in zip(engines, times, strict=True):
            began = time.perf_counter()
            engine.extend([Row(1, n + 1, 0, text[_DEPTH])]).logits(0)
            own.append(time.perf_counter() - began)
            engine.commit(1, 0)
    for engine in engines:
        engine.close(1)
    return [statistics.median(own[2:]) for own in times]


def _engine(path: Path, size: int, threads: int, tokens: int) -> Engine:
    settings = EngineSettings(path, threads, sequences=1, context=tokens + 64, draft_nodes=_ROWS, group=size)
    return find_engine("torch").load(settings)
