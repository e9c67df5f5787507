"""The frozen prompts of benchmarks: chats, edits, summaries, extractions."""

from __future__ import annotations

import json

from hetero.data import PROMPTS
from hetero.gateway.chat.template import ChatTemplate
from hetero.workers.models.tokenizer import GgufTokenizer


async def chat_prompts(tokenizer: GgufTokenizer, count: int, most: int) -> list[tuple[str, list[int]]]:
    """Of each kind the first ``count`` with their kind, as the model's chat template has them; ``most`` tokens of
    each."""
    template = ChatTemplate(tokenizer)
    taken: dict[str, int] = {}
    found = []
    try:
        for line in PROMPTS.read_text().splitlines():
            entry = json.loads(line)
            category = entry["category"]
            taken[category] = taken.get(category, 0) + 1
            if taken[category] <= count:
                text = await template.render([[{"role": "user", "content": entry["turns"][0]}]])
                found.append((category, tokenizer.encode(text)[:most]))
    finally:
        await template.close()
    return found
