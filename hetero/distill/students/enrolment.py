"""Which student an order asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hetero.distill.making import Making
from hetero.distill.recipe import Recipe
from hetero.distill.students.head import HEADS, Head, Observed
from hetero.distill.students.layers import Layers, last, spread
from hetero.distill.students.student import Student
from hetero.distill.target_engine import target_engine
from hetero.errors import ConfigError

KINDS = ("small", "exit", *HEADS)
_USUAL = {"small": 3, "exit": 3}  # layers that learn; of a head one


def layers_of(recipe: Recipe, whole: int) -> list[int]:
    """The layers of a target of so many that a student begins as. Raises ConfigError."""
    count = recipe.layers or _USUAL.get(recipe.kind, 1)
    if recipe.kind not in KINDS:
        raise ConfigError(f"kind: {recipe.kind!r} is unknown: choose {', '.join(KINDS)}")
    if (recipe.kind == "exit") != (recipe.exit > 0):
        raise ConfigError("exit: how many of the target's layers stay before the others: for kind exit, and only there")
    if recipe.kind == "small":
        return spread(whole, count)
    return last(whole, count, recipe.exit or 1)


@contextmanager
def enrolled(making: Making, kept: Sequence[int]) -> Iterator[Student]:
    """The student, with only ``kept`` tokens to say; its source ends with this. Raises HeteroError."""
    recipe, target = making.recipe, making.target
    layers = layers_of(recipe, target.shape.layers)
    if recipe.kind not in HEADS:
        yield Layers(target.path, layers, kept, recipe.exit, recipe.type)
        return
    engine = target_engine(making, 1)
    try:
        yield Head(recipe.kind, target.path, len(layers), kept, Observed(engine))
    finally:
        engine.shutdown()
