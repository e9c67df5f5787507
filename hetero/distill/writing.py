"""The target's part: answers that the drafter will be examined on, then, for a share of the time, texts it learns."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from hetero.data import HELD_OUT as PYTHON
from hetero.data import PROMPTS
from hetero.distill import examination
from hetero.distill.answers import Author, Prompt
from hetero.distill.corpus import Corpus
from hetero.distill.making import HELD_OUT, WRITING, Making
from hetero.distill.prompts import Chat, chat_of, own_prompts, read_prompts
from hetero.distill.target_engine import target_engine
from hetero.errors import ConfigError
from hetero.workers.engines.base import Engine

_SEQUENCES = 32  # texts at once
_ANSWER = 96  # tokens of an answer that is kept apart
_SAVED = 60.0  # seconds between two times that what was written is kept


def write(making: Making) -> None:
    """Have the target write, unless it has done so, or something was learned already. Raises HeteroError."""
    shop, minutes = making.shop, WRITING * making.order.minutes
    if shop.vocabulary.is_file() or (shop.held_out.is_file() and shop.progress.wrote >= minutes):
        return
    tokenizer = making.target.tokenizer
    chat = chat_of(tokenizer)
    asked = _asked(making, chat)
    engine = target_engine(making, _SEQUENCES)
    try:
        if not shop.held_out.is_file():
            making.say(f"{making.target.name} answers what the drafter will be examined on")
            apart = _apart(making, chat, asked)
            shop.save()
            examination.keep(examination.answers(engine, tokenizer.vocabulary.ends, apart, _ANSWER), shop.held_out)
        if asked is None:
            _texts(making, engine, own_prompts(chat, tokenizer))
        else:
            rest = asked[HELD_OUT:]
            _texts(making, engine, (rest[n % len(rest)] for n in count(shop.progress.asked)))
    finally:
        engine.shutdown()


def _texts(making: Making, engine: Engine, prompts: Iterator[Prompt]) -> None:
    shop, minutes = making.shop, WRITING * making.order.minutes
    corpus, progress = Corpus(shop.corpus), shop.progress
    author = Author(engine, making.target.tokenizer.vocabulary.ends, making.recipe.seed + 1 + corpus.pieces)
    began, before = time.monotonic(), progress.wrote
    saved, tokens = began, 0

    def over() -> bool:
        progress.wrote = before + (time.monotonic() - began) / 60
        return progress.wrote >= minutes or making.stopped()

    try:
        with making.bar() as bar:
            task = bar.add_task(f"{making.target.name} writes", total=minutes, said="")
            for text in author.write(prompts, over):
                corpus.add(text)
                progress.asked += 1
                tokens += len(text.ids)
                now = time.monotonic()
                if now - saved > _SAVED:
                    corpus.flush()
                    shop.save()
                    saved = now
                said = f"{tokens:,} tokens, {tokens / max(1e-3, now - began):.0f} a second"
                bar.update(task, completed=progress.wrote, said=said)
    finally:
        corpus.flush()
        shop.save()


def _asked(making: Making, chat: Chat) -> list[Prompt] | None:
    """The user's prompts; None: there are none."""
    if not making.recipe.data:
        return None
    files = [Path(path).expanduser() for path in making.recipe.data]
    found = read_prompts(files, chat, making.target.tokenizer, making.context // 2, making.recipe.seed)
    if len(found) < 2 * HELD_OUT:
        raise ConfigError(f"data: {len(found)} prompts are too few: {2 * HELD_OUT} different ones are the least")
    return found


def _apart(making: Making, chat: Chat, asked: list[Prompt] | None) -> list[list[int]]:
    """Prompts that are not learned from: some of the user's, else some that come with hetero."""
    if asked is not None:
        return [prompt.tokens for prompt in asked[:HELD_OUT]]
    encode = making.target.tokenizer.encode
    if chat.turn:
        lines = [examination.turn(line) for line in PROMPTS.read_text().splitlines()]
        few = lines[:: max(1, len(lines) // HELD_OUT)]
        return [chat.of(encode(said, False))[-making.context // 2 :] for said in few]
    text = PYTHON.read_text()
    step = len(text) // (HELD_OUT + 1)
    return [encode(text[n * step : n * step + 400]) for n in range(HELD_OUT)]
