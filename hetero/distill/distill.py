"""``hetero distill``: the target writes, a student learns from it, and is written where any engine reads it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file

from hetero.bench.plots import learning
from hetero.cluster.inventory import machine_line, take_inventory
from hetero.config import make_config
from hetero.data import HELD_OUT, PROMPTS
from hetero.distill import examination
from hetero.distill.answers import Author, Prompt
from hetero.distill.card import Card, licence_of
from hetero.distill.corpus import Corpus
from hetero.distill.divergence import DIVERGENCES
from hetero.distill.examination import Examination, Marks
from hetero.distill.lessons import Lesson, Lessons, lesson
from hetero.distill.prompts import Chat, chat_of, own_prompts, read_prompts
from hetero.distill.recipe import Recipe, Workshop
from hetero.distill.student import Trunk, freeze_vocabulary, last, make_student, spread, write_student
from hetero.distill.training import Course, train
from hetero.errors import ConfigError, MemoryShortage, ModelError
from hetero.models import find_model
from hetero.planning.planner import planner_of
from hetero.planning.ranking import Ranker
from hetero.planning.table import verdict
from hetero.workers.engines.base import Engine
from hetero.workers.engines.registry import EngineSettings, default_engine, find_engine
from hetero.workers.models.adapter import write_adapter
from hetero.workers.models.cache import disk_error
from hetero.workers.models.forms import GGUF
from hetero.workers.models.tokenizer import load_tokenizer
from hetero.workers.models.translation import Translation, translation
from hetero.workers.models.trimming import kept_tokens

_WRITING = 0.35  # of the minutes, until all else is learning
_SEQUENCES, _CONTEXT = 32, 1024  # texts at once, and tokens of each
_LONGEST = 256  # tokens of a text that is learned from
_HELD = (12, 96)  # prompts that are kept apart, and tokens of an answer
_TEXTS, _RATE = 2, 5e-4  # texts a step; the rate of learning at its highest
_OFTEN = (20.0, 0.04)  # seconds, or a share of the time, between two examinations
_LEAST = 2000  # tokens to learn from
_BARELY = 0.1  # minutes of learning, whatever else took


@dataclass(frozen=True)
class Order:
    """What is asked for. ``minutes`` in all; ``command`` as it was given."""

    recipe: Recipe
    minutes: float
    threads: int
    engine: str
    command: str


def run(order: Order, out: Path, console: Console, stopped: Callable[[], bool]) -> Marks:
    """Make the drafter, or go on with it. ``stopped``: whether it is to end early, with the best so far. Raises
    HeteroError."""
    maker = _Maker(order, out, console, stopped)
    maker.write()
    return maker.teach()


def foreseen(target: str, draft: Path, say: Callable[[str], None]) -> list[str]:
    """What the fastest plan with this pair would do on this machine, beside plain decoding. Raises HeteroError."""
    config, inventory = make_config({"target": target, "draft": str(draft), "strategy": "auto"}), take_inventory()
    return verdict(Ranker(config, inventory, planner_of(config, inventory, say), say).rank())


class _Maker:
    def __init__(self, order: Order, out: Path, console: Console, stopped: Callable[[], bool]) -> None:
        self._order, self._recipe, self._stopped = order, order.recipe, stopped
        self._console = console
        self._target = find_model(self._recipe.target, "target")
        self._check()
        self._shop = Workshop(out, self._recipe)
        self._shop.check_room(self._needed())
        torch.set_num_threads(order.threads)
        self._licence = licence_of(self._target.path)
        if not self._licence:
            self._say(
                f"{self._target.name} names no licence: the drafter's card says so; look it up before you pass it on"
            )

    def write(self) -> None:
        """Have the target write, for its share of the time."""
        progress, shop = self._shop.progress, self._shop
        minutes = _WRITING * self._order.minutes
        if shop.held_out.is_file() and progress.wrote >= minutes:
            return
        ends = self._target.tokenizer.vocabulary.ends
        chat = chat_of(self._target.tokenizer)
        asked = self._asked(chat)
        engine = self._engine()
        try:
            if not shop.held_out.is_file():
                self._say(f"{self._target.name} answers what the drafter will be examined on")
                found = examination.answers(engine, ends, self._apart(chat, asked), _HELD[1])
                examination.keep(found, shop.held_out)
            corpus = Corpus(shop.corpus)
            author = Author(engine, ends, self._recipe.seed + 1 + corpus.pieces)
            prompts = own_prompts(chat, self._target.tokenizer)
            if asked is not None:
                prompts = iter([asked[n % len(asked)] for n in range(_HELD[0], 1 << 16)])
            began, before = time.monotonic(), progress.wrote

            def over() -> bool:
                progress.wrote = before + (time.monotonic() - began) / 60
                return progress.wrote >= minutes or self._stopped()

            with self._bar() as bar:
                task, count = bar.add_task(f"{self._target.name} writes", total=minutes, said=""), 0
                for text in author.write(prompts, over):
                    corpus.add(text)
                    count += len(text.ids)
                    rate = count / max(1e-3, time.monotonic() - began)
                    bar.update(task, completed=progress.wrote, said=f"{count:,} tokens, {rate:.0f} a second")
            corpus.flush()
            shop.save()
        finally:
            engine.shutdown()

    def teach(self) -> Marks:
        """Learn for the rest of the time; returns the marks of what was written."""
        recipe, progress, shop = self._recipe, self._shop.progress, self._shop
        texts = list(Corpus(shop.corpus).texts())
        count = sum(len(text.ids) for text in texts)
        if count < _LEAST:
            raise ConfigError(
                f"minutes: {self._order.minutes:g} are too few: the target wrote {count} tokens in its share"
            )
        kept = self._kept(texts)
        layers = self._layers()
        student = make_student(self._target.path, layers, kept)
        words = self._translation(student, kept)
        trunk = Trunk(self._target.path, recipe.exit, kept) if recipe.exit else None
        if trunk is not None:
            freeze_vocabulary(student)
        lessons = [one for text in texts if len((one := lesson(text, words, _LONGEST)).places)]
        lessons = lessons if trunk is None else self._begun(lessons, trunk)
        exam = Examination(examination.kept(shop.held_out), words, _CONTEXT // 2, trunk)
        weights = sum(p.numel() for p in student.parameters())
        self._say(
            f"{weights / 1e6:.1f}M weights: layers {', '.join(map(str, layers))}"
            + (f" behind the first {recipe.exit}" if recipe.exit else "")
            + f", {student.config.vocab_size:,} tokens; {count:,} tokens to learn from"
        )
        minutes = max(_BARELY, (1 - _WRITING) * self._order.minutes - progress.read)
        with self._bar() as bar:
            task = bar.add_task("learns", total=minutes, said="")
            bar.update(task, completed=progress.learned)

            def told(now: float, marks: Marks) -> None:
                if shop.learned(now, marks):
                    self._keep(student)
                shop.save()
                bar.update(task, completed=now, said=_agreed(marks))

            if progress.learned < minutes and not self._stopped():
                often = max(_OFTEN[0], 60 * _OFTEN[1] * minutes)
                course = Course(
                    minutes, progress.learned, often, _TEXTS, _RATE, DIVERGENCES[recipe.loss], recipe.seed
                )  # fmt: skip
                try:
                    train(
                        student,
                        Lessons(lessons),
                        course,
                        shop.checkpoints,
                        partial(exam.of, student),
                        told,
                        self._stopped,
                    )
                except OSError as error:
                    raise disk_error(shop.folder, error) from None
        if shop.best.is_file():
            student.load_state_dict(load_file(shop.best), strict=False)
            student.tie_weights()
        marks = exam.of(student)
        self._finish(student, kept, marks, [
            ("layers of the target's that learned", ", ".join(map(str, layers))),
            ("layers before them, as they are in the target", str(recipe.exit)),
            ("weights", f"{weights:,}"),
            ("tokens it can propose", f"{student.config.vocab_size:,}"),
            ("learned from", f"{count:,} tokens that the target wrote, {', '.join(recipe.data) or 'asked by itself'}"),
            ("loss", recipe.loss),
            ("seed", str(recipe.seed)),
            ("minutes of writing, of learning", f"{progress.wrote:.0f}, {progress.learned:.0f}"),
            ("made on", f"{machine_line()}, {self._order.threads} threads"),
        ])  # fmt: skip
        return marks

    def _check(self) -> None:
        """Raises HeteroError for what cannot be made, before anything is."""
        if self._target.form != GGUF:
            raise ConfigError(
                f"target: {self._recipe.target} is no GGUF file, which is what drafters are made of so far"
            )
        if self._recipe.loss not in DIVERGENCES:
            raise ConfigError(f"loss: {self._recipe.loss!r} is unknown: choose {', '.join(DIVERGENCES)}")
        self._layers()
        # Its weights in float32, once read and once copied, and the student's four times (gradients, two moments).
        needed, free = 8 * self._target.shape.parameters + 16 * self._size(), psutil.virtual_memory().available
        if needed > free:
            raise MemoryShortage(
                f"target: making a drafter of {self._target.name} takes about {needed / 2**30:.1f} GiB of memory, "
                f"{free / 2**30:.1f} are free: do it on a larger machine, the drafter runs here"
            )

    def _size(self) -> int:
        """Weights of the student, at most."""
        shape = self._target.shape
        return (
            shape.parameters * self._recipe.layers // shape.layers + 2 * shape.vocabulary * self._target.metadata.width
        )

    def _layers(self) -> list[int]:
        """Those that learn. Raises ConfigError."""
        recipe, whole = self._recipe, self._target.shape.layers
        return last(whole, recipe.layers, recipe.exit) if recipe.exit else spread(whole, recipe.layers)

    def _begun(self, lessons: list[Lesson], trunk: Trunk) -> list[Lesson]:
        """Lessons that begin from what leaves the first layers; computed once, since those do not learn."""
        file, count = self._shop.states, sum(len(one.tokens) for one in lessons)
        if not file.is_file():
            part, began = file.with_suffix(".part.npy"), time.monotonic()
            states = np.lib.format.open_memmap(part, "w+", np.float16, (count, trunk.width))
            with self._bar() as bar:
                task, at = bar.add_task(f"the first {self._recipe.exit} layers", total=count, said=""), 0
                for one in lessons:
                    states[at : at + len(one.tokens)] = trunk.states(one.tokens)
                    at += len(one.tokens)
                    bar.update(task, completed=at)
            states.flush()
            part.rename(file)
            self._shop.progress.read = (time.monotonic() - began) / 60
            self._shop.save()
        states = np.load(file, mmap_mode="r")
        if states.shape != (count, trunk.width):
            raise ModelError(f"{file}: is of other lessons: delete it")
        bounds = np.cumsum([0, *(len(one.tokens) for one in lessons)])
        return [replace(one, states=states[bounds[n] : bounds[n + 1]]) for n, one in enumerate(lessons)]

    def _needed(self) -> int:
        """Bytes of disk: two checkpoints, the best weights, the file; what the target writes, and states of it."""
        states = 2 * self._target.metadata.width * 30_000 * self._order.minutes if self._recipe.exit else 0
        return 32 * self._size() + (64 << 20) + int(states)

    def _engine(self) -> Engine:
        name = self._order.engine or default_engine(GGUF, "cpu").name
        context = min(_CONTEXT, self._target.context)
        settings = EngineSettings(
            self._target.path, self._order.threads, sequences=_SEQUENCES, context=context, draft_nodes=8
        )
        return find_engine(name).load(settings)

    def _asked(self, chat: Chat) -> list[Prompt] | None:
        """The user's prompts; None: there are none."""
        if not self._recipe.data:
            return None
        files = [Path(path).expanduser() for path in self._recipe.data]
        longest = min(_CONTEXT, self._target.context) // 2
        found = read_prompts(files, chat, self._target.tokenizer, longest, self._recipe.seed)
        if len(found) < 2 * _HELD[0]:
            raise ConfigError(f"data: {len(found)} prompts are too few: {2 * _HELD[0]} are the least")
        return found

    def _apart(self, chat: Chat, asked: list[Prompt] | None) -> list[list[int]]:
        """Prompts that are not learned from: some of the user's, else some that come with hetero."""
        if asked is not None:
            return [prompt.tokens for prompt in asked[: _HELD[0]]]
        encode = self._target.tokenizer.encode
        if chat.turn:
            lines = [examination.turn(line) for line in PROMPTS.read_text().splitlines()]
            few = lines[:: max(1, len(lines) // _HELD[0])]
            return [chat.of(encode(said, False))[-_CONTEXT // 2 :] for said in few]
        text = HELD_OUT.read_text()
        step = len(text) // (_HELD[0] + 1)
        return [encode(text[n * step : n * step + 400]) for n in range(_HELD[0])]

    def _kept(self, texts: list[Any]) -> list[int]:
        """Tokens that stay: the most used."""
        header = {name: field.contents() for name, field in gguf.GGUFReader(self._target.path).fields.items()}
        everything = list(range(len(header["tokenizer.ggml.tokens"])))
        if not 0 < self._recipe.vocabulary < len(everything):
            return everything
        counts = np.zeros(len(everything), np.int64)
        for text in texts:
            np.add.at(counts, text.tokens, 1)
        try:
            return kept_tokens(header, counts, self._recipe.vocabulary)
        except ModelError as error:
            self._say(f"{error}: all of it stays")
            return everything

    def _translation(self, student: Any, kept: list[int]) -> Translation | None:
        """Between the target's tokens and the drafter's; None: they are the same."""
        if len(kept) == len(self._target.tokenizer.vocabulary):
            return None
        file = self._shop.folder / "vocabulary.gguf"
        write_student(student, self._target.path, kept, "q8_0", file)
        return translation(self._target.tokenizer.vocabulary, load_tokenizer(file).vocabulary)

    def _keep(self, student: Any) -> None:
        """The weights of the best student so far."""
        part = self._shop.best.with_suffix(".part")
        state = {name: tensor.contiguous() for name, tensor in student.state_dict().items()}
        if student.config.tie_word_embeddings:
            state.pop("lm_head.weight", None)
        save_file(state, part)
        part.rename(self._shop.best)

    def _finish(self, student: Any, kept: list[int], marks: Marks, facts: list[tuple[str, str]]) -> None:
        out = self._shop.out
        file = out / "drafter.gguf"
        first = self._recipe.exit
        write_student(student, self._target.path, kept, self._recipe.kind, file, first)
        if first:
            write_adapter(file, self._target.path, kept, first, out / "adapter.gguf")
        card = Card(self._target.name, self._licence, self._order.command, marks, facts)
        (out / "README.md").write_text(card.text())
        self._say(f"{file}, {file.stat().st_size / 1e6:.1f} MB: agrees with {self._target.name} {_agreed(marks)}")
        if find_spec("matplotlib") is not None:
            learning(self._shop.progress.history, out / "agreement.svg")
        for line in foreseen(self._recipe.target, file, self._say):
            self._say(line)

    def _bar(self) -> Progress:
        columns = (
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
        )  # fmt: skip
        return Progress(*columns, console=self._console, transient=True)

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _agreed(marks: Marks) -> str:
    return ", ".join(f"{share:.3f} at temperature {t:g}" for t, share in sorted(marks.agreement.items()))
