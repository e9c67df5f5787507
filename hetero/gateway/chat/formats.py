"""How models write what is no plain text: their reasoning, and calls of functions. Chosen from template and vocabulary.

The formats are those their makers publish: Hermes and Qwen (``<tool_call>`` with JSON), Qwen3-Coder (the same with XML
inside), Mistral (``[TOOL_CALLS]``, as a list, or by name and ``[ARGS]``), Llama 3 (bare JSON), gpt-oss (harmony's
channels).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hetero.workers.models.vocabulary import Vocabulary

Style = Literal["json", "list", "named", "bare", "xml", "harmony"]

# Reasoning lies between these, in the models that have them.
_THINKING = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
)
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>")
_FINAL = "<|channel|>final<|message|>"


@dataclass(frozen=True)
class CallFormat:
    """``begin`` stands before a call (before all of them, in a list), ``end`` behind it."""

    style: Style
    begin: str
    end: str = ""
    arguments: str = "arguments"  # the key of them, in JSON
    gap: str = "\n"  # between calls


HERMES = CallFormat("json", "<tool_call>", "</tool_call>")
XML = CallFormat("xml", "<tool_call>", "</tool_call>")
MISTRAL = CallFormat("list", "[TOOL_CALLS]", gap=", ")
MISTRAL_NAMED = CallFormat("named", "[TOOL_CALLS]", gap="")
LLAMA = CallFormat("bare", "", arguments="parameters", gap="; ")
GPT_OSS = CallFormat("harmony", "<|channel|>commentary to=functions.", "<|call|>", gap="")


@dataclass(frozen=True)
class Format:
    """One model's. ``think``: where reasoning begins and ends, if it has any, and ``begin`` the token it begins with
    (-1: it is not one token); ``tokens``: markers that are tokens without bytes, which must be shown by their names to
    be seen."""

    calls: CallFormat = HERMES
    think: tuple[str, str] | None = None
    begin: int = -1
    tokens: dict[str, int] = field(default_factory=dict)

    @property
    def harmony(self) -> bool:
        return self.calls.style == "harmony"

    def opened(self, prompt: str) -> bool:
        """Whether a prompt ends within reasoning."""
        return self.think is not None and prompt.rstrip().endswith(self.think[0])

    def closing(self) -> str:
        """What ends reasoning that has taken long enough."""
        if self.harmony:
            return f"<|end|><|start|>assistant{_FINAL}"
        return f"\n{self.think[1]}\n\n" if self.think is not None else ""

    def end_of_thinking(self) -> str:
        """The text after which an answer, and its grammar, begin; "" for models that do not reason."""
        return _FINAL if self.harmony else self.think[1] if self.think is not None else ""


def format_of(template: str, vocabulary: Vocabulary) -> Format:
    """The format of a model with this chat template."""
    controls = {name.decode(errors="replace"): token for token, name in vocabulary.names.items()}
    wanted = {marker.encode() for pair in _THINKING for marker in pair}
    known = {piece.decode(): token for token, piece in enumerate(vocabulary.pieces) if piece in wanted} | controls
    think = next((pair for pair in _THINKING if pair[1] in template or (pair[0] in known and pair[1] in known)), None)
    calls = HERMES
    if "<|channel|>" in template and "<|message|>" in template:
        calls, think = GPT_OSS, None
    elif "<tool_call>" in template:
        calls = XML if "<function=" in template else HERMES
    elif "[TOOL_CALLS]" in template:
        calls = MISTRAL_NAMED if "[ARGS]" in template or "[CALL_ID]" in template else MISTRAL
    elif "<|python_tag|>" in template or "Environment: ipython" in template:
        calls = LLAMA
    markers = {calls.begin, calls.end, "[ARGS]", "[CALL_ID]", "<|python_tag|>", *(think or ())}
    markers |= set(HARMONY) if calls is GPT_OSS else set()
    begin = known.get(think[0], -1) if think is not None else -1
    return Format(calls, think, begin, {marker: controls[marker] for marker in markers if marker in controls})
