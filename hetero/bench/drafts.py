"""Where drafts come from: lookup in the text, a drafter model, both; beside llama.cpp's ways with the same files.

Chats, edits of code, summaries and extractions (``data/prompts.jsonl``), each prompt to each contender in turn
(A B C A B C). A prompt's answer is as long for all as plain decoding's was, so that nobody gains by babbling.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from hetero.bench.baseline import Baseline, BaselineSpec
from hetero.bench.processes import Pair
from hetero.bench.prompts import chat_prompts
from hetero.bench.quality import engine_perplexities, held_out
from hetero.bench.report import report
from hetero.planning.heads import check_hands_out, states_for
from hetero.planning.vocabularies import spoken
from hetero.workers.decoding.proposers.indexed_text import IndexedText
from hetero.workers.decoding.proposers.past import Past
from hetero.workers.decoding.tree import DraftTree
from hetero.workers.engines.registry import default_engine, find_engine
from hetero.workers.models.head import is_head
from hetero.workers.models.model import read_model
from hetero.workers.models.tokenizer import GgufTokenizer
from hetero.workers.runtime.spec import WorkerSpec
from hetero.workers.wire.messages import Sampling

_CONTEXT, _OUTPUT, _LEAST = 2048, 256, 24  # tokens; answers shorter than the last tell little
_QUALITY = 600  # tokens whose perplexity is measured


@dataclass(frozen=True)
class Answer:
    """Seconds of the tokens behind the first, target forwards, and by source how many drafts were checked and hit."""

    tokens: list[int]
    seconds: float
    forwards: int
    sources: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Contender:
    """``ask``: a prompt, a temperature, a seed, how many tokens."""

    name: str
    perplexity: float
    ask: Callable[[list[int], float, int, int], Answer]
    close: Callable[[], None]


@dataclass(frozen=True)
class Question:
    """A prompt, a seed, and how many tokens its answer has."""

    category: str
    prompt: list[int]
    seed: int
    count: int


def run(
    target: Path, draft: Path | None, engine: str, strategies: Sequence[str], gamma: int, cores: list[int],
    temperatures: Sequence[float], prompts: int, repeats: int, peers: bool, json_file: Path | None, console: Console,
) -> list[dict[str, Any]]:  # fmt: skip
    """Print, per kind of prompt, each contender's tokens a second beside plain decoding's. ``prompts``: of a kind;
    ``peers``: llama.cpp takes part."""
    tokenizer = GgufTokenizer(target)
    quality = engine_perplexities(target, ("llama_cpp", engine), len(cores), held_out(tokenizer, _QUALITY))
    asked = asyncio.run(chat_prompts(tokenizer, prompts, _CONTEXT - _OUTPUT))
    contenders = _contenders(target, draft, engine, strategies, gamma, cores, quality, peers)
    rows: list[dict[str, Any]] = []
    try:
        for temperature in temperatures:
            questions = []
            for seed, (category, prompt) in enumerate(asked):
                count = len(contenders[0].ask(prompt, temperature, seed, _OUTPUT).tokens)
                if count >= _LEAST:
                    questions.append(Question(category, prompt, seed, count))
            found: dict[str, list[tuple[Question, Answer]]] = {contender.name: [] for contender in contenders}
            for repeat in range(repeats):
                for question in track(questions, f"round {repeat}", console=console, transient=True):
                    for contender in contenders:
                        answer = contender.ask(question.prompt, temperature, question.seed, question.count)
                        found[contender.name].append((question, answer))
            rows += _table(contenders, found, temperature, questions)
    finally:
        for contender in contenders:
            contender.close()
    report(f"drafts: {target.stem}" + (f" + {draft.stem}" if draft else ""), rows, json_file, console)
    console.print(f"a lookup takes {1e6 * lookup_seconds(asked):.0f} us for each token", highlight=False)
    return rows


def lookup_seconds(asked: Sequence[tuple[str, list[int]]]) -> float:
    """Seconds that looking up costs for each token that is decided: each prompt's second half, as if decided so."""
    count, began = 0, 0.0
    total = 0.0
    for _, prompt in asked:
        half = len(prompt) // 2
        own = IndexedText(prompt[:half])
        proposers = Past(0).lookups("", own)
        for token in prompt[half:]:
            tree = DraftTree(0, own.tail(1)[0])
            began = time.perf_counter()
            for proposer in proposers:
                proposer.propose(tree, 2048)
            own.append(token)
            for proposer in proposers:
                proposer.commit(token)
            total += time.perf_counter() - began
            count += 1
    return total / max(1, count)


