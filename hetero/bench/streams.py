"""Batches for real: several streams at once on a real model, with drafts and without, and whether their texts stay.

Each stream has a prompt and a seed of its own; its text is compared with what the target says to it alone, with all
cores and without drafts. Papers on speculative decoding of batches report 95 % equal texts (EXSPEC, Zhang et al. 2025).
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from hetero.bench.processes import Generation, Pair
from hetero.bench.prompts import chat_prompts
from hetero.bench.quality import engine_perplexities, held_out
from hetero.bench.report import report
from hetero.workers.models.tokenizer import GgufTokenizer
from hetero.workers.runtime.spec import WorkerSpec
from hetero.workers.wire.messages import Sampling

_CONTEXT, _SHORT = 1024, 100  # tokens; of a prompt
_QUALITY = 600  # tokens whose perplexity is measured


@dataclass
class _Found:
    """Of a contender with so many streams: seconds and texts of each round."""

    seconds: list[float] = field(default_factory=list)
    runs: list[list[Generation]] = field(default_factory=list)


def run(
    target: Path, draft: Path, engine: str, streams: Sequence[int], cores: list[int], tokens: int, temperature: float,
    repeats: int, json_file: Path | None, console: Console,
) -> list[dict[str, Any]]:  # fmt: skip
    """Print, for each number of streams, tokens a second of all and how many texts are those of streams alone."""
    tokenizer, most = GgufTokenizer(target), max(streams)
    quality = engine_perplexities(target, (engine,), len(cores), held_out(tokenizer, _QUALITY))[engine]
    # Long prompts would be most of the time, and are not what is asked about.
    short = [one for one in asyncio.run(chat_prompts(tokenizer, 1000, _CONTEXT)) if len(one[1]) <= _SHORT]
    prompts = [short[n % len(short)] for n in range(most)]
    asked = [(prompt, Sampling(temperature, 0, 1.0, 0.0, 100 + n, 0)) for n, (_, prompt) in enumerate(prompts)]
    pairs = _pairs(target, draft, engine, most, cores)
    found = {(name, count): _Found() for count in streams for name in pairs}
    try:
        alone = [
            pairs["plain"].ask(*one, tokens).tokens for one in track(asked, "alone", console=console, transient=True)
        ]
        for repeat in range(repeats + 1):
            for count in streams:
                for name, pair in pairs.items():
                    console.print(f"round {repeat}: {count} streams, {name}", style="dim")
                    runs = pair.ask_all(asked[:count], tokens)
                    if repeat or repeats == 0:  # the first round warms up, and learns
                        found[name, count].runs.append(runs)
                        found[name, count].seconds.append(max(one.seconds for one in runs))
    finally:
        for pair in pairs.values():
            pair.close()
    rows = [_row(found, name, count, alone, quality) for count in streams for name in pairs]
    report(f"streams: {target.stem} + {draft.stem}, temperature {temperature}", rows, json_file, console)
    return rows


def _row(
    found: dict[tuple[str, int], _Found], name: str, count: int, alone: list[list[int]], quality: float
) -> dict[str, Any]:
    own, plain = found[name, count], found["plain", count]
    runs = [one for round_ in own.runs for one in round_]
    equal = sum(one.tokens == alone[n] for round_ in own.runs for n, one in enumerate(round_))
    rates = [
        sum(len(one.tokens) - 1 for one in round_) / seconds
        for round_, seconds in zip(own.runs, own.seconds, strict=True)
    ]
    gains = [theirs / mine for theirs, mine in zip(plain.seconds, own.seconds, strict=True)]
    predicted = sum(one.stats.predicted_n for one in runs)
    return {
        "streams": count,
        "decoding": name,
        "tokens/s": statistics.median(rates),
        "x plain": round(statistics.median(gains), 2),
        "tokens/forward of a stream": round(predicted / max(1, sum(one.stats.forwards_n for one in runs)), 2),
        "speculated %": 100 * (1 - sum(one.stats.plain_n for one in runs) / predicted) if name != "plain" else 0.0,
        "texts as alone": f"{equal}/{len(runs)}",
        "perplexity": round(quality, 3),
    }


def _pairs(target: Path, draft: Path, engine: str, most: int, cores: list[int]) -> dict[str, Pair]:
    """Plain decoding and lookup with all cores, a drafter on the last one."""
    common: dict[str, Any] = {"engine": engine, "sequences": most, "context": _CONTEXT}
    mine, theirs = cores[:-1] or cores, cores[-1:]
    whole = {"strategy": "off", "gamma": 0, "cores": cores, **common}
    ahead = {"strategy": "ahead", "gamma": 0, **common}
    return {
        "plain": Pair(WorkerSpec("target", str(target), **whole), None),
        "lookup": Pair(WorkerSpec("target", str(target), lookup=True, **whole), None),
        "drafter + lookup": Pair(
            WorkerSpec("target", str(target), cores=mine, lookup=True, **ahead),
            WorkerSpec("drafter", str(draft), cores=theirs, **ahead),
        ),
    }
