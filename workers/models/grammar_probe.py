"""A process that compiles grammars of strangers first, so that it is this one that dies or takes for ever.

Its first line names a model. Each that follows holds a grammar, answered by why it cannot be used (null: it can), or a
JSON schema, answered by that schema as it can be used and the keywords it has lost, or by why it cannot.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llguidance import LLMatcher

from hetero.workers.errors import GrammarError
from hetero.workers.models.confined import answer_lines, limit_memory
from hetero.workers.models.tokenizer import load_tokenizer
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.sampling.closing import closed
from hetero.workers.sampling.grammar import Grammar
from hetero.workers.sampling.relaxation import relaxed

_MEMORY = 512 << 20  # bytes of addresses all grammars may take; this process is begun anew where that is too little


def objection(vocabulary: Vocabulary, grammar: str) -> str | None:
    """Why a grammar cannot be used: as a verifier meets it, to its first mask."""
    wrong = vocabulary.grammars.objection(grammar)
    if wrong is not None:
        return wrong
    try:
        Grammar(vocabulary.grammars.compile(grammar).matcher).allowed(len(vocabulary))
    except GrammarError as error:
        return str(error)
    return None


def usable(vocabulary: Vocabulary, schema: Any) -> tuple[Any, list[str]] | str:
    """A schema as it is used: its objects closed (``sampling.closing``), with as much of it as can be, and what it lost
    (``sampling.relaxation``); or why it cannot."""

    def wrong(candidate: Any) -> str | None:
        return objection(vocabulary, LLMatcher.grammar_from_lark(f"start: %json {json.dumps(candidate)}"))

    if (narrow := closed(schema)) != schema and wrong(narrow) is None:
        return narrow, []
    first = wrong(schema)
    return (schema, []) if first is None else relaxed(schema, wrong) or first


def _begin(model: str) -> Callable[[dict[str, Any]], Any]:
    vocabulary = load_tokenizer(Path(model)).vocabulary
    if vocabulary.ends:
        vocabulary.grammars.warm()
    limit_memory(_MEMORY)

    def answer(question: dict[str, Any]) -> Any:
        if "schema" in question:
            return usable(vocabulary, question["schema"])
        return objection(vocabulary, question["grammar"])

    return answer


if __name__ == "__main__":
    answer_lines(_begin)
