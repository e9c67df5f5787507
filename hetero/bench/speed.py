"""Strategies for real: the same prompts through plain decoding and every strategy, interleaved, in real processes.

In the manner of Spec-Bench (Xia et al. 2024): the speed-up of a category is the ratio of the means of its questions'
tokens a second. The baseline is the best plain engine for the target with every core the pair has.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.progress import track

from hetero.bench.processes import Generation, Pair
from hetero.bench.quality import held_out
from hetero.bench.report import report
from hetero.bench.sizes import SIZES, sized
from hetero.errors import ConfigError
from hetero.models import find_model
from hetero.workers.models.tokenizer import Tokenizer, load_tokenizer
from hetero.workers.runtime.spec import WorkerSpec
from hetero.workers.runtime.status import SpeedStatus
from hetero.workers.wire.messages import Sampling

_PROMPT = 120  # tokens of a built-in prompt


@dataclass(frozen=True)
class Question:
    """A prompt of a category."""

    category: str
    tokens: list[int]


@dataclass(frozen=True)
class Measurement:
    """What one contender did with one question: the streams it ran at once, each worker's busy seconds, and the wall
    seconds, prompt included."""

    question: Question
    runs: list[Generation]
    busy: list[float]
    wall: float

    @property
    def seconds(self) -> float:
        """From the first token, which comes with the prompt, to the last."""
        return max(run.seconds for run in self.runs)

    @property
    def rate(self) -> float:
        """Tokens a second, all streams together."""
        return (self.total("predicted_n") - len(self.runs)) / self.seconds

    def total(self, field: str) -> float:
        """A figure of ``Stats`` summed over the streams."""
        return float(sum(getattr(run.stats, field) for run in self.runs))


@dataclass(frozen=True)
class Settings:
    """What to run: model names as in ``find_model`` or sizes of the inflated pair; ``streams`` sequences at once."""

    target: str
    draft: str
    engine: str
    strategies: Sequence[str]
    gamma: int
    cores: list[int]
    temperature: float
    tokens: int
    repeats: int
    streams: int = 1


def read_questions(source: Path | None, tokenizer: Tokenizer, count: int) -> list[Question]:
    """Prompts of a Spec-Bench question.jsonl (first turns), of a text file (its paragraphs), or built-in ones.

    ``count``: per category. Raises ConfigError.
    """
    if source is None:
        tokens = held_out(tokenizer, 1 << 20)
        step = len(tokens) // (count + 1)
        return [Question("code", tokens[n * step : n * step + _PROMPT]) for n in range(count)]
    try:
        text = source.read_text()
        if source.suffix == ".jsonl":
            entries = [json.loads(line) for line in text.splitlines() if line.strip()]
            found = [(str(entry["category"]), str(entry["turns"][0])) for entry in entries]
        else:
            found = [("text", part.strip()) for part in text.split("\n\n") if part.strip()]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"prompts {source}: neither question.jsonl lines nor text ({error})") from None
    chosen: dict[str, list[Question]] = {}
    for category, prompt in found:
        own = chosen.setdefault(category, [])
        if len(own) < count:
            own.append(Question(category, tokenizer.encode(prompt)[:1024] or [0]))
    if not chosen:
        raise ConfigError(f"prompts {source}: no prompts in it")
    return [question for own in chosen.values() for question in own]


def run(settings: Settings, source: Path | None, count: int, json_file: Path | None, plot: Path | None,
        console: Console) -> list[dict[str, Any]]:  # fmt: skip
    """Print, per category and overall, every contender's figures."""
    target, draft = find(settings.target, "target"), find(settings.draft, "drafter")
    questions = read_questions(source, load_tokenizer(target), count)
    pairs = _contenders(settings, target, draft)
    answers: dict[str, list[Measurement]] = {name: [] for name in pairs}
    alone: dict[str, list[Measurement]] = {name: [] for name in pairs}  # the same streams one by one
    try:
        for repeat in range(settings.repeats + 1):
            asked = questions if repeat else questions[:1]
            for seed, question in enumerate(track(asked, f"round {repeat}", console=console, transient=True)):
                for name, pair in pairs.items():
                    streams = range(settings.streams)
                    found = _ask(pair, question, settings, seed, streams)
                    ones = [_ask(pair, question, settings, seed, [s]) for s in streams] if len(streams) > 1 else [found]
                    if repeat:  # the first round warms up
                        answers[name].append(found)
                        alone[name].extend(ones)
        measured = [pair.statuses()[0].speeds for name, pair in pairs.items() if not name.startswith("off")]
        speeds = [found for found in measured if found is not None]
    finally:
        for pair in pairs.values():
            pair.close()
    bound, single = _bound(speeds, settings.streams), _bound(speeds, 1)
    rows = _table(settings, answers, alone, bound)
    title = f"speed: {settings.target} + {settings.draft}, {settings.engine}, temperature {settings.temperature}"
    report(f"{title}, {settings.streams} stream(s)", rows, json_file, console)
    if settings.streams > 1 and single:
        console.print(f"T_v(n) allows {settings.streams} streams {bound / single:.2f} x the tokens a second of one")
    if plot is not None:
        from hetero.bench.plots import bars

        bars(rows, plot)
    return rows


