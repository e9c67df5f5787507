"""``hetero distill``: the target writes, a student learns from it, and is written where any engine reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from rich.console import Console
from safetensors import SafetensorError

from hetero.cluster.inventory import take_inventory
from hetero.config import make_config
from hetero.distill.card import licence_of
from hetero.distill.examination import Marks
from hetero.distill.making import WRITING, Making, Order
from hetero.distill.recipe import Workshop
from hetero.distill.students.enrolment import layers_of
from hetero.distill.students.head import HEADS, head_states
from hetero.distill.students.layers import FAMILIES
from hetero.distill.teaching import teach
from hetero.distill.writing import write
from hetero.errors import ConfigError, HeteroError, MemoryShortage, ModelError
from hetero.models import find_model
from hetero.planning.planner import planner_of
from hetero.planning.ranking import Ranker
from hetero.planning.table import verdict
from hetero.workers.engines.registry import find_engine, handing_out
from hetero.workers.engines.torch.divergence import DIVERGENCES
from hetero.workers.models.forms import GGUF
from hetero.workers.models.gguf_header import parts, read_tensors
from hetero.workers.models.model import Model

_LEAST_VOCABULARY = 1024
_TOKENS_A_SECOND = 500  # that are written, as a bound for the disk; faster machines come to its end


def run(order: Order, out: Path, console: Console, stopped: Callable[[], bool]) -> Marks:
    """Make the drafter, or go on with it. ``stopped``: whether it is to end early, with the best so far. Raises
    HeteroError."""
    target = find_model(order.recipe.target, "target")
    _check(order, target)
    with _refused(out):
        making = Making(target, order, Workshop(out, order.recipe), console, stopped)
        making.shop.check_room(48 * _size(order, target) + (64 << 20) + _states(order, target))
        torch.set_num_threads(order.threads)
        if not licence_of(target.path):
            making.say(f"{target.name} names no licence: the drafter's card says so; look it up before you pass it on")
        write(making)
        marks = teach(making)
    if order.recipe.kind in HEADS:
        making.say("what a head would do here is not foreseen: `hetero bench drafts` measures it")
        return marks
    try:
        for line in foreseen(order.recipe.target, out / "drafter.gguf", making.say) if order.foresee else ():
            making.say(line)
    except HeteroError as error:
        making.say(f"what the pair would do here cannot be foreseen: {error}")
    return marks


def foreseen(target: str, draft: Path, say: Callable[[str], None]) -> list[str]:
    """What the fastest plan with this pair would do on this machine, beside plain decoding. Raises HeteroError."""
    config, inventory = make_config({"target": target, "draft": str(draft), "strategy": "auto"}), take_inventory()
    return verdict(Ranker(config, inventory, planner_of(config, inventory, say), say).rank())


def _check(order: Order, target: Model) -> None:
    """Raises HeteroError for what cannot be made, before anything is."""
    recipe, asked = order.recipe, f"target: {order.recipe.target}"
    if target.form != GGUF or len(parts(target.path)) > 1:
        raise ConfigError(f"{asked} is no whole GGUF file, which is what drafters are made of so far")
    family = target.metadata.family
    if family not in FAMILIES or target.metadata.experts:
        kind = f"a mixture of experts ({family})" if target.metadata.experts else f"a {family} model"
        raise ConfigError(f"{asked} is {kind}: drafters are made of {', '.join(FAMILIES)} so far")
    if target.metadata.scaling or "rope_freqs.weight" in read_tensors(target.path):
        raise ConfigError(f"{asked} stretches its rotary frequencies, which is not learned with yet")
    layers_of(recipe, target.shape.layers)
    if recipe.kind in HEADS:
        states, told = head_states(recipe.kind, target.shape.layers), target.metadata
        if order.engine and not find_engine(order.engine).hands_out(told, states):
            able = ", ".join(entry.name for entry in handing_out(GGUF, told, states))
            raise ConfigError(
                f"engine: {order.engine} hands out no hidden states, which a head learns from: take {able}"
            )
    if recipe.loss not in DIVERGENCES:
        raise ConfigError(f"loss: {recipe.loss!r} is unknown: choose {', '.join(DIVERGENCES)}")
    if 0 < recipe.vocabulary < _LEAST_VOCABULARY:
        raise ConfigError(
            f"vocabulary: {recipe.vocabulary} tokens are too few: {_LEAST_VOCABULARY} at least, or 0 for all"
        )
    # Its weights in float32, once read and once copied, and the student's four times (gradients, two moments).
    needed, free = 8 * target.shape.parameters + 16 * _size(order, target), psutil.virtual_memory().available
    if recipe.kind in HEADS:  # the engine beside it, and the embedding by itself
        needed += target.shape.weights + 4 * target.shape.vocabulary * target.metadata.width
    if needed > free:
        raise MemoryShortage(
            f"target: making a drafter of {target.name} takes about {needed / 2**30:.1f} GiB of memory, "
            f"{free / 2**30:.1f} are free: do it on a larger machine, the drafter runs here"
        )


def _states(order: Order, target: Model) -> int:
    """Bytes of the states a head learns from, about: of as many tokens as are written in the time."""
    recipe = order.recipe
    if recipe.kind not in HEADS:
        return 0
    width = target.metadata.width * len(head_states(recipe.kind, target.shape.layers))
    return int(2 * width * _TOKENS_A_SECOND * 60 * WRITING * order.minutes)


def _size(order: Order, target: Model) -> int:
    """Weights of the student, at most."""
    shape, recipe = target.shape, order.recipe
    tokens = recipe.vocabulary or shape.vocabulary
    layers = len(layers_of(recipe, shape.layers))
    return shape.parameters * layers // shape.layers + 2 * tokens * target.metadata.width


@contextmanager
def _refused(out: Path) -> Iterator[None]:
    """Tell in a line of a disk that refuses; torch and safetensors have errors of their own for it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "write" not in str(error):
            raise
        why = error
    else:
        return
    raise ModelError(f"out: {out}: {why}: make room there; the same line goes on")
