"""The student's part: it learns from what the target wrote, and its best is written where any engine reads it."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model

from hetero.bench.plots import learning
from hetero.cluster.inventory import machine_line
from hetero.distill import examination
from hetero.distill.card import Card, licence_of
from hetero.distill.corpus import Corpus, Text
from hetero.distill.examination import Examination, Marks
from hetero.distill.lessons import Lesson, Lessons, lesson
from hetero.distill.making import CONTEXT, WRITING, Making
from hetero.distill.students.enrolment import enrolled
from hetero.distill.students.student import Source, Student
from hetero.distill.training import Course, train
from hetero.errors import ConfigError, ModelError
from hetero.workers.engines.torch.divergence import DIVERGENCES
from hetero.workers.models.gguf_writing import header_of
from hetero.workers.models.trimming import kept_tokens

_LONGEST = 256  # tokens of a text that is learned from
_TEXTS, _RATE = 2, 5e-4  # texts a step; the rate of learning at its highest
_OFTEN = (20.0, 0.04)  # seconds, or a share of the time, between two examinations
_LEAST = 2000  # tokens to learn from
_BARELY = 0.1  # minutes of learning, whatever else took


def teach(making: Making) -> Marks:
    """Learn for the rest of the time, write the drafter, and return its marks. Raises HeteroError."""
    recipe, progress, shop = making.recipe, making.shop.progress, making.shop
    texts = list(Corpus(shop.corpus).texts())
    kept = _kept(making, texts)
    with enrolled(making, kept) as student:
        lessons = [one for text in texts if len((one := lesson(text, student.words, _LONGEST)).places)]
        count = sum(len(one.places) for one in lessons)
        if count < _LEAST:
            shop.vocabulary.unlink(missing_ok=True)  # it may still write more
            why = "stopped early" if making.stopped() else f"minutes: {making.order.minutes:g} are too few"
            raise ConfigError(f"{why}: the target wrote {count} tokens to learn from, {_LEAST} are the least")
        if student.source is not None and any(one.states is None for one in lessons):
            lessons = _begun(making, lessons, student.source)
        exam = Examination(examination.kept(shop.held_out), student, CONTEXT // 2)
    weights = sum(p.numel() for p in student.model.parameters())
    facts = [
        *student.facts(),
        ("weights that could learn", f"{weights:,}"),
        ("tokens it can propose", f"{len(kept):,}"),
    ]
    making.say("; ".join(f"{name}: {value}" for name, value in facts) + f"; {count:,} tokens to learn from")
    minutes = max(_BARELY, (1 - WRITING) * making.order.minutes - progress.read)
    if progress.learned < minutes and not making.stopped():
        _learn(making, student, Lessons(lessons), exam, minutes)
    if shop.best.is_file():
        load_weights(student.model, shop.best)
    marks = exam.marks()
    _finish(making, student, marks, [
        *facts,
        ("learned from", f"{count:,} tokens that the target wrote, {', '.join(recipe.data) or 'asked by itself'}"),
        ("loss", recipe.loss),
        ("seed", str(recipe.seed)),
        ("minutes of writing, of running the target over it, of learning",
         f"{progress.wrote:.0f}, {progress.read:.0f}, {progress.learned:.0f}"),
        ("made on", f"{machine_line()}, {making.order.threads} threads"),
    ])  # fmt: skip
    return marks


def _learn(making: Making, student: Student, lessons: Lessons, exam: Examination, minutes: float) -> None:
    recipe, shop, progress = making.recipe, making.shop, making.shop.progress
    often = max(_OFTEN[0], 60 * _OFTEN[1] * minutes)
    course = Course(minutes, progress.learned, often, _TEXTS, _RATE, DIVERGENCES[recipe.loss], recipe.seed)
    with making.bar() as bar:
        task = bar.add_task("learns", total=minutes, said="")
        bar.update(task, completed=progress.learned)

        def told(now: float, marks: Marks) -> None:
            if shop.learned(now, marks):
                _keep(shop.best, student.model)
            shop.save()
            bar.update(task, completed=now, said=str(marks))

        train(student, lessons, course, shop.checkpoints, exam.marks, told, making.stopped)


def _begun(making: Making, lessons: list[Lesson], source: Source) -> list[Lesson]:
    """Lessons with what the target makes of them; computed once, since it does not learn."""
    shop, count = making.shop, sum(len(one.tokens) for one in lessons)
    if not shop.states.is_file():
        shop.check_room(2 * count * source.width)
        part, began, at = shop.states.with_suffix(".part.npy"), time.monotonic(), 0
        states = np.lib.format.open_memmap(part, "w+", np.float16, (count, source.width))
        with making.bar() as bar:
            task = bar.add_task(source.said, total=count, said="")
            for one in lessons:
                if making.stopped():
                    raise ConfigError("stopped before anything was learned: the same line goes on")
                states[at : at + len(one.tokens)] = source.states(one.tokens)
                at += len(one.tokens)
                bar.update(task, completed=at)
        states.flush()
        part.rename(shop.states)
        shop.progress.read = (time.monotonic() - began) / 60
        shop.save()
    states = np.load(shop.states, mmap_mode="r")
    if states.shape != (count, source.width):
        raise ModelError(f"{shop.states}: of other texts: delete it, the same line goes on")
    bounds = np.cumsum([0, *(len(one.tokens) for one in lessons)])
    return [replace(one, states=states[bounds[n] : bounds[n + 1]]) for n, one in enumerate(lessons)]


def _kept(making: Making, texts: list[Text]) -> list[int]:
    """Tokens that stay, the most used: chosen once, so that what was learned of them stays true."""
    file = making.shop.vocabulary
    if file.is_file():
        try:
            return msgspec.json.decode(file.read_bytes(), type=list[int])
        except msgspec.DecodeError as error:
            raise ModelError(f"{file}: damaged ({error}): delete {making.shop.out}, and begin anew") from None
    header = header_of(gguf.GGUFReader(making.target.path))
    found = list(range(len(header["tokenizer.ggml.tokens"])))
    if 0 < making.recipe.vocabulary < len(found):
        counts = np.zeros(len(found), np.int64)
        for text in texts:
            np.add.at(counts, text.tokens, 1)
        try:
            found = kept_tokens(header, counts, making.recipe.vocabulary)
        except ModelError as error:
            making.say(f"{error}: all of it stays")
    part = file.with_suffix(".part")
    part.write_bytes(msgspec.json.encode(found))
    part.rename(file)
    return found


def _keep(file: Path, model: Any) -> None:
    """The weights of the best student so far."""
    part = file.with_suffix(".part")
    save_model(model, str(part))
    part.rename(file)


def _finish(making: Making, student: Student, marks: Marks, facts: list[tuple[str, str]]) -> None:
    out, target = making.shop.out, making.target
    found = student.write(out)
    card = Card(target.name, licence_of(target.path), making.order.command, marks, facts)
    (out / "README.md").write_text(card.text())
    if find_spec("matplotlib") is not None:
        learning(making.shop.progress.history, out / "agreement.svg")
    size = sum(file.stat().st_size for file in ([found] if found.is_file() else found.iterdir()))
    making.say(f"{found}, {size / 1e6:.1f} MB: says what {target.name} says {marks}")
