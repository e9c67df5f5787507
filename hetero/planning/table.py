"""A ranking as people and programs read it, and how one is made for a command line."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from hetero.cluster.inventory import take_inventory
from hetero.config import Config
from hetero.planning.planner import planner_of
from hetero.planning.ranking import Entry, Ranker, Ranking


def rows_of(ranking: Ranking) -> list[dict[str, Any]]:
    """One plan each, the fastest first; seconds, bytes, tokens a second."""
    return [_row(entry) for entry in ranking.entries]


def table_of(ranking: Ranking) -> Table:
    """The same to look at."""
    table = Table()
    streams = ranking.entries[0].streams
    together = [f"{streams} at once"] if streams > 1 else []
    table.add_column("plan", min_width=18, overflow="fold")
    for name in ("tokens/s", *together, "first", "GiB", "bound", "limit"):
        table.add_column(name, justify="right")
    for entry in ranking.entries:
        table.add_row(
            str(entry.candidate),
            f"{entry.rate:.1f}",
            *([f"{entry.together:.1f}"] if together else []),
            f"{entry.first:.1f} s",
            _told(_memory(entry)),
            f"{100 * entry.share:.0f} %",
            entry.limit,
        )
    return table


def remarks(ranking: Ranking) -> list[str]:
    """What the table does not show."""
    agreement = ranking.agreement
    how = (
        "assumed" if agreement.assumed else f"as measured on {len(agreement.ranks)} tokens of Python at temperature 0.8"
    )
    lines = []
    if any(entry.candidate.drafter is not None for entry in ranking.entries):
        lines.append(
            f"the target takes the drafter's first choice at {100 * agreement.alpha:.0f} % of positions, {how}"
        )
    contexts = sorted({entry.plan.context for entry in ranking.entries})
    if contexts[0] < ranking.entries[0].plan.target.model.context:
        lines.append(f"tokens of context: {' to '.join(map(str, dict.fromkeys((contexts[0], contexts[-1]))))}")
    lines += [f"not possible: {what}: {why}" for what, why in ranking.rejected]
    return lines


def verdict(ranking: Ranking) -> list[str]:
    """Why the first plan was taken, in two lines."""
    best = ranking.entries[0]
    plain = max((e.rate for e in ranking.entries if e.candidate.drafter is None), default=0.0)
    lines = [
        f"plan: {best.candidate}: {best.rate:.1f} tokens/s foreseen, {100 * best.share:.0f} % of what the target allows"
    ]
    if best.candidate.drafter is None:
        lines.append("      no plan with a drafter is foreseen to be faster (hetero plan shows them)")
    elif plain:
        lines.append(f"      {best.rate / plain:.2f} x plain decoding, {plain:.1f} tokens/s (hetero plan shows all)")
    return lines


def _told(memory: dict[str, int]) -> str:
    """GiB, by device where they are several."""
    gib = {device: f"{size / 2**30:.1f}" for device, size in memory.items()}
    return "\n".join(f"{device} {size}" for device, size in gib.items()) if len(gib) > 1 else next(iter(gib.values()))


def _memory(entry: Entry) -> dict[str, int]:
    """Bytes by device."""
    found: dict[str, int] = {}
    for placement in entry.plan.placements:
        for device, memory in placement.parts:
            found[device] = found.get(device, 0) + memory.total
    return found


def _row(entry: Entry) -> dict[str, Any]:
    own, forecast = entry.candidate, entry.forecast
    return {
        "strategy": own.strategy,
        "gamma": own.gamma,
        "target": str(own.target),
        "gpu_layers": own.layers,
        "drafter": str(own.drafter) if own.drafter is not None else None,
        "engines": [placement.spec.engine for placement in entry.plan.placements],
        "context": entry.plan.context,
        "tokens_per_second": round(entry.rate, 2),
        "interval": round(forecast.interval, 2),
        "streams": entry.streams,
        "tokens_per_second_together": round(entry.together, 2),
        "tokens_per_forward": round(forecast.length, 2),
        "first_token_s": round(entry.first, 3),
        "load_s": round(entry.load, 2),
        "memory": _memory(entry),
        "share_of_bound": round(entry.share, 3),
        "target_busy": round(forecast.verifier, 3),
        "drafter_busy": round(forecast.drafter, 3),
        "limited_by": entry.limit,
    }


def show(config: Config, as_json: bool, dry: bool, console: Console) -> None:
    """Print the ranking of what a Config leaves open on this machine; ``dry``: estimated, nothing is tried. Raises
    HeteroError."""

    def say(line: str) -> None:
        Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)

    inventory = take_inventory()
    ranking = Ranker(config, inventory, planner_of(config, inventory, say, measure=not dry), say, dry).rank()
    if as_json:
        rejected = [{"plan": what, "why": why} for what, why in ranking.rejected]
        agreement = {"alpha": round(ranking.agreement.alpha, 3), "assumed": ranking.agreement.assumed}
        console.print_json(data={"plans": rows_of(ranking), "rejected": rejected, "agreement": agreement})
        return
    console.print(table_of(ranking))
    if dry:
        console.print("estimated from bytes, operations and what this machine's cores do; nothing was tried")
    for line in remarks(ranking):
        console.print(line, highlight=False, markup=False)