def _contenders(
    target: Path, draft: Path | None, engine: str, strategies: Sequence[str], gamma: int, cores: list[int],
    quality: dict[str, float], peers: bool,
) -> list[Contender]:  # fmt: skip
    """Plain decoding is the first."""
    found = []
    common: dict[str, Any] = {"engine": engine, "sequences": 1, "context": _CONTEXT}
    alone = [("plain", cores, False), ("lookup", cores, True)]
    beside = cores[:-1] or cores  # a drafter
    if draft is not None:
        alone.append(("lookup, beside an idle core", beside, True))
    for name, own, looks in alone:
        spec = WorkerSpec("target", str(target), strategy="off", gamma=0, cores=own, lookup=looks, **common)
        pair = Pair(spec, None)
        found.append(Contender(name, quality[engine], _ask_pair(pair), pair.close))
    if draft is not None:
        named = {f"drafter, {strategy}" if len(strategies) > 1 else "drafter": strategy for strategy in strategies}
        ways = [(name, strategy, False) for name, strategy in named.items()]
        whole = read_model(target)
        guessing = read_model(draft, of=whole)
        states = states_for(whole, [guessing])
        check_hands_out(whole, states, find_engine(engine))
        drafts_on = default_engine(guessing.form, "cpu").name if guessing.head is not None else engine
        for name, strategy, looks in (*ways, ("drafter + lookup", strategies[-1], True)):
            both = {**common, "strategy": strategy, "gamma": gamma}
            one = WorkerSpec("target", str(target), cores=beside, lookup=looks, features=states, **both)
            told = both | {"engine": drafts_on, "vocabulary": spoken(whole, guessing)}
            pair = Pair(one, WorkerSpec("drafter", str(draft), cores=cores[-1:], **told))
            found.append(Contender(name, quality[engine], _ask_pair(pair), pair.close))
    theirs = {
        "llama.cpp": BaselineSpec(str(target), cores, context=_CONTEXT),
        "llama.cpp, prompt lookup": BaselineSpec(str(target), cores, context=_CONTEXT, lookup=10),
    }
    if draft is not None and not is_head(draft):
        theirs["llama.cpp, draft"] = BaselineSpec(str(target), cores, str(draft), context=_CONTEXT)
    for name, their in theirs.items() if peers else ():
        process = Baseline(their)
        found.append(Contender(name, quality["llama_cpp"], _ask_baseline(process), process.close))
    return found


def _ask_pair(pair: Pair) -> Callable[[list[int], float, int, int], Answer]:
    def ask(prompt: list[int], temperature: float, seed: int, count: int) -> Answer:
        got = pair.ask(prompt, Sampling(temperature, 0, 1.0, 0.0, seed, 0), count)
        return Answer(got.tokens, got.stats.predicted_ms / 1e3, got.stats.forwards_n - 1, got.stats.sources)

    return ask


def _ask_baseline(process: Baseline) -> Callable[[list[int], float, int, int], Answer]:
    def ask(prompt: list[int], temperature: float, seed: int, count: int) -> Answer:
        got = process.ask(prompt, temperature, seed, count)
        drafts = {"drafts": (got["drafted"], got["accepted"])} if got["drafted"] else {}
        return Answer(got["output"], got["seconds"], got["forwards"], drafts)

    return ask


def _table(
    contenders: Sequence[Contender], found: dict[str, list[tuple[Question, Answer]]], temperature: float,
    questions: Sequence[Question],
) -> list[dict[str, Any]]:  # fmt: skip
    rows = []
    plain = found[contenders[0].name]
    for category in dict.fromkeys(question.category for question in questions):
        for contender in contenders:
            own = [(n, a) for n, (q, a) in enumerate(found[contender.name]) if q.category == category]
            theirs = [plain[n][1] for n, _ in own]
            tokens = sum(len(answer.tokens) - 1 for _, answer in own)
            drafts = {name: [0, 0] for _, answer in own for name in answer.sources}
            for _, answer in own:
                for name, (n, hits) in answer.sources.items():
                    drafts[name][0] += n
                    drafts[name][1] += hits
            # Of each prompt's ratio the middle, and of all time: one slow moment of the machine spoils neither.
            ratios = [one.seconds / answer.seconds for one, (_, answer) in zip(theirs, own, strict=True)]
            rows.append(
                {
                    "prompts": category,
                    "temperature": str(temperature),
                    "drafts from": contender.name,
                    "tokens/s": tokens / sum(answer.seconds for _, answer in own),
                    "x plain": round(sum(one.seconds for one in theirs) / sum(a.seconds for _, a in own), 2),
                    "x plain, median": round(statistics.median(ratios), 2),
                    "tokens/forward": round(tokens / max(1, sum(answer.forwards for _, answer in own)), 2),
                    "accepted": ", ".join(f"{name} {hits}/{n}" for name, (n, hits) in sorted(drafts.items())),
                    "texts as plain": f"{sum(a.tokens == b.tokens for a, (_, b) in zip(theirs, own, strict=True))}"
                    f"/{len(own)}",
                    "perplexity": round(contender.perplexity, 3),
                }
            )
    return rows
