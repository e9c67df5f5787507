"""Whether a drafter speaks its target's tokens, or how many of them it can propose through a translation."""

from __future__ import annotations

from dataclasses import dataclass

from hetero.data import HELD_OUT, PROMPTS
from hetero.workers.errors import ModelError
from hetero.workers.models.forms import HEAD
from hetero.workers.models.model import Model, vocabulary_difference
from hetero.workers.models.translation import translation

_LEAST = 0.5  # of the tokens of a text; a drafter that can propose fewer is of little use
_TEXT = 20_000  # characters of each text


@dataclass(frozen=True)
class Shared:
    """``difference``: of the two vocabularies, "" where they are the same; ``share``: of the tokens that the target
    uses in a text, those that the drafter can propose."""

    difference: str
    share: float = 1.0


def spoken(target: Model, drafter: Model) -> str:
    """Whose tokens a drafter is asked in: the path of its target, "" where those are its own and it is
    no head. Raises ModelError."""
    own = drafter.form != HEAD and not shared(target, drafter).difference
    return "" if own else str(target.path.resolve())


def shared(target: Model, drafter: Model) -> Shared:
    """What two models have in common. Raises ModelError where it is too little."""
    difference = vocabulary_difference(target, drafter)
    if not difference:
        return Shared("")
    text = HELD_OUT.read_text()[:_TEXT] + PROMPTS.read_text()[:_TEXT]
    both = translation(target.tokenizer.vocabulary, drafter.tokenizer.vocabulary)
    share = both.share(target.tokenizer.encode(text, False))
    if share < _LEAST:
        raise ModelError(
            f"vocabulary mismatch between target {target.name} and drafter {drafter.name}: {difference}, and only "
            f"{share:.0%} of the tokens of a text are tokens of both; take a drafter of the target's family, or "
            "--draft none"
        )
    return Shared(difference, share)
