"""Messages to a prompt, by the model's own chat template, rendered in a sandbox."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hetero.errors import RequestError
from hetero.workers.models.tokenizer import Tokenizer

_LARGEST = 1 << 20  # characters of a template
# For models that bring no template: ChatML, as llama-server does.
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    """JSON as models were trained on it, as transformers writes it: not escaped for HTML, keys in their order."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


class ChatTemplate:
    """The compiled template of one model. Templates come from model files only, never from requests."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """A template that does not compile is told when it is first needed."""
        source = tokenizer.chat_template or _CHATML
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_raise, strftime_now=lambda form: datetime.now().strftime(form))
        self.knows_tools = "tools" in source
        self._template: jinja2.Template | None = None
        self._broken = ""
        try:
            if len(source) > _LARGEST:
                raise jinja2.TemplateError(f"it has {len(source)} characters, more than {_LARGEST}")
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            self._broken = f"the model's chat template cannot be used ({error}): ask /v1/completions"
        self._names = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos}

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """The prompt that asks for the assistant's next message. Raises RequestError."""
        if self._template is None:
            raise RequestError(f"messages: {self._broken}", "messages")
        try:
            names = {"add_generation_prompt": True, **self._names}
            return self._template.render(messages=messages, tools=tools or None, **names)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise RequestError(f"messages: the model's chat template refuses them: {error}", "messages") from error

    @property
    def has_bos(self) -> str:
        """The text a rendered prompt may begin with that the tokenizer would add again."""
        return self._names["bos_token"]
