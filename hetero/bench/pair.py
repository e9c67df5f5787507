"""End to end: hetero's pair against the best llama.cpp gives for the same target on the same cores, in one run.

All contenders are real processes that stay loaded; prompts go to each in turn (A B C A B C), medians are quoted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from hetero.bench.baseline import Baseline, BaselineSpec
from hetero.bench.processes import Pair
from hetero.bench.quality import held_out
from hetero.bench.report import report
from hetero.bench.sizes import sized
from hetero.workers.models.tokenizer import GgufTokenizer
from hetero.workers.runtime.spec import WorkerSpec
from hetero.workers.wire.messages import Sampling

_PROMPT, _OUTPUT = 120, 160  # tokens


@dataclass(frozen=True)
class Figures:
    """One sequence: tokens a second after the first, tokens a target forward committed, share of drafts accepted."""

    rate: float
    length: float
    accepted: float


@dataclass(frozen=True)
class Contender:
    """Something that answers prompts. ``ours``: hetero's, not llama.cpp's; ``weights``: their type."""

    name: str
    ours: bool
    weights: str
    ask: Callable[[list[int], float, int], Figures]
    close: Callable[[], None]


def run(
    size: str, draft: str, cores: list[int], gammas: list[int], prompts: int, repeats: int,
    json_file: Path | None, console: Console,
) -> None:  # fmt: skip
    """Print tokens a second of every contender, at temperature 0.8 and greedy."""
    contenders = [*_baselines(size, draft, cores), *_pairs(size, draft, cores, gammas)]
    tokens = held_out(GgufTokenizer(sized(size, "q8_0")), 1 << 20)
    step = len(tokens) // (prompts + 1)
    starts = [tokens[n * step : n * step + _PROMPT] for n in range(prompts)]
    found: dict[tuple[str, float], list[Figures]] = {}
    try:
        for repeat in range(repeats + 1):
            for temperature in (0.8, 0.0):
                for seed, prompt in enumerate(starts if repeat else starts[:1]):
                    for contender in contenders:
                        figures = contender.ask(prompt, temperature, seed)
                        if repeat:  # the first round warms up
                            found.setdefault((contender.name, temperature), []).append(figures)
    finally:
        for contender in contenders:
            contender.close()
    rows: list[dict[str, Any]] = []
    for temperature in (0.8, 0.0):
        median = {c.name: statistics.median(f.rate for f in found[c.name, temperature]) for c in contenders}
        best = {w: max(median[c.name] for c in contenders if not c.ours and c.weights == w) for w in ("q8_0", "q4_0")}
        for contender in contenders:
            own = found[contender.name, temperature]
            rows.append(
                {
                    "contender": contender.name,
                    "temperature": str(temperature),
                    "tokens/s": median[contender.name],
                    "tokens/forward": round(statistics.mean(f.length for f in own), 2),
                    "accepted %": 100 * statistics.mean(f.accepted for f in own),
                    "x best Q8_0": round(median[contender.name] / best["q8_0"], 2),
                    "x best Q4_0": round(median[contender.name] / best["q4_0"], 2),
                }
            )
    report("pair", rows, json_file, console)


def _baselines(size: str, draft: str, cores: list[int]) -> list[Contender]:
    found = []
    for kind in ("q8_0", "q4_0"):
        target, drafter = str(sized(size, kind)), str(sized(draft, kind))
        modes = {
            "alone": BaselineSpec(target, cores),
            "draft, p-min 0.75": BaselineSpec(target, cores, drafter),
            "draft, 4 tokens": BaselineSpec(target, cores, drafter, 4, 0.0),
        }
        for mode, spec in modes.items():
            process = Baseline(spec)
            found.append(
                Contender(f"llama.cpp {kind.upper()} {mode}", False, kind, _ask_baseline(process), process.close)
            )
    return found


def _pairs(size: str, draft: str, cores: list[int], gammas: list[int]) -> list[Contender]:
    """hetero: the roles on cores of their own, and both on all."""
    found = []
    places = {"own cores": (cores[:-1] or cores, cores[-1:]), "shared cores": (cores, cores)}
    settings = [("off", 1, "shared cores")]
    settings += [(strategy, gamma, "own cores") for strategy in ("serial", "ahead") for gamma in gammas]
    settings += [("serial", gamma, "shared cores") for gamma in gammas]
    for kind, (strategy, gamma, place) in product(("q8_0", "q4_0"), settings):
        target, drafter = str(sized(size, kind)), str(sized(draft, kind))
        own = {"engine": "octet", "strategy": strategy, "gamma": gamma}
        common: dict[str, Any] = {**own, "sequences": 1, "context": 1024}
        mine, theirs = places[place]
        one = WorkerSpec("target", target, cores=mine, **common)
        two = None if strategy == "off" else WorkerSpec("drafter", drafter, cores=theirs, **common)
        pair = Pair(one, two)
        name = f"hetero {kind.upper()} {strategy}" + ("" if strategy == "off" else f" {gamma}") + f", {place}"
        found.append(Contender(name, True, kind, _ask_pair(pair), pair.close))
    return found


def _ask_baseline(process: Baseline) -> Callable[[list[int], float, int], Figures]:
    def ask(prompt: list[int], temperature: float, seed: int) -> Figures:
        got = process.ask(prompt, temperature, seed, _OUTPUT)
        return Figures(
            got["tokens"] / got["seconds"], got["tokens"] / got["forwards"], got["accepted"] / max(1, got["drafted"])
        )

    return ask


def _ask_pair(pair: Pair) -> Callable[[list[int], float, int], Figures]:
    def ask(prompt: list[int], temperature: float, seed: int) -> Figures:
        stats = pair.ask(prompt, Sampling(temperature, 0, 1.0, 0.0, seed, 0), _OUTPUT).stats
        tokens = stats.predicted_n - 1  # the first comes with the prompt
        return Figures(
            1e3 * tokens / stats.predicted_ms,
            tokens / max(1, stats.forwards_n - 1),
            stats.draft_n_accepted / max(1, stats.draft_n),
        )

    return ask
