"""End to end: hetero's pair against the best llama.cpp gives for the same target on the same cores, in one run.

All contenders are real processes that stay loaded; prompts go to each in turn (A B C A B C), medians are quoted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from hetero.bench.baseline import Baseline, BaselineSpec
from hetero.bench.processes import Pair
from hetero.bench.quality import engine_perplexities, held_out
from hetero.bench.report import report
from hetero.bench.servers import LlamaServer
from hetero.bench.sizes import sized
from hetero.errors import ConfigError
from hetero.workers.models.metadata import read_metadata
from hetero.workers.models.tokenizer import GgufTokenizer
from hetero.workers.runtime.spec import WorkerSpec
from hetero.workers.wire.messages import Sampling

_PROMPT, _OUTPUT = 120, 160  # tokens
_QUALITY = 600  # tokens whose perplexity is measured


@dataclass(frozen=True)
class Figures:
    """One sequence: tokens a second after the first, tokens a target forward committed, share of drafts accepted."""

    rate: float
    length: float
    accepted: float


@dataclass(frozen=True)
class Files:
    """A pair to run, as files of one type of weights."""

    kind: str
    target: Path
    draft: Path


@dataclass(frozen=True)
class Contender:
    """Something that answers prompts. ``ours``: hetero's; ``kind``: of its weights; ``perplexity``: of its engine."""

    name: str
    ours: bool
    kind: str
    perplexity: float
    ask: Callable[[list[int], float, int], Figures]
    close: Callable[[], None]


def files_of(size: str, target: Path | None, draft: str) -> list[Files]:
    """The pair of two GGUF files, or of inflated sizes, as Q8_0 and Q4_0. Raises ConfigError."""
    if target is None:
        return [Files(kind.upper(), sized(size, kind), sized(draft, kind)) for kind in ("q8_0", "q4_0")]
    file = Path(draft)
    if not file.is_file():
        raise ConfigError(f"draft: {draft} is no GGUF file, which a --target that is one needs")
    return [Files(read_metadata(target).quantisation, target, file)]


def run(
    files: Sequence[Files], servers: Mapping[str, Sequence[str]], cores: list[int], gammas: list[int], prompts: int,
    repeats: int, json_file: Path | None, console: Console,
) -> None:  # fmt: skip
    """Print tokens a second of every contender, at temperature 0.8 and greedy; ``servers``: commands, by a name."""
    contenders: list[Contender] = []
    tokens = held_out(GgufTokenizer(files[0].target), 1 << 20)
    step = len(tokens) // (prompts + 1)
    starts = [tokens[n * step : n * step + _PROMPT] for n in range(prompts)]
    found: dict[tuple[str, float], list[Figures]] = {}
    try:
        for own in files:
            quality = engine_perplexities(own.target, ("llama_cpp", "octet"), len(cores), tokens[:_QUALITY])
            contenders += _baselines(own, quality["llama_cpp"], cores)
            for named in servers.items():
                contenders.append(_server(*named, own, quality["llama_cpp"], cores))
            contenders += _pairs(own, quality["octet"], cores, gammas)
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
        best = {f.kind: max(median[c.name] for c in contenders if not c.ours and c.kind == f.kind) for f in files}
        for contender in contenders:
            answers = found[contender.name, temperature]
            rows.append(
                {
                    "contender": contender.name,
                    "temperature": str(temperature),
                    "tokens/s": median[contender.name],
                    "tokens/forward": round(statistics.mean(f.length for f in answers), 2),
                    "accepted %": 100 * statistics.mean(f.accepted for f in answers),
                    **{f"x best {kind}": round(median[contender.name] / rate, 2) for kind, rate in best.items()},
                    "perplexity": round(contender.perplexity, 3),
                }
            )
    report("pair", rows, json_file, console)


def _baselines(files: Files, quality: float, cores: list[int]) -> list[Contender]:
    """llama.cpp's own loops, in a process of their own."""
    target, drafter = str(files.target), str(files.draft)
    modes = {
        "alone": BaselineSpec(target, cores),
        "draft, p-min 0.75": BaselineSpec(target, cores, drafter),
        "draft, 4 tokens": BaselineSpec(target, cores, drafter, 4, 0.0),
    }
    found = []
    for mode, spec in modes.items():
        process = Baseline(spec)
        name = f"llama.cpp {files.kind} {mode}"
        found.append(Contender(name, False, files.kind, quality, _ask_baseline(process), process.close))
    return found


def _server(name: str, command: Sequence[str], files: Files, quality: float, cores: list[int]) -> Contender:
    """A llama-server. Its perplexity is taken to be llama.cpp's."""
    server = LlamaServer(command, files.target, files.draft, cores, 1024)
    return Contender(f"{name} {files.kind}", False, files.kind, quality, _ask_server(server), server.close)


def _pairs(files: Files, quality: float, cores: list[int], gammas: list[int]) -> list[Contender]:
    """hetero: the roles on cores of their own, and both on all."""
    found = []
    places = {"own cores": (cores[:-1] or cores, cores[-1:]), "shared cores": (cores, cores)}
    settings = [("off", 1, "shared cores")]
    settings += [(strategy, gamma, "own cores") for strategy in ("serial", "ahead") for gamma in gammas]
    settings += [("serial", gamma, "shared cores") for gamma in gammas]
    for strategy, gamma, place in settings:
        own = {"engine": "octet", "strategy": strategy, "gamma": gamma}
        common: dict[str, Any] = {**own, "sequences": 1, "context": 1024}
        mine, theirs = places[place]
        one = WorkerSpec("target", str(files.target), cores=mine, **common)
        two = None if strategy == "off" else WorkerSpec("drafter", str(files.draft), cores=theirs, **common)
        pair = Pair(one, two)
        name = f"hetero {files.kind} {strategy}" + ("" if strategy == "off" else f" {gamma}") + f", {place}"
        found.append(Contender(name, True, files.kind, quality, _ask_pair(pair), pair.close))
    return found


def _ask_server(server: LlamaServer) -> Callable[[list[int], float, int], Figures]:
    def ask(prompt: list[int], temperature: float, seed: int) -> Figures:
        got = server.ask(prompt, temperature, seed, _OUTPUT)
        # (Newer ones tell what they drafted, older ones do not.)
        drafted, accepted = got.get("draft_n", 0), got.get("draft_n_accepted", 0)
        forwards = max(1, got["predicted_n"] - accepted)
        return Figures(got["predicted_per_second"], got["predicted_n"] / forwards, accepted / max(1, drafted))

    return ask


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
