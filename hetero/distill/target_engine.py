"""The engine that runs the target, as making a drafter needs it."""

from __future__ import annotations

from hetero.distill.making import Making
from hetero.distill.students.head import HEADS, head_states
from hetero.workers.engines.base import Engine
from hetero.workers.engines.registry import EngineSettings, default_engine, find_engine
from hetero.workers.models.forms import GGUF


def target_engine(making: Making, sequences: int) -> Engine:
    """Loaded, for so many texts at once; for a head it hands out the states that the head drafts from. Raises
    HeteroError."""
    order, target = making.order, making.target
    head = making.recipe.kind in HEADS
    states = head_states(making.recipe.kind, target.shape.layers) if head else ()
    named = order.engine
    entry = find_engine(named) if named else default_engine(GGUF, "cpu", target.metadata, states)
    settings = EngineSettings(target.path, order.threads, sequences, making.context, draft_nodes=8, features=states)
    return entry.load(settings)
