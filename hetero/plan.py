"""From settings to a plan: which engine on which device, with which strategy; everything checked beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hetero.config import Config
from hetero.errors import ConfigError
from hetero.models import find_model
from hetero.placement.device import Device, Inventory, check_device, default_devices, parse_device
from hetero.placement.memory import Footprint, check_memory, footprint, kv_bytes
from hetero.placement.nodes import Node, choose_nodes, find_node
from hetero.workers.decoding.policy.strategy import NAMES
from hetero.workers.engines.registry import GGUF, SAFETENSORS, default_engine, find_engine
from hetero.workers.models.model import Model, check_vocabularies
from hetero.workers.runtime.spec import WorkerSpec

_MOST_CONTEXT = 8192  # by default; KV for a model's full 128k would fill a home machine
_EXACT_MOST = 7  # exact mode checks 8 rows a forward


@dataclass(frozen=True)
class Placement:
    """One role of the plan."""

    device: Device
    model: Model
    spec: WorkerSpec
    memory: Footprint
    node: str = ""  # Ray's id of it; "": this one


@dataclass(frozen=True)
class Plan:
    """Who does what where."""

    target: Placement
    drafter: Placement | None
    strategy: str
    name: str
    context: int


def make_plan(config: Config, inventory: Inventory, nodes: Sequence[Node] = ()) -> Plan:
    """The plan of a Config on this machine, or on the ``nodes`` of a cluster. Raises HeteroError, one line, before
    weights load."""
    target = find_model(config.target, "target")
    asked_draft = config.draft or ("builtin" if config.target == "builtin" else "none")
    drafter = None if asked_draft == "none" or config.strategy == "off" else find_model(asked_draft, "drafter")
    strategy = _strategy(config, drafter)
    if drafter is not None:
        check_vocabularies(target, drafter)
    # An engine whose rows are exact at any width needs no windows of a fixed one.
    asked_engine = find_engine(config.target_engine, "target_engine") if config.target_engine else None
    padded = config.exact and not (asked_engine is not None and asked_engine.always_exact)
    gamma = min(config.gamma, _EXACT_MOST) if padded else config.gamma
    context = config.context or min(target.context, _MOST_CONTEXT)
    if context > target.context:
        raise ConfigError(f"context: {context} exceeds the {target.context} tokens {target.name} was made for")
    needed = footprint(target.shape, config.parallel * context, 2, 128).total
    where = _nodes(config, nodes, drafter is not None)
    devices = _devices(config, inventory, needed, drafter is not None, where)
    trace = str(Path(config.trace).resolve()) if config.trace else ""
    common: dict[str, object] = {
        "trace": trace,
        "strategy": strategy,
        "gamma": gamma,
        "sequences": config.parallel,
        "context": context,
        "ports": _ports(config.worker_ports),
    }
    if any(node is not None and not node.here for node in where):
        assert where[0] is not None
        common |= {"host": where[0].address, "secure": True}
    one = _place("target", config.target_engine, target, devices[0], config.exact, config.prefix_cache, common)
    two = None
    if drafter is not None:
        own = {**common, "context": min(context, drafter.context)}
        two = _place("drafter", config.draft_engine, drafter, devices[1], False, config.prefix_cache, own)
    one = replace(one, node=where[0].id if where[0] is not None else "")
    if two is not None:
        two = replace(two, node=where[1].id if where[1] is not None else "")
    _check_fit([one] + ([two] if two else []), inventory, nodes)
    return Plan(one, two, strategy, config.alias or target.name, context)


def _strategy(config: Config, drafter: Model | None) -> str:
    name = config.strategy or ("ahead" if drafter is not None else "off")
    if name not in NAMES:
        raise ConfigError(f"strategy: {name!r} is unknown: choose {', '.join(NAMES)}")
    if name != "off" and drafter is None:
        raise ConfigError(f"strategy: {name!r} needs a drafter: name one with --draft, or choose --strategy off")
    return name


def _nodes(config: Config, nodes: Sequence[Node], drafting: bool) -> list[Node | None]:
    """The node of each role; None without a cluster."""
    defaults: list[Node | None] = [None, None]
    if nodes:
        defaults = list(choose_nodes(nodes)) if drafting else [choose_nodes(nodes)[0]] * 2
    here = next((node for node in nodes if node.here), None)
    found = []
    for name, default in zip((config.target_device, config.draft_device), defaults, strict=True):
        asked = parse_device(name).node if name else None
        found.append(find_node(nodes, asked) if asked is not None else here if name else default)
    return found


def _ports(text: str) -> list[int]:
    first, dash, last = text.partition("-")
    if not text:
        return []
    if not (first.isdigit() and last.isdigit() and dash) or not 1024 <= int(first) <= int(last) <= 65535:
        raise ConfigError(f"worker_ports: {text!r} is not a range within 1024-65535, like 20000-20009")
    return [int(first), int(last)]


def _devices(
    config: Config, inventory: Inventory, weights: int, drafting: bool, where: Sequence[Node | None]
) -> tuple[Device, Device]:
    away = [node is not None and not node.here for node in where]
    # What the other role does not use of this machine is free for this one.
    alone = default_devices(inventory, weights, False)
    defaults = default_devices(inventory, weights, drafting) if away[0] == away[1] else (alone[0], alone[0])
    chosen = []
    for n, name in enumerate((config.target_device, config.draft_device)):
        device = parse_device(name) if name else defaults[n]
        node = where[n]
        if node is not None and not node.here:
            # Another node's cores are its own affair: its worker says so if they are not there.
            chosen.append(replace(device, node=node.name) if name else node.device())
        else:
            chosen.append(check_device(replace(device, node=None), inventory))
    if away[0] or away[1]:
        return chosen[0], chosen[1]
    named = (config.target_device, config.draft_device)
    for mine, other in ((0, 1), (1, 0)):
        if drafting and named[other] and not named[mine] and chosen[0].is_cpu and chosen[1].is_cpu:
            # A role that was not placed by hand takes the cores the other one leaves.
            rest = tuple(sorted(set(inventory.cores) - set(chosen[other].indices)))
            chosen[mine] = Device("cpu", rest or chosen[other].indices)
    return chosen[0], chosen[1]


def _place(
    role: str, engine: str, model: Model, device: Device, exact: bool, cache: int, common: dict[str, object]
) -> Placement:
    """One role on its device; ``cache``: MiB for prefixes."""
    field = "target_engine" if role == "target" else "draft_engine"
    form, here = GGUF if model.is_gguf else SAFETENSORS, device.node is None
    chosen = (
        find_engine(engine, field) if engine else default_engine(form, device.kind)
    )  # other machines are taken to be installed alike
    if form not in chosen.formats:
        runs = ", ".join(chosen.formats)
        raise ConfigError(f"{field}: {chosen.name} runs {runs}; {model.path} is {form}: use torch")
    if (reason := chosen.objection(device.kind, here)) is not None:
        raise ConfigError(f"{field}: {reason}")
    dtype = torch_dtype(device, exact)
    cell = kv_bytes(model.shape, chosen.kv_width(dtype))
    spec = WorkerSpec(
        role=role,  # type: ignore[arg-type]
        model=str(model.path.resolve()),
        engine=chosen.name,
        cores=list(device.indices) if device.is_cpu else [],
        gpu=None if device.is_cpu else device.indices[0],
        kind="cuda" if device.is_cpu else device.kind,  # type: ignore[arg-type]
        dtype=dtype,
        exact=exact,
        cached=(cache << 20) // cell,
        **common,  # type: ignore[arg-type]
    )
    return Placement(device, model, spec, _footprint(model, spec))


def torch_dtype(device: Device, exact: bool) -> str:
    """What the torch engine computes in on a device."""
    return "float32" if device.is_cpu or exact else "float16" if device.kind == "mps" else "bfloat16"


def _footprint(model: Model, spec: WorkerSpec) -> Footprint:
    engine = find_engine(spec.engine)
    found = footprint(model.shape, spec.sequences * (spec.context + 128), engine.kv_width(spec.dtype), 128)
    return replace(found, weights=engine.weight_bytes(model.shape, spec.dtype))


def _check_fit(placements: list[Placement], inventory: Inventory, nodes: Sequence[Node]) -> None:
    """The drafter counts in the fit too (llama.cpp issue 28172)."""
    by_device: dict[str, list[Placement]] = {}
    for placement in placements:
        key = str(replace(placement.device, indices=()) if placement.device.is_cpu else placement.device)
        by_device.setdefault(key, []).append(placement)
    # Where a driver does not tell what is free (0), the worker will.
    free = {str(gpu.device): gpu.free for gpu in inventory.gpus if gpu.free} | {"cpu": inventory.memory}
    free |= {f"{node.name}/cpu": node.memory for node in nodes if not node.here and node.memory}
    for key, own in by_device.items():
        if key not in free:  # a GPU of another node: its worker says so if it is too small
            continue
        what = " and ".join(f"{p.spec.role} {p.model.name}" for p in own)
        check_memory(f"{what} on {key}", sum(p.memory.total for p in own), free[key])
