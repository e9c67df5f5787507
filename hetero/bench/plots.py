"""Pictures of benchmarks, drawn by matplotlib (the ``plot`` extra)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hetero.errors import ConfigError
from hetero.workers.simulation.recorder import Recorder

_COLOURS = {"draft": "#8ecae6", "window": "#219ebc", "wait": "#ffb703", "prompt": "#dddddd"}


def bars(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Speed-up over the best plain engine, a group of bars per category."""
    pyplot = _pyplot()
    categories = list(dict.fromkeys(row["category"] for row in rows))
    names = list(dict.fromkeys(row["strategy"] for row in rows))
    figure, axes = pyplot.subplots(figsize=(2 + 1.2 * len(categories) * len(names) / 3, 4), layout="constrained")
    for at, name in enumerate(names):
        own = {row["category"]: row["x best plain"] for row in rows if row["strategy"] == name}
        places = [n + (at - len(names) / 2) * 0.8 / len(names) for n in range(len(categories))]
        axes.bar(places, [own[category] for category in categories], 0.8 / len(names), label=name, align="edge")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(categories)), categories)
    axes.set_ylabel("tokens/s, x best plain engine")
    axes.legend(fontsize="small", ncols=3)
    _save(figure, file)


def agreements(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Layer-parallel guesses: how often each of them is right, over the layers of a group; a picture per model."""
    pyplot = _pyplot()
    names = list(dict.fromkeys(row["model"] for row in rows))
    figure, every = pyplot.subplots(
        1, len(names), figsize=(4.2 * len(names), 3.4), layout="constrained", squeeze=False, sharey=True
    )
    for axes, name in zip(every[0], names, strict=True):
        own = [row for row in rows if row["model"] == name]
        sizes = [row["N"] for row in own]
        for what in [key for key in own[0] if key.startswith("agrees")]:
            axes.plot(sizes, [row[what] for row in own], marker="o", label=what.replace("agrees at", "guess"))
        axes.plot(sizes, [row["never calibrated"] for row in own], linestyle="--", label="never calibrated")
        axes.plot(sizes, [row["x ordinary"] for row in own], color="black", linestyle=":", label="time, x ordinary")
        axes.set_xlabel(f"layers of a group, {name}")
        axes.set_xticks(sizes)
        axes.set_ylim(0, 1.1)
    every[0][0].set_ylabel("share of guesses that are the model's own")
    every[0][0].legend(fontsize="small")
    _save(figure, file)


def learning(history: Sequence[tuple[float, dict[float, float]]], file: Path) -> None:
    """How often a drafter that is being made says what its target says, over minutes of learning."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(5, 3.4), layout="constrained")
    for temperature in sorted({t for _, marks in history for t in marks}):
        axes.plot(
            [m for m, _ in history], [marks[temperature] for _, marks in history], label=f"temperature {temperature:g}"
        )
    axes.set_xlabel("minutes of learning")
    axes.set_ylabel("says what the target says")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    _save(figure, file)


def sweeps(curves: dict[str, list[tuple[float, float, float]]], title: str, file: Path) -> None:
    """Tokens a second of the best plan and of plain decoding, over each thing that is varied."""
    pyplot = _pyplot()
    figure, every = pyplot.subplots(
        1, len(curves), figsize=(4 * len(curves), 3.2), layout="constrained", squeeze=False, sharey=True
    )
    for axes, (what, points) in zip(every[0], curves.items(), strict=True):
        axes.plot([value for value, *_ in points], [best for _, best, _ in points], marker="o", label="best plan")
        axes.plot([value for value, *_ in points], [plain for *_, plain in points], linestyle="--", label="plain")
        axes.set_xlabel(what)
        if what.startswith("round trip"):
            axes.set_xscale("log")
        axes.set_ylim(bottom=0)
    every[0][0].set_ylabel("tokens/s")
    every[0][0].legend(fontsize="small")
    figure.suptitle(title)
    _save(figure, file)


def lanes(traces: dict[str, tuple[Recorder, float, float]], file: Path) -> None:
    """The drafter's and verifier's lanes of each strategy: name -> (its events, from, to) in seconds."""
    pyplot = _pyplot()
    figure, every = pyplot.subplots(
        len(traces), 1, figsize=(11, 1.25 * len(traces)), sharex=True, layout="constrained", squeeze=False
    )
    places = {"drafter": 1.0, "verifier": 0.0, "wait": 0.0}
    for axes, (name, (events, first, last)) in zip(every[:, 0], traces.items(), strict=True):
        for lane, what, begin, end, facts in events.spans:
            if end < first or begin > last:
                continue
            kind = what.split()[0]
            axes.broken_barh(
                [(1e3 * (begin - first), 1e3 * (end - begin))],
                (places[lane] + 0.1, 0.8),
                facecolors=_COLOURS[kind],
                edgecolor="white",
                linewidth=0.5,
                hatch="///" if kind == "wait" else None,
            )
            if kind == "window" and begin >= first:
                label = f"{facts['accepted']}+1"
                axes.text(1e3 * (begin - first) + 1, 0.5, label, va="center", fontsize=7, color="white")
        for lane, what, at, _ in events.marks:
            if lane == "verifier" and what == "hint" and first <= at <= last:
                axes.plot([1e3 * (at - first)], [1.0], marker="v", color="#d62828", markersize=5)
        axes.set_yticks([0.5, 1.5], ["verifier", "drafter"], fontsize=8)
        axes.set_ylim(0, 2)
        axes.set_xlim(0, 1e3 * (last - first))
        axes.set_title(name, loc="left", fontsize=9, pad=2)
    every[-1, 0].set_xlabel("milliseconds; in a window: draft tokens accepted + the target's own token; hatched: waits")
    _save(figure, file)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("plot: matplotlib is not installed: pip install 'hetero[plot]'") from None
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "hetero", "svg.fonttype": "none"})  # the same picture, the same file
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, file: Path) -> None:
    try:
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"plot {file}: {error}") from None
