"""A process that compiles grammars of strangers first, so that it is this one that dies or takes for ever.

``python -P -m hetero.workers.models.grammar_probe MODEL`` writes ``ready``, then an answer for each line it reads: both
JSON, a grammar and why it cannot be used (null: it can). The end of input ends it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

from hetero.workers.errors import GrammarError
from hetero.workers.models.tokenizer import load_tokenizer
from hetero.workers.models.vocabulary import Vocabulary

_MEMORY = 1 << 30  # bytes a grammar may take


def objection(vocabulary: Vocabulary, grammar: str) -> str | None:
    """Why a grammar cannot be used: as a verifier meets it, to its first mask."""
    wrong = vocabulary.grammars.objection(grammar)
    if wrong is not None:
        return wrong
    try:
        vocabulary.grammars.start(grammar).allowed(len(vocabulary))
    except GrammarError as error:
        return str(error)
    return None


def main() -> None:
    """Answer until the input ends."""
    vocabulary = load_tokenizer(Path(sys.argv[1])).vocabulary
    if vocabulary.ends:
        vocabulary.grammars.warm()
    if sys.platform == "linux":  # elsewhere the limit is not kept
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(objection(vocabulary, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
