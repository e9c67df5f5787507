"""An engine on several devices: what can share a model, and what memory that takes."""

from __future__ import annotations

from collections.abc import Sequence

from hetero.errors import ConfigError
from hetero.placement.device import Device
from hetero.placement.memory import Footprint, footprint
from hetero.workers.engines.registry import ENGINES, EngineEntry, find_engine
from hetero.workers.models.model import Model
from hetero.workers.runtime.spec import WorkerSpec


def check_shared(
    role: str, group: int, ranks: int, engine: EngineEntry, model: Model, device: Device, exact: bool
) -> None:
    """Raises ConfigError where an engine cannot run layers in parallel, or not on so many ranks."""
    field = "draft_group" if group > 1 else f"{'draft' if role == 'drafter' else 'target'}_ranks"
    if group == ranks == 1:
        return
    if not engine.layer_parallel:
        able = ", ".join(entry.name for entry in ENGINES.values() if entry.layer_parallel)
        flag = "target" if role == "target" else "draft"
        raise ConfigError(f"{field}: {engine.name} runs on one device, layer by layer: take --{flag}-engine {able}")
    field = f"{'draft' if role == 'drafter' else 'target'}_ranks"
    if device.gpus and ranks != len(device.gpus):
        raise ConfigError(
            f"{field}: each rank has a GPU of its own: {ranks} ranks, and {device} names {len(device.gpus)}"
        )
    if role == "target" and ranks > 1 and exact:
        raise ConfigError("target_ranks: exact mode of torch runs on one rank, and one GPU: --no-exact, or one of each")
    if role == "target" and model.shape.kv_heads % ranks:
        heads = model.shape.kv_heads
        raise ConfigError(f"target_ranks: {model.name} has {heads} heads of keys, which {ranks} ranks cannot share: "
                          "take another number, or a GGUF file on llama_cpp, which splits by layers")  # fmt: skip


def check_learns(engine: EngineEntry, model: Model, group: int, ranks: int, speaks: str) -> None:
    """Raises ConfigError where a drafter cannot go on learning while it serves. ``speaks``: whose tokens it is asked
    in, where they are not its own."""
    able = ", ".join(entry.name for entry in ENGINES.values() if entry.learns)
    if model.head is not None or speaks:
        what = "is a head" if model.head is not None else "has other tokens than its target"
        raise ConfigError(f"adapt: {model.name} {what}, and does not learn while it serves: leave out --adapt")
    if not engine.learns:
        raise ConfigError(f"adapt: {engine.name} runs models as they are: take --draft-engine {able}")
    if group > 1 or ranks > 1:
        raise ConfigError("adapt: a drafter learns on one device, layer by layer: --draft-group 1, one --draft-ranks")


def footprint_of(model: Model, spec: WorkerSpec) -> Footprint:
    """What a worker's model takes of its devices' memory, all together."""
    engine = find_engine(spec.engine)
    found = footprint(
        model.shape, spec.sequences * (spec.context + 128), engine.kv_width(spec.dtype, spec.kv_cache), 128
    )
    # Of a team that shares layers each rank has all weights (MLPs run everywhere) and room for all keys and values.
    count, weights = copies(spec.role, spec.ranks), engine.weight_bytes(model.shape, spec.dtype)
    if spec.learns:  # gradients, a copy and two moments in float32, and logits of a lesson with their gradients
        weights += 18 * model.shape.parameters + 128 * 12 * model.shape.vocabulary
    states = state_bytes(model, spec.features)  # that are kept for heads, and by a head of those it has heard
    states += 2 * 2 * model.head.features if model.head is not None else 0
    kept = states * spec.sequences * spec.context
    return Footprint(count * weights, count * found.kv, count * found.work + kept)


def state_bytes(model: Model, states: Sequence[int]) -> int:
    """What a token's hidden states take that are kept for heads."""
    return 2 * model.metadata.width * len(states)


def copies(role: str, ranks: int) -> int:
    """How often a role's model is in memory."""
    return ranks if role == "drafter" else 1
