"""Messages to a prompt, by the model's own chat template, in a process of its own (``template_process``).

Templates are programs of strangers: one may loop for ever, recurse, or fill the memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hetero.errors import RequestError
from hetero.gateway.chat.abilities import Abilities
from hetero.gateway.chat.messages import shown
from hetero.gateway.chat.sandbox import Overstrained, Sandbox
from hetero.workers.models.tokenizer import Tokenizer

_WAITING = 1024  # chats at once
_SECONDS = 5.0  # a chat may take to be rendered
# For models that bring no template: ChatML, as llama-server does.
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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
            if not found:  # perhaps only now
                return Abilities()
            self._abilities[which] = Abilities(**found)
        return self._abilities[which]

    async def render(
        self,
        shapes: Iterable[list[dict[str, Any]]],
        tools: list[dict[str, Any]] | None = None,
        more: dict[str, Any] | None = None,
        go_on: bool = False,
    ) -> str:
        """The prompt that asks for the assistant's next message, or (``go_on``) for the rest of the last one, of the
        first of ``shapes`` of the messages of which the template loses nothing, else the first that it takes; ``more``
        are variables of the template. Raises RequestError and Busy."""
        objection, kept = "", None
        for messages in shapes:
            text, wrong = await self._ask(self._which(bool(tools)), [messages, tools or None, more or {}, go_on])
            if not wrong and shown(messages, text):
                return str(text)
            kept = str(text) if not wrong and kept is None else kept
            objection = objection or wrong
        if kept is None:
            raise RequestError(f"messages: the model's chat template {objection}", "messages")
        return kept

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
