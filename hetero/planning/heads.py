"""Heads beside their target: whether they belong together, and what the target must hand out for them."""

from __future__ import annotations

from collections.abc import Sequence

from hetero.placement.errors import ConfigError
from hetero.workers.engines.registry import ENGINES, EngineEntry
from hetero.workers.errors import ModelError
from hetero.workers.models.model import Model


def states_for(target: Model, drafters: Sequence[Model]) -> list[int]:
    """Layers of a target whose input its heads draft from; [] without heads. Raises ModelError where a head is not the
    target's, ConfigError where two want different ones."""
    wanted = set()
    for model in drafters:
        if (head := model.head) is None:
            continue
        theirs, own = head.numbers["vocab_size"], target.shape.vocabulary
        if head.width != target.metadata.width or theirs != own:
            raise ModelError(
                f"{model.name} is the head of another model: it wants states of {head.width} numbers and {theirs} "
                f"tokens, {target.name} has {target.metadata.width} and {own}"
            )
        wanted.add(head.states(target.metadata.layers))
    if len(wanted) > 1:
        raise ConfigError("also_draft: the heads draft from different layers of the target: take one of them")
    return list(wanted.pop()) if wanted else []


def check_hands_out(form: str, named: EngineEntry) -> None:
    """Raises ConfigError where the engine that was named for a target hands out no states."""
    if not named.features:
        able = [entry.name for entry in ENGINES.values() if entry.features and form in entry.formats]
        raise ConfigError(
            f"target_engine: {named.name} hands out no hidden states, which a head drafts from: "
            f"take {' or '.join(able) or 'none that reads it'}"
        )