def find(name: str, role: str) -> Path:
    """The model a benchmark names: an inflated size, or what a user may name."""
    if name in SIZES:
        return sized(name, "q4_0")
    return find_model(name, role).path


def _contenders(settings: Settings, target: Path, draft: Path) -> dict[str, Pair]:
    """Plain decoding with all cores, by every engine that may be the best at it, and each strategy with the drafter
    on the last core."""
    cores = settings.cores
    common: dict[str, Any] = {"sequences": settings.streams, "context": 2048}
    found: dict[str, Pair] = {}
    plain = [settings.engine]
    if target.suffix == ".gguf" and settings.engine != "llama_cpp":
        plain.append("llama_cpp")
    for engine in plain:
        spec = WorkerSpec("target", str(target), engine, "off", 0, cores=cores, **common)
        found[f"off, {engine}"] = Pair(spec, None)
    mine, theirs = cores[:-1] or cores, cores[-1:]
    for name in settings.strategies:
        own: dict[str, Any] = {"engine": settings.engine, "strategy": name, "gamma": settings.gamma, **common}
        found[name] = Pair(
            WorkerSpec("target", str(target), cores=mine, **own),
            WorkerSpec("drafter", str(draft), cores=theirs, **own),
        )
    return found


def _ask(pair: Pair, question: Question, settings: Settings, seed: int, streams: Sequence[int]) -> Measurement:
    asked = [
        (question.tokens, Sampling(settings.temperature, 0, 1.0, 0.0, 1000 * seed + stream, 0)) for stream in streams
    ]
    before = [status.busy_s for status in pair.statuses()]
    began = time.monotonic()
    runs = pair.ask_all(asked, settings.tokens)
    wall = time.monotonic() - began
    return Measurement(question, runs, [s.busy_s - b for s, b in zip(pair.statuses(), before, strict=True)], wall)


def _bound(measured: Sequence[SpeedStatus], streams: int) -> float:
    """The verifier bound, tokens a second of all streams: max over n of streams * tau(n - 1) / T_v(streams * n).

    alpha as the walks met it, T_v(n) the best that any contender measured.
    """
    if not measured:
        return 0.0
    alpha = mean(speeds.alpha for speeds in measured)
    forward: dict[int, float] = {}
    for speeds in measured:
        for rows, seconds in speeds.forward:
            forward[rows] = min(seconds, forward.get(rows, seconds))
    return max(
        (
            streams * sum(alpha**k for k in range(rows // streams)) / seconds
            for rows, seconds in forward.items()
            if rows % streams == 0
        ),
        default=0.0,
    )


def _table(
    settings: Settings, answers: dict[str, list[Measurement]], alone: dict[str, list[Measurement]], bound: float
) -> list[dict[str, Any]]:
    plain = [name for name in answers if name.startswith("off")]
    categories = list(dict.fromkeys(answer.question.category for answer in answers[plain[0]]))
    rows: list[dict[str, Any]] = []
    for group in [*categories, "overall"] if len(categories) > 1 else categories:
        own = {n: [a for a in found if group in ("overall", a.question.category)] for n, found in answers.items()}
        best = max(mean(a.rate for a in own[name]) for name in plain)
        exposed = _sum(own["serial"], "waited_ms") if "serial" in own else 0.0
        asked = [answer.question for answer in own[plain[0]]]
        for name, found in own.items():
            rate, seconds = mean(a.rate for a in found), sum(a.seconds for a in found)
            wall = sum(a.wall for a in found)
            streams = sum(len(a.runs) for a in found)
            waited = _sum(found, "waited_ms")
            rows.append(
                {
                    "category": group,
                    "strategy": name,
                    "tokens/s": rate,
                    "x best plain": round(rate / best, 2),
                    "x one stream": round(rate / mean(a.rate for a in alone[name] if a.question in asked), 2),
                    "tokens/forward": round(
                        (_sum(found, "predicted_n") - streams) / max(1.0, _sum(found, "forwards_n") - streams), 2
                    ),
                    "accepted %": 100 * _sum(found, "draft_n_accepted") / max(1.0, _sum(found, "draft_n")),
                    "% of bound": 100 * rate / bound if bound else 0.0,
                    "verifier busy %": 100 * sum(a.busy[0] for a in found) / wall,
                    "drafter busy %": 100 * sum(sum(a.busy[1:]) for a in found) / wall,
                    "exposed draft %": 0.1 * waited / seconds,
                    "of serial's": round(waited / exposed, 2) if exposed else 0.0,
                    "forwards": int(_sum(found, "forwards_n")),
                    "plain %": 100 * _sum(found, "plain_n") / _sum(found, "predicted_n"),
                    "flips": _flips(found, own[f"off, {settings.engine}"]),
                }
            )
    return rows


def _sum(answers: Sequence[Measurement], field: str) -> float:
    return sum(answer.total(field) for answer in answers)


def _flips(answers: Sequence[Measurement], reference: Sequence[Measurement]) -> int:
    """Outputs that differ from plain decoding's: near-ties that another width of forward decided otherwise."""
    pairs = zip(answers, reference, strict=True)
    return sum(one.tokens != two.tokens for a, b in pairs for one, two in zip(a.runs, b.runs, strict=True))
