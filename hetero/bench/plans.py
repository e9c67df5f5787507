"""Foreseen against measured: each plan that the ranking foresees is run, in real processes, prompts in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import track

from hetero.bench.processes import Generation, Pair
from hetero.bench.quality import held_out, perplexity
from hetero.bench.report import report
from hetero.cluster.inventory import take_inventory
from hetero.config import make_config
from hetero.planning.planner import planner_of
from hetero.planning.ranking import Entry, Ranker
from hetero.workers.engines.registry import find_engine
from hetero.workers.runtime.loading import settings_of
from hetero.workers.wire.messages import Sampling

_PROMPT, _QUALITY = 120, 600  # tokens


@dataclass(frozen=True)
class Settings:
    """``streams`` at once, of ``tokens`` each; ``prompts`` of them, ``repeats`` times."""

    tokens: int
    prompts: int
    repeats: int
    streams: int
    most: int


def run(
    pairs: Sequence[tuple[str, str]], settings: Settings, json_file: Path | None, console: Console
) -> list[dict[str, Any]]:
    """Print, for every pair of target and drafter, each plan's tokens a second as foreseen and as measured."""
    rows: list[dict[str, Any]] = []
    verdicts = []
    for target, draft in pairs:
        found = _pair(target, draft, settings, console)
        rows += found
        verdicts.append(_verdict(Path(target).stem, found))
    report("plans", rows, json_file, console)
    for line in verdicts:
        console.print(line, highlight=False)
    return rows


def _pair(target: str, draft: str, settings: Settings, console: Console) -> list[dict[str, Any]]:
    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    values = {"target": target, "draft": draft, "context": 2048, "parallel": settings.streams}
    config, inventory = make_config(values), take_inventory()
    planner = planner_of(config, inventory, say)
    ranking = Ranker(config, inventory, planner, say).rank()
    entries = ranking.entries[: settings.most]
    if all(entry.candidate.drafter is not None for entry in entries):
        entries += tuple(entry for entry in ranking.entries if entry.candidate.drafter is None)
    tokens = held_out(entries[0].plan.target.model.tokenizer, 1 << 20)
    step = len(tokens) // (settings.prompts + 1)
    starts = [tokens[n * step : n * step + _PROMPT] for n in range(settings.prompts)]
    alone: dict[str, list[Generation]] = {str(entry.candidate): [] for entry in entries}
    together: dict[str, list[list[Generation]]] = {str(entry.candidate): [] for entry in entries}
    running: dict[str, Pair] = {}
    try:
        for entry in entries:
            running[str(entry.candidate)] = _start(entry)
        for repeat in range(settings.repeats + 1):
            asked = starts if repeat else starts[:1]
            for seed, prompt in enumerate(track(asked, f"round {repeat}", console=console, transient=True)):
                for name, pair in running.items():
                    one = pair.ask(prompt, _sampling(seed), settings.tokens)
                    if repeat:  # the first round warms up
                        alone[name].append(one)
                    if settings.streams > 1:
                        many = [(prompt, _sampling(100 * seed + n)) for n in range(settings.streams)]
                        found = pair.ask_all(many, settings.tokens // 2)
                        if repeat:
                            together[name].append(found)
    finally:
        for pair in running.values():
            pair.close()
    quality = _perplexity(entries[0], tokens[:_QUALITY])
    rows: list[dict[str, Any]] = []
    for entry in entries:
        own = alone[str(entry.candidate)]
        count = sum(len(one.tokens) - 1 for one in own)
        rate = count / sum(one.seconds for one in own)
        forwards = sum(one.stats.forwards_n for one in own) - len(own)
        row: dict[str, Any] = {
            "target": Path(target).stem,
            "drafter": Path(draft).stem,
            "plan": str(entry.candidate),
            "foreseen": entry.rate,
            "tokens/s": rate,
            "error %": 100 * (entry.rate / rate - 1),
            "foreseen tokens/forward": round(entry.forecast.length, 2),
            "tokens/forward": round(count / max(1, forwards), 2),
            f"foreseen, {settings.streams} streams": entry.together,
            f"tokens/s, {settings.streams} streams": _rate(together[str(entry.candidate)]) or rate,
            "agreement": round(ranking.agreement.alpha, 3),
            "perplexity": quality,
        }
        rows.append(row)
    return rows


def _rate(found: list[list[Generation]]) -> float:
    """Tokens a second of several streams at once."""
    seconds = sum(max(one.seconds for one in many) for many in found)
    return sum(len(one.tokens) - 1 for many in found for one in many) / seconds if found else 0.0


def _sampling(seed: int) -> Sampling:
    return Sampling(0.8, 0, 1.0, 0.0, seed, 0)


def _start(entry: Entry) -> Pair:
    """A plan's workers, without Ray, keys and prefixes."""
    specs = [msgspec.structs.replace(p.spec, secure=False, cached=0, ports=[]) for p in entry.plan.placements]
    return Pair(specs[0], specs[1] if len(specs) > 1 else None)


def _perplexity(entry: Entry, tokens: list[int]) -> float:
    spec = msgspec.structs.replace(entry.plan.target.spec, sequences=1, context=len(tokens) + 64)
    engine = find_engine(spec.engine).load(settings_of(spec))
    found = perplexity(engine, tokens)
    engine.shutdown()
    return round(found, 3)


def _verdict(name: str, rows: list[dict[str, Any]]) -> str:
    errors = sorted(abs(row["error %"]) for row in rows)
    best = max(rows, key=lambda row: row["tokens/s"])
    off = max((row["tokens/s"] for row in rows if row["plan"].startswith("off")), default=0.0)
    chosen = rows[0]
    share, gain = chosen["tokens/s"] / best["tokens/s"], best["tokens/s"] / off
    return (
        f"{name}: {len(rows)} plans, error {median(errors):.1f} % (median), {errors[-1]:.1f} % (worst); "
        f"the one chosen, {chosen['plan']}, ran at {100 * share:.0f} % of the best, {best['plan']}, "
        f"which is {gain:.2f} x plain decoding"
    )
