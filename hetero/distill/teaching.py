"""The student's part: it learns from what the target wrote, and its best is written where any engine reads it."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
from safetensors.torch import load_file, save_file

from hetero.bench.plots import learning
from hetero.cluster.inventory import machine_line
from hetero.distill import examination
from hetero.distill.card import Card, licence_of
from hetero.distill.corpus import Corpus, Text
from hetero.distill.divergence import DIVERGENCES
from hetero.distill.examination import Examination, Marks
from hetero.distill.lessons import Lesson, Lessons, lesson
from hetero.distill.making import CONTEXT, WRITING, Making
from hetero.distill.recipe import Recipe
from hetero.distill.student import Trunk, freeze_vocabulary, last, make_student, spread, write_student
from hetero.distill.training import Course, train
from hetero.errors import ConfigError, ModelError
from hetero.workers.models.adapter import write_adapter
from hetero.workers.models.gguf_writing import header_of
from hetero.workers.models.model import Model
from hetero.workers.models.tokenizer import load_tokenizer
from hetero.workers.models.translation import Translation, translation
from hetero.workers.models.trimming import kept_tokens

_LONGEST = 256  # tokens of a text that is learned from
_TEXTS, _RATE = 2, 5e-4  # texts a step; the rate of learning at its highest
_OFTEN = (20.0, 0.04)  # seconds, or a share of the time, between two examinations
_LEAST = 2000  # tokens to learn from
_BARELY = 0.1  # minutes of learning, whatever else took


def layers_of(recipe: Recipe, target: Model) -> list[int]:
    """The target's layers that learn. Raises ConfigError."""
    whole = target.shape.layers
    return last(whole, recipe.layers, recipe.exit) if recipe.exit else spread(whole, recipe.layers)


