"""What a target is asked while it writes: the user's prompts, or its own.

A chat model that is shown the beginning of a user's turn writes one (Xu et al. 2024, "Magpie"): prompts like those it
was made for, with no data at hand. A model without a chat template writes texts.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetero.distill.answers import Prompt
from hetero.errors import ConfigError
from hetero.gateway.chat.template import ChatTemplate
from hetero.workers.models.tokenizer import Tokenizer

_MARK = "@the prompt@"
_TEMPERATURES = (0.0, 0.8, 0.8, 1.0)  # answers', one after the other
_ASKING = 0.9  # of the prompts it asks itself: varied, and still sense
_SUFFIXES = {".jsonl", ".txt", ".md", ".py", ".json", ".html", ".rst"}
_LONGEST = 64 << 20  # bytes of a file
_PART = 400  # characters of a text that a target goes on from


@dataclass(frozen=True)
class Chat:
    """How a model's chats are written, ``before`` and ``after`` what a user says; ``turn``: what is after the token
    that ends it, () where no token does and the model merely writes."""

    before: list[int]
    after: list[int]
    turn: tuple[int, ...] = ()

    def of(self, said: Sequence[int]) -> list[int]:
        """The prompt that asks for an answer."""
        return [*self.before, *said, *self.after]


def chat_of(tokenizer: Tokenizer) -> Chat:
    """A model's, by its own template."""
    if not tokenizer.chat_templates:
        return Chat([], [])
    text = asyncio.run(_rendered(tokenizer, _MARK))
    before, _, after = text.partition(_MARK)
    found = tokenizer.encode(after, False)
    end = next((n for n, token in enumerate(found) if token in tokenizer.vocabulary.ends), len(found))
    # A template that writes the BOS token itself must not get a second one.
    special = not (tokenizer.bos and before.startswith(tokenizer.bos))
    return Chat(tokenizer.encode(before, special), found, tuple(found[end + 1 :]))


async def _rendered(tokenizer: Tokenizer, said: str) -> str:
    template = ChatTemplate(tokenizer)
    try:
        return await template.render([[{"role": "user", "content": said}]])
    finally:
        await template.close()


def own_prompts(chat: Chat, tokenizer: Tokenizer) -> Iterator[Prompt]:
    """For ever: a user's turn and its answer, or texts from nowhere."""
    # What ends the user's turn ends what the target says of it, so the rest of it follows.
    while chat.turn:
        for temperature in _TEMPERATURES:
            yield Prompt((chat.before * 2)[: max(2, len(chat.before))], (chat.turn,), (_ASKING, temperature))
    newline = tokenizer.encode("\n\n", False)
    while True:
        yield Prompt((tokenizer.encode("", True) + newline + newline)[:2], temperatures=(1.0,))


def read_prompts(files: Sequence[Path], chat: Chat, tokenizer: Tokenizer, longest: int, seed: int) -> list[Prompt]:
    """Those of files or folders: .jsonl with a "prompt", "turns" or "messages" a line, or texts, which the target goes
    on with. ``longest``: tokens. Raises ConfigError."""
    found: list[Prompt] = []
    chance = random.Random(seed)
    for path in files:
        inside = (
            sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file()) if path.is_dir() else [path]
        )
        for file in inside:
            try:
                if file.stat().st_size > _LONGEST:
                    raise ConfigError(f"data: {file} has more than {_LONGEST >> 20} MiB: split it")
                text = file.read_text(errors="replace")
            except OSError as error:
                raise ConfigError(f"data: {file}: {error.strerror or error}") from None
            if file.suffix == ".jsonl":
                asked = [_said(line, file, n) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
                for n, said in enumerate(asked):
                    tokens = chat.of(tokenizer.encode(said, False))[-longest:]
                    found.append(Prompt(tokens, temperatures=(_TEMPERATURES[n % len(_TEMPERATURES)],)))
            else:
                parts = [text[at : at + _PART] for at in range(0, len(text), 2 * _PART)]
                found += [Prompt(tokenizer.encode(part)[:longest], temperatures=(0.8,)) for part in parts]
    found = list({tuple(prompt.tokens): prompt for prompt in found if len(prompt.tokens) > 1}.values())
    if not found:
        raise ConfigError(f"data: there are no prompts in {', '.join(map(str, files))}")
    chance.shuffle(found)
    return found


def _said(line: str, file: Path, number: int) -> str:
    """What the user says first."""
    try:
        entry: Any = json.loads(line)
        if isinstance(entry.get("prompt"), str):
            return str(entry["prompt"])
        if isinstance(entry.get("turns"), list):
            return str(entry["turns"][0])
        return str(next(m["content"] for m in entry["messages"] if m["role"] == "user"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, StopIteration):
        raise ConfigError(
            f'data: {file}, line {number}: neither {{"prompt": ...}} nor {{"turns": [...]}} nor {{"messages": [...]}}'
        ) from None
