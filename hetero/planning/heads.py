"""Heads beside their target: whether they belong together, and what the target must hand out for them."""

from __future__ import annotations

from collections.abc import Sequence

from hetero.placement.errors import ConfigError
from hetero.workers.engines.registry import EngineEntry, handing_out
from hetero.workers.errors import ModelError
from hetero.workers.models.head import OWN_LAYERS
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
        if head.kind == OWN_LAYERS and model.metadata.family != target.metadata.family:
            raise ModelError(f"{model.name} are of a {model.metadata.family} model, {target.name} is none")
        if head.kind == OWN_LAYERS and not target.is_gguf:
            raise ModelError(
                f"{model.name} are next-token layers for llama.cpp: they go with a GGUF file of their target"
            )
        wanted.add(head.states(target.metadata.layers))
    if len(wanted) > 1:
        raise ConfigError("also_draft: the heads draft from different layers of the target: take one of them")
    return list(wanted.pop()) if wanted else []


def check_hands_out(target: Model, states: Sequence[int], named: EngineEntry) -> None:
    """Raises ConfigError where the engine that was named for a target does not hand out these states."""
    if named.hands_out(target.metadata, states):
        return
    able = [entry.name for entry in handing_out(target.form, target.metadata, states)]
    raise ConfigError(
        f"target_engine: {named.name} does not hand out the hidden states of {target.name} that its head drafts from: "
        + (f"take {' or '.join(able)}" if able else "no engine does, take another --draft")
    )
