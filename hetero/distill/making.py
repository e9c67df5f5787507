"""What all who make a drafter need: the target, the order, the folder, and somebody to tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hetero.distill.recipe import Recipe, Workshop
from hetero.workers.models.model import Model

WRITING = 0.35  # of the minutes, until all else is learning
CONTEXT = 1024  # tokens of a text
HELD_OUT = 12  # prompts that are kept apart


@dataclass(frozen=True)
class Order:
    """What is asked for. ``minutes`` of writing and of learning; ``command`` as it was given; ``engine`` that runs the
    target, "" for the usual one; ``foresee``: whether to say what the pair would do on this machine."""

    recipe: Recipe
    minutes: float
    threads: int
    engine: str
    command: str
    foresee: bool = True


@dataclass(frozen=True)
class Making:
    """A drafter that is being made; ``stopped``: whether it is to end early, with the best so far."""

    target: Model
    order: Order
    shop: Workshop
    console: Console
    stopped: Callable[[], bool]

    @property
    def recipe(self) -> Recipe:
        return self.order.recipe

    @property
    def context(self) -> int:
        """Tokens of a text of the target's."""
        return min(CONTEXT, self.target.context)

    def say(self, line: str) -> None:
        """Tell the user."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def bar(self) -> Progress:
        """For what takes its time; its tasks have a ``said``."""
        columns = (
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
        )  # fmt: skip
        return Progress(*columns, console=self.console, transient=True)
