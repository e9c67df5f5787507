"""A chat of many turns, with finished sequences kept as prefixes and without, interleaved, in real processes.

Each turn's prompt is everything said before and a new message, so without a cache the whole of it is evaluated again.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import track

from hetero.bench.processes import Generation, Pair
from hetero.bench.quality import held_out
from hetero.bench.report import report
from hetero.bench.speed import find
from hetero.workers.models.tokenizer import load_tokenizer
from hetero.workers.runtime.spec import WorkerSpec
from hetero.workers.wire.messages import Sampling

_CONTEXT = 2048
_KEPT = 8192  # tokens of prefixes a role may keep


def run(
    target_name: str, draft_name: str, engine: str, turns: int, message: int, answer: int, cores: list[int],
    repeats: int, json_file: Path | None, console: Console,
) -> list[dict[str, Any]]:  # fmt: skip
    """Print, per turn, the prompt's tokens, how many were evaluated, and the milliseconds until the first token."""
    target, draft = find(target_name, "target"), find(draft_name, "drafter")
    said = held_out(load_tokenizer(target), turns * message)
    pairs = {name: _pair(target, draft, engine, cores, kept) for name, kept in (("kept", _KEPT), ("not kept", 0))}
    found: dict[str, list[list[Generation]]] = {name: [[] for _ in range(turns)] for name in pairs}
    try:
        for repeat in range(repeats + 1):
            talks: dict[str, list[int]] = {name: [] for name in pairs}
            for turn in track(range(turns), f"round {repeat}", console=console, transient=True):
                for name, pair in pairs.items():
                    # Each round is another chat: nothing of it may be cached from the round before.
                    new = said[turn * message : (turn + 1) * message]
                    prompt = talks[name] + ([3 + repeat, *new] if turn == 0 else new)
                    run_ = pair.ask(prompt, Sampling(0.8, 0, 1.0, 0.0, 1000 * repeat + turn, 0), answer)
                    talks[name] = prompt + run_.tokens
                    if repeat:  # the first round warms up
                        found[name][turn].append(run_)
    finally:
        for pair in pairs.values():
            pair.close()
    rows = [_row(turn, found["kept"][turn], found["not kept"][turn]) for turn in range(turns)]
    title = f"chat: {target_name} + {draft_name}, {engine}, {turns} turns of {message} + {answer} tokens"
    report(title, rows, json_file, console)
    total = [sum(float(row[f"prompt ms, {name}"]) for row in rows) for name in ("kept", "not kept")]
    console.print(f"prompts of all turns: {total[0]:.0f} ms kept, {total[1]:.0f} ms not kept", highlight=False)
    return rows


def _pair(target: Path, draft: Path, engine: str, cores: list[int], kept: int) -> Pair:
    common: dict[str, Any] = {"engine": engine, "strategy": "ahead", "gamma": 0, "sequences": 1, "context": _CONTEXT}
    return Pair(
        WorkerSpec("target", str(target), cores=cores[:-1] or cores, cached=kept, **common),
        WorkerSpec("drafter", str(draft), cores=cores[-1:], cached=kept, **common),
    )


def _row(turn: int, kept: list[Generation], fresh: list[Generation]) -> dict[str, Any]:
    first = [median(run.stats.prompt_ms for run in runs) for runs in (kept, fresh)]
    return {
        "turn": turn + 1,
        "prompt tokens": kept[0].stats.prompt_n,
        "evaluated, kept": round(median(run.stats.prompt_n - run.stats.cached_n for run in kept)),
        "evaluated, not kept": round(median(run.stats.prompt_n - run.stats.cached_n for run in fresh)),
        "prompt ms, kept": first[0],
        "prompt ms, not kept": first[1],
        "x": first[1] / max(first[0], 1e-9),
    }
