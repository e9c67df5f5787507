"""Messages to a prompt, by the model's own chat template, in a process of its own (``template_process``).

Templates are programs of strangers: one may loop for ever, recurse, or fill the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hetero.errors import RequestError
from hetero.gateway.chat.sandbox import Overstrained, Sandbox
from hetero.workers.models.tokenizer import Tokenizer

_WAITING = 1024  # chats at once
_SECONDS = 5.0  # a chat may take to be rendered
# For models that bring no template: ChatML, as llama-server does.
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Abilities:
    """What a template was seen to do with small chats. ``system``: it takes a first message of that role, and
    (``anywhere``) later ones; ``tools``, ``calls``, ``results``: they reach the prompt; ``texts``: it wants the
    arguments of calls as text, not as an object; ``nine``: it takes ids of calls only that have nine letters and
    digits; ``repeats``: it takes two messages of one role in a row; ``opens_with_assistant``: a chat may begin with the
    assistant's; ``parts``: contents must be lists of parts."""

    system: bool = True
    anywhere: bool = False
    tools: bool = False
    calls: bool = False
    results: bool = False
    texts: bool = False
    nine: bool = False
    repeats: bool = True
    opens_with_assistant: bool = True
    parts: bool = False


class ChatTemplate:
    """The templates of one model, of which one is for tools. They come from the model's files only, never from a
    request."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """A template that does not compile is told when it is first needed."""
        templates = tokenizer.chat_templates
        plain = templates.get("default") or next(iter(templates.values()), _CHATML)
        self.sources = (plain, templates.get("tool_use", plain))
        self.bos = tokenizer.bos
        names = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos}
        module = "hetero.gateway.chat.template_process"
        self._sandboxes = [
            Sandbox(module, [source, names], _SECONDS, _WAITING, 2 * _SECONDS) for source in dict.fromkeys(self.sources)
        ]
        self._abilities: dict[int, Abilities] = {}

    async def close(self) -> None:
        """End its processes."""
        for sandbox in self._sandboxes:
            await sandbox.close()

    def source(self, tools: bool) -> str:
        """The template of a chat with or without ``tools``."""
        return self.sources[tools]

    async def abilities(self, tools: bool) -> Abilities:
        """What the template of a chat with or without ``tools`` can do. Raises RequestError and Busy."""
        which = self._which(tools)
        if which not in self._abilities:
            found, _ = await self._ask(which, None)
            self._abilities[which] = Abilities(**found) if found else Abilities()
        return self._abilities[which]

    async def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        more: dict[str, Any] | None = None,
        go_on: bool = False,
    ) -> str:
        """The prompt that asks for the assistant's next message, or (``go_on``) for the rest of the last one; ``more``
        are variables of the template. Raises RequestError and Busy."""
        text, wrong = await self._ask(self._which(bool(tools)), [messages, tools or None, more or {}, go_on])
        if wrong:
            raise RequestError(f"messages: the model's chat template {wrong}", "messages")
        return str(text)

    def _which(self, tools: bool) -> int:
        return len(self._sandboxes) - 1 if tools else 0

    async def _ask(self, which: int, question: Any) -> tuple[Any, str]:
        try:
            found, wrong = await self._sandboxes[which].ask(question)
        except Overstrained as end:
            return "", f"takes more than {_SECONDS:g} s for them" if end.slow else "overstrains its process"
        except RecursionError:
            return "", "is not asked for messages or tools that are nested so deeply"
        return found, str(wrong)
