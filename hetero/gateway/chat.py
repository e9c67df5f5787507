"""Messages to a prompt, by the model's own chat template: sandboxed, and run in a process of its own.

Templates are programs of strangers: one may loop for ever, recurse, or fill the memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hetero.errors import RequestError
from hetero.gateway.sandbox import Overstrained, Sandbox
from hetero.placement.errors import one_line
from hetero.workers.models.confined import answer_lines, limit_memory
from hetero.workers.models.tokenizer import LONGEST_TEXT, Tokenizer

_LARGEST = 1 << 20  # characters of a template
_WAITING = 1024  # chats at once
_SECONDS = 5.0  # a chat may take to be rendered
_MEMORY = 512 << 20  # bytes it may take
# For models that bring no template: ChatML, as llama-server does.
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


class ChatTemplate:
    """The template of one model. It comes from the model's files only, never from a request."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """A template that does not compile is told when it is first needed."""
        source = tokenizer.chat_template or _CHATML
        self.knows_tools = "tools" in source
        self.bos = tokenizer.bos
        names = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos}
        self._sandbox = Sandbox("hetero.gateway.chat", [source, names], _SECONDS, _WAITING, 2 * _SECONDS)
        self.close = self._sandbox.close

    async def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """The prompt that asks for the assistant's next message. Raises RequestError and Busy."""
        try:
            text, wrong = await self._sandbox.ask([messages, tools or None])
        except Overstrained as end:
            text, wrong = "", f"takes more than {_SECONDS:g} s for them" if end.slow else "overstrains its process"
        except RecursionError:
            text, wrong = "", "is not asked for messages or tools that are nested so deeply"
        if wrong:
            raise RequestError(f"messages: the model's chat template {wrong}", "messages")
        return str(text)


# In the process of its own


def compiled(source: str, names: dict[str, str]) -> Callable[[Any], tuple[str, str]]:
    """The function from ``[messages, tools]`` to (the prompt, what is wrong: one of them is "")."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise, strftime_now=lambda form: datetime.now().strftime(form))
    template, broken = None, ""
    try:
        if len(source) > _LARGEST:
            raise jinja2.TemplateError(f"it has {len(source)} characters, more than {_LARGEST}")
        template = environment.from_string(source)
    except Exception as error:  # jinja2 hands Python what it then cannot compile, too
        broken = f"cannot be used ({_said(error)}): ask /v1/completions"

    def render(question: Any) -> tuple[str, str]:
        if template is None:
            return "", broken
        messages, tools = question
        parts, size = [], 0
        try:
            for part in template.generate(messages=messages, tools=tools, add_generation_prompt=True, **names):
                parts.append(part)
                size += len(part)
                if size > LONGEST_TEXT:
                    return "", f"makes more than {LONGEST_TEXT} characters of them"
            return "".join(parts), ""
        except Exception as error:  # whatever its program does
            return "", f"refuses them: {_said(error)}"

    return render


def _said(error: Exception) -> str:
    return one_line(str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    """JSON as models were trained on it, as transformers writes it: not escaped for HTML, keys in their order."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def _begin(greeting: Any) -> Callable[[Any], tuple[str, str]]:
    render = compiled(*greeting)
    limit_memory(_MEMORY)
    return render


if __name__ == "__main__":
    answer_lines(_begin)