def teach(making: Making) -> Marks:
    """Learn for the rest of the time, write the drafter, and return its marks. Raises HeteroError."""
    recipe, progress, shop = making.recipe, making.shop.progress, making.shop
    texts = list(Corpus(shop.corpus).texts())
    kept = _kept(making, texts)
    layers = layers_of(recipe, making.target)
    student = make_student(making.target.path, layers, kept)
    words = _translation(making, student, kept)
    lessons = [one for text in texts if len((one := lesson(text, words, _LONGEST)).places)]
    count = sum(len(one.places) for one in lessons)
    if count < _LEAST:
        shop.vocabulary.unlink(missing_ok=True)  # it may still write more
        why = "stopped early" if making.stopped() else f"minutes: {making.order.minutes:g} are too few"
        raise ConfigError(f"{why}: the target wrote {count} tokens to learn from, {_LEAST} are the least")
    trunk = Trunk(making.target.path, recipe.exit, kept) if recipe.exit else None
    if trunk is not None:
        freeze_vocabulary(student)
        lessons = _begun(making, lessons, trunk)
    exam = Examination(examination.kept(shop.held_out), words, CONTEXT // 2, trunk)
    weights = sum(p.numel() for p in student.parameters())
    making.say(
        f"{weights / 1e6:.1f}M weights: layers {', '.join(map(str, layers))}"
        + (f" behind the first {recipe.exit}" if recipe.exit else "")
        + f", {student.config.vocab_size:,} tokens; {count:,} tokens to learn from"
    )
    minutes = max(_BARELY, (1 - WRITING) * making.order.minutes - progress.read)
    if progress.learned < minutes and not making.stopped():
        _learn(making, student, Lessons(lessons), exam, minutes)
    if shop.best.is_file():
        student.load_state_dict(load_file(shop.best), strict=False)
        student.tie_weights()
    marks = exam.of(student)
    _finish(making, student, kept, marks, [
        ("layers of the target's that learned", ", ".join(map(str, layers))),
        ("layers before them, as they are in the target", str(recipe.exit)),
        ("weights that could learn", f"{weights:,}"),
        ("tokens it can propose", f"{student.config.vocab_size:,}"),
        ("learned from", f"{count:,} tokens that the target wrote, {', '.join(recipe.data) or 'asked by itself'}"),
        ("loss", recipe.loss),
        ("seed", str(recipe.seed)),
        ("minutes of writing, of running the first layers, of learning",
         f"{progress.wrote:.0f}, {progress.read:.0f}, {progress.learned:.0f}"),
        ("made on", f"{machine_line()}, {making.order.threads} threads"),
    ])  # fmt: skip
    return marks


def _learn(making: Making, student: Any, lessons: Lessons, exam: Examination, minutes: float) -> None:
    recipe, shop, progress = making.recipe, making.shop, making.shop.progress
    often = max(_OFTEN[0], 60 * _OFTEN[1] * minutes)
    course = Course(minutes, progress.learned, often, _TEXTS, _RATE, DIVERGENCES[recipe.loss], recipe.seed)
    with making.bar() as bar:
        task = bar.add_task("learns", total=minutes, said="")
        bar.update(task, completed=progress.learned)

        def told(now: float, marks: Marks) -> None:
            if shop.learned(now, marks):
                _keep(shop.best, student)
            shop.save()
            bar.update(task, completed=now, said=str(marks))

        train(student, lessons, course, shop.checkpoints, partial(exam.of, student), told, making.stopped)


def _begun(making: Making, lessons: list[Lesson], trunk: Trunk) -> list[Lesson]:
    """Lessons that begin from what leaves the first layers; computed once, since those do not learn."""
    shop, count = making.shop, sum(len(one.tokens) for one in lessons)
    if not shop.states.is_file():
        shop.check_room(2 * count * trunk.width)
        part, began, at = shop.states.with_suffix(".part.npy"), time.monotonic(), 0
        states = np.lib.format.open_memmap(part, "w+", np.float16, (count, trunk.width))
        with making.bar() as bar:
            task = bar.add_task(f"the first {making.recipe.exit} layers", total=count, said="")
            for one in lessons:
                if making.stopped():
                    raise ConfigError("stopped before anything was learned: the same line goes on")
                states[at : at + len(one.tokens)] = trunk.states(one.tokens)
                at += len(one.tokens)
                bar.update(task, completed=at)
        states.flush()
        part.rename(shop.states)
        shop.progress.read = (time.monotonic() - began) / 60
        shop.save()
    states = np.load(shop.states, mmap_mode="r")
    if states.shape != (count, trunk.width):
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


def _translation(making: Making, student: Any, kept: list[int]) -> Translation | None:
    """Between the target's tokens and the drafter's; None: they are the same."""
    vocabulary = making.target.tokenizer.vocabulary
    if len(kept) == len(vocabulary):
        return None
    file = making.shop.folder / "vocabulary.gguf"
    write_student(student, making.target.path, kept, "q8_0", file)
    own = load_tokenizer(file).vocabulary
    file.unlink()
    return translation(vocabulary, own)


def _keep(file: Path, student: Any) -> None:
    """The weights of the best student so far."""
    part = file.with_suffix(".part")
    state = {name: tensor.contiguous() for name, tensor in student.state_dict().items()}
    if student.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    save_file(state, part)
    part.rename(file)


def _finish(making: Making, student: Any, kept: list[int], marks: Marks, facts: list[tuple[str, str]]) -> None:
    recipe, out, target = making.recipe, making.shop.out, making.target
    file, adapter = out / "drafter.gguf", out / "adapter.gguf"
    part = file.with_suffix(".part")
    write_student(student, target.path, kept, recipe.kind, part, recipe.exit)
    part.rename(file)
    if recipe.exit:
        write_adapter(file, target.path, kept, recipe.exit, part)
        part.rename(adapter)
    card = Card(target.name, licence_of(target.path), making.order.command, marks, facts)
    (out / "README.md").write_text(card.text())
    if find_spec("matplotlib") is not None:
        learning(making.shop.progress.history, out / "agreement.svg")
    making.say(f"{file}, {file.stat().st_size / 1e6:.1f} MB: says what {target.name} says {marks}")
