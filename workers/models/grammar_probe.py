"""A process that compiles grammars of strangers first, so that it is this one that dies or takes for ever.

Its first line names a model; each that follows is a grammar, answered by why it cannot be used (null: it can).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hetero.workers.errors import GrammarError
from hetero.workers.models.confined import answer_lines, limit_memory
from hetero.workers.models.tokenizer import load_tokenizer
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.sampling.grammar import Grammar

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


def _begin(model: str) -> Callable[[str], str | None]:
    vocabulary = load_tokenizer(Path(model)).vocabulary
    if vocabulary.ends:
        vocabulary.grammars.warm()
    limit_memory(_MEMORY)
    return lambda grammar: objection(vocabulary, grammar)


if __name__ == "__main__":
    answer_lines(_begin)
