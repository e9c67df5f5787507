"""From settings to a plan: which engine on which device, with which strategy; everything checked beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import msgspec

from hetero.config import Config, port_range
from hetero.errors import ConfigError
from hetero.models import drafter_of, find_model
from hetero.placement.device import Device, Gpu, Inventory, check_device, default_devices, parse_device
from hetero.placement.memory import footprint, kv_bytes
from hetero.placement.nodes import TARGET, Node, drafter_node, find_node, returned, target_node
from hetero.planning.engine_settings import gamma_of, gpu_layers_of, kv_cache_of
from hetero.planning.fastest import Fastest
from hetero.planning.fitting import check_fit, fitting, free_memory
from hetero.planning.heads import check_hands_out, states_for
from hetero.planning.plan import Placement, Plan
from hetero.planning.replicas import device_of, other_machines, shares_of
from hetero.planning.sharing import check_learns, check_shared, copies, footprint_of, state_bytes
from hetero.planning.vocabularies import spoken
from hetero.workers.decoding.policy.strategy import AUTO, NAMES
from hetero.workers.engines.registry import ENGINES, default_engine, find_engine, handing_out, torch_dtype
from hetero.workers.models.model import Model
from hetero.workers.runtime.spec import WorkerSpec

_WORKER_PORTS = "20000-20009"  # for other machines; as cluster.yaml tells firewalls
_WINDOW = 4  # rows a target checks at once, about: those its engine is chosen for


def make_plan(config: Config, inventory: Inventory, nodes: Sequence[Node] = ()) -> Plan:
    """The plan of a Config on this machine, or on the ``nodes`` of a cluster. Raises HeteroError, one line, before
    weights load."""
    return Planner(config, inventory).plan(nodes)


def planner_of(config: Config, inventory: Inventory, say: Callable[[str], None], measure: bool = True) -> Planner:
    """One that takes the fastest engine wherever none is named; ``say`` is told what takes its time; ``measure``:
    whether an engine may be tried for that. Raises HeteroError."""
    return Planner(config, inventory, Fastest(inventory.memory, config.weights, config.kv_cache, say, measure))


class Planner:
    """Plans for one Config, as machines come and go."""

    def __init__(self, config: Config, inventory: Inventory, fastest: Fastest | None = None) -> None:
        """Reads the models' metadata. ``fastest`` chooses engines on this machine's CPU that nobody named (None: the
        first that runs). Raises HeteroError."""
        self._inventory, self._fastest = inventory, fastest
        self._target = find_model(config.target, "target")
        asked = drafter_of(config.target, config.draft)
        drafts = asked != "none" and config.strategy != "off"
        self._drafter = find_model(asked, "drafter", self._target) if drafts else None
        self._speaks = spoken(self._target, self._drafter) if self._drafter is not None else ""
        asked_too = config.also_draft if config.strategy != "off" else []
        self._others = [_other(text, self._target) for text in asked_too]
        if (self._others or config.adapt) and self._drafter is None:
            field, fix = (
                ("also_draft", "go beside a first one") if self._others else ("adapt", "learn while they serve")
            )
            fix += ", which --draft names" if config.strategy != "off" else ": leave out --strategy off"
            raise ConfigError(f"{field}: drafters {fix}")
        models = [model for model in (self._drafter, *(model for model, _, _ in self._others)) if model is not None]
        self._states = states_for(self._target, models)
        self._beside: Placement | None = None  # the drafter's place beside the target, where the plan had it there
        self.foreseen: tuple[dict[str, object], ...] = ()  # the plans this one's was chosen from
        self._settle(config)

    def _settle(self, config: Config) -> None:
        """Take the settings, apart from the models. Raises HeteroError."""
        self._config = config
        self._strategy = _strategy(config, self._drafter)
        self._context = config.context or self._target.context
        if self._context > self._target.context:
            raise ConfigError(
                f"context: {self._context} exceeds the {self._target.context} tokens {self._target.name} was made for"
            )
        self._named = tuple(
            parse_device(name) if name else None for name in (config.target_device, config.draft_device)
        )

    @property
    def drafting(self) -> bool:
        """Whether there is a drafter to place."""
        return self._drafter is not None

    def but(self, **changes: object) -> Planner:
        """One of the same models with some settings changed; strategy "off": without a drafter. Raises HeteroError."""
        found = copy(self)
        if changes.get("strategy") == "off":
            found._drafter, found._others, found._states = None, [], []
        found._settle(msgspec.structs.replace(self._config, **changes))
        return found

    def plan(self, nodes: Sequence[Node] = (), fits: bool = True) -> Plan:
        """The plan on these machines; ``fits``: its memory is checked. Raises HeteroError."""
        target_at = self._target_at(nodes)
        drafter_at = self._drafter_at(nodes, target_at) if self._drafter is not None else None
        awaited = self.awaited if nodes and self._drafter is not None and drafter_at is None else ""
        devices = self._devices([target_at, drafter_at], self._drafter is not None and not awaited)
        targets = self._place_targets(nodes, target_at, drafter_at, devices)
        target = targets[0]
        drafter = self._place_drafter(drafter_at, devices[1], target) if self._drafter and not awaited else None
        others = tuple(self._place_other(n, *other, target) for n, other in enumerate(self._others, 1))
        placements = [*targets, *([drafter] if drafter else []), *others]
        free = free_memory(self._inventory, nodes)
        if not self._config.context and (tokens := fitting(placements, self._context, free)) < self._context:
            self._context = tokens
            return self.plan(nodes, fits)
        if fits:
            check_fit(placements, free)
        alone = drafter is not None and target_at is not None and target_at == drafter_at and self._named[1] is None
        self._beside = drafter if alone else None
        name = self._config.alias or self._target.name
        cut = not self._config.context and self._context < self._target.context
        return Plan(
            target, drafter, self._strategy, name, self._context, awaited, alone, cut, self.foreseen, others,
            tuple(targets[1:]),
        )  # fmt: skip

    def target_again(self, last: Placement, nodes: Sequence[Node]) -> Placement | None:
        """Where the target goes on that was placed so last: None while its machine is not there."""
        if last.node is None:
            return last
        node = returned(nodes, last.node, TARGET)
        return None if node is None else self._place_target(node, last.device, last)

    def drafter_again(self, last: Placement | None, target: Placement, nodes: Sequence[Node]) -> Placement | None:
        """Where the drafter of a target placed so should run now: None while no machine for it is there. Raises
        HeteroError where it does not fit there."""
        if target.node is None:
            return last
        before = last.node.id if last is not None and last.node is not None else ""
        shares = before == target.node.id  # beside the target, until there is a better place
        stays = next((node for node in nodes if node.id == before and not shares), None)
        node = stays or self._drafter_at(nodes, target.node)
        if self._named[1] is None and not shares and (node is None or node.id == target.node.id):
            return self._beside  # if it was there at first: else the target has its machine's cores to itself
        if node is None or node.id == before:
            return last if node is not None else None
        drafter = self._place_drafter(node, self._devices([target.node, node], True)[1], target)
        check_fit([drafter], free_memory(self._inventory, nodes))
        return drafter

    # Machines

    def _target_at(self, nodes: Sequence[Node]) -> Node | None:
        named = self._named[0]
        if not nodes:
            return find_node(nodes, named.node) if named is not None and named.node else None
        if named is None:
            return target_node(nodes)
        return find_node(nodes, named.node) if named.node else _here(nodes)

    def _drafter_at(self, nodes: Sequence[Node], target: Node | None) -> Node | None:
        """None: on this machine without a cluster, not there yet within one."""
        named = self._named[1]
        if target is None:
            return find_node(nodes, named.node) if named is not None and named.node else None
        if named is None:
            return drafter_node(nodes, target)
        return next((node for node in nodes if node.called(named.node)), None) if named.node else _here(nodes)

    @property
    def awaited(self) -> str:
        """The machine a drafter waits for that has none."""
        named = self._named[1]
        return f"a machine called {named.node}" if named is not None and named.node else "another machine"

    def _devices(self, where: Sequence[Node | None], drafting: bool) -> list[Device]:
        """A device for each role, on the machine it is on."""
        inventory = self._inventory
        named = self._named if drafting else (self._named[0], None)
        away = [node is not None and not node.here for node in where]
        # What the other role does not use of this machine is free for this one.
        alone = self._defaults(False)
        defaults = self._defaults(drafting) if away[0] == away[1] else (alone[0], alone[0])
        chosen = []
        for n, node in enumerate(where):
            device = named[n] or defaults[n]
            if node is not None and not node.here:
                # Another node's cores are its own affair: its worker says so if they are not there.
                chosen.append(replace(device, node=node.name) if named[n] else node.device())
            else:
                chosen.append(check_device(replace(device, node=None), inventory))
        if away[0] or away[1]:
            return chosen
        for mine, other in ((0, 1), (1, 0)):
            if drafting and named[other] and not named[mine] and chosen[0].is_cpu and chosen[1].is_cpu:
                # A role that was not placed by hand takes the cores the other one leaves.
                rest = inventory.topology.beside(chosen[other].indices)
                chosen[mine] = Device("cpu", rest or chosen[other].indices)
        return chosen

    def _defaults(self, drafting: bool) -> tuple[Device, Device]:
        """Where the roles go on this machine that nobody placed: on a GPU only where an engine of the model's can use
        it. (A GGUF target is not unpacked to 16 bits because llama.cpp was not built for the GPU.)"""
        needed = footprint(self._target.shape, self._config.parallel * self._context, 2, 128).total
        mine = replace(self._inventory, gpus=self._usable(self._target, self._target_engine))
        target, drafter = default_devices(mine, needed, drafting, self._shared_by)
        if drafting and self._drafter is not None:
            usable = self._usable(self._drafter, self._config.draft_engine)
            theirs = [gpu.device for gpu in usable if gpu.device != target]
            if target.is_cpu and theirs:
                return Device("cpu", self._inventory.topology.fast), theirs[0]
            if not drafter.is_cpu and drafter not in theirs:
                drafter = Device("cpu", self._inventory.topology.fast)
        return target, drafter

    @property
    def _target_engine(self) -> str:
        """What was named. Raises ConfigError where it does not hand out the states a head needs."""
        named = self._config.target_engine
        if named and self._states:
            check_hands_out(self._target, self._states, find_engine(named, "target_engine"))
        return named

    def _shared_by(self, count: int) -> bool:
        """Whether so many GPUs can share the target: llama.cpp's any, torch's its heads of keys."""
        named = ENGINES.get(self._config.target_engine)
        able = handing_out(self._target.form, self._target.metadata, self._states)
        if any(entry.splits and named in (None, entry) for entry in able):
            return True
        # (States for a head are handed out by one rank.)
        return not self._states and not self._config.exact and self._target.shape.kv_heads % count == 0

    def _usable(self, model: Model, engine: str) -> tuple[Gpu, ...]:
        """The GPUs of this machine that an engine, or the usual one, can run a model on."""
        form = model.form
        usual = next(entry for entry in ENGINES.values() if form in entry.formats and entry.gpus)
        entry = ENGINES.get(engine, usual)
        return tuple(gpu for gpu in self._inventory.gpus if entry.objection(gpu.kind, here=True) is None)

    # Workers

    def _place_targets(
        self, nodes: Sequence[Node], at: Node | None, drafter_at: Node | None, devices: Sequence[Device]
    ) -> list[Placement]:
        """One of each verifier; all have the engine of the first, so that their texts are the same."""
        count = self._config.verifiers
        if at is not None:
            first = self._place_target(at, devices[0])
            others = other_machines(nodes, at, drafter_at, count) if count > 1 else []
            places = [(node, device_of(node, first.spec.engine)) for node in others]
            return [first, *(self._place_target(*place, first, n) for n, place in enumerate(places, 1))]
        mine = devices[1:] if self._drafter is not None else ()
        taken = [*mine, *(device for _, device, _ in self._others)]
        shares = shares_of(devices[0], count, self._inventory, taken)
        first = self._place_target(None, shares[0])
        return [first, *(self._place_target(None, share, first, n) for n, share in enumerate(shares[1:], 1))]

    def _place_target(
        self, node: Node | None, device: Device, like: Placement | None = None, index: int | None = None
    ) -> Placement:
        """``like``: what it was placed as before, or another verifier of it."""
        config = self._config
        own: dict[str, object] = {"context": self._context}
        own["index"] = index if index is not None else like.spec.index if like is not None else 0
        engine = like.spec.engine if like is not None else self._target_engine
        if node is not None and (not node.here or self._may_be_away()):
            own |= {"host": node.address, "ports": port_range(config.worker_ports or _WORKER_PORTS)}
        return self._place("target", engine, self._target, device, config.exact, node, own)

    def _place_drafter(self, node: Node | None, device: Device, target: Placement) -> Placement:
        assert self._drafter is not None
        own: dict[str, object] = {"context": min(self._context, self._drafter.context)}
        own |= {"host": target.spec.host, "ports": target.spec.ports, "vocabulary": self._speaks}
        if self._speaks and node is not None and not node.here:
            which = "is a head of" if self._drafter.head is not None else "has other tokens than"
            raise ConfigError(f"draft: {self._drafter.name} {which} {self._target.name}: such a drafter runs on this "
                              "machine only, name a --draft-device here")  # fmt: skip
        return self._place("drafter", self._config.draft_engine, self._drafter, device, False, node, own)

    def _place_other(self, index: int, model: Model, device: Device, speaks: str, target: Placement) -> Placement:
        """A further drafter, on this machine."""
        node = target.node if target.node is not None and target.node.here else None
        if target.node is not None and node is None:
            raise ConfigError("also_draft: further drafters run on this machine, and the target does not")
        own: dict[str, object] = {"context": min(self._context, model.context), "index": index, "vocabulary": speaks}
        own |= {"host": target.spec.host, "ports": target.spec.ports}
        return self._place("drafter", "", model, check_device(device, self._inventory), False, node, own)

    def _may_be_away(self) -> bool:
        """Whether the drafter of a cluster may be, or come to be, on another machine than this one."""
        named = self._named[1]
        return self._drafter is not None and (named is None or bool(named.node))

    def _place(
        self,
        role: str,
        engine: str,
        model: Model,
        device: Device,
        exact: bool,
        node: Node | None,
        own: dict[str, object],
    ) -> Placement:
        """One role on its device."""
        config = self._config
        field = "target_engine" if role == "target" else "draft_engine"
        form, here = model.form, device.node is None
        first, states = role == "drafter" and "index" not in own, self._states if role == "target" else []
        learns = first and config.adapt
        group = config.draft_group if first else 1
        asked = config.draft_ranks if first else config.target_ranks if role == "target" else 1
        if engine:
            chosen = find_engine(engine, field)
        elif group > 1 or asked > 1 or (learns and model.head is None):
            chosen = next(entry for entry in ENGINES.values() if entry.layer_parallel)
        elif self._fastest is not None and here and device.is_cpu and not exact:
            # (Exact texts are one engine's: which it is must not hang on what was measured, nor on the strategy.)
            rows = 1 if role == "drafter" or self._strategy == "off" else _WINDOW
            chosen = self._fastest(model, device, rows, states)
        else:  # other machines are taken to be installed alike
            chosen = default_engine(form, device.kind, model.metadata, states)
        if form not in chosen.formats:
            runs = ", ".join(chosen.formats)
            fix = "leave out --draft-engine, --draft-group and --draft-ranks" if model.head else "use torch"
            raise ConfigError(f"{field}: {chosen.name} runs {runs}; {model.path} is {form}: {fix}")
        if (reason := chosen.objection(device.kind, here)) is not None:
            raise ConfigError(f"{field}: {reason}")
        check_hands_out(model, states, chosen)
        ranks = len(device.gpus) if asked == 1 and chosen.layer_parallel and device.gpus else asked
        check_shared(role, group, ranks, chosen, model, device, exact)
        if learns:
            check_learns(chosen, model, group, ranks, str(own["vocabulary"]))
        if states and ranks > 1:
            raise ConfigError("draft: a head drafts from the states of a target on one device: name one, without ranks")
        layers = gpu_layers_of(config, role, self._target, chosen, device)
        shared = self._inventory.topology.fast if layers >= 0 and here else ()
        dtype = torch_dtype(device.kind, exact)
        kept = kv_cache_of(config, role, model, chosen)
        cell = kv_bytes(model.shape, chosen.kv_width(dtype, kept)) + state_bytes(model, states)
        spec = WorkerSpec(
            role=role,  # type: ignore[arg-type]
            model=str(model.path.resolve()),
            engine=chosen.name,
            strategy=self._strategy,
            gamma=gamma_of(config),
            sequences=config.parallel * (config.verifiers if role == "drafter" else 1),
            secure=True,  # other users of this machine can reach its loopback, too
            lookup=config.lookup and role == "target",
            past=config.lookup_past,
            features=states,
            learns=learns,
            trace=str(Path(config.trace).resolve()) if config.trace else "",
            cores=list(device.indices if device.is_cpu else shared),
            gpu_layers=layers,
            gpus=[] if device.is_cpu else list(device.indices),
            kind="cuda" if device.is_cpu else device.kind,  # type: ignore[arg-type]
            dtype=dtype,
            weights=config.weights,
            kv_cache=kept,
            group=group,
            ranks=ranks,
            exact=exact,
            cached=(config.prefix_cache << 20) // cell // copies(role, ranks),
            **{"ports": port_range(config.worker_ports), **own},  # type: ignore[arg-type]
        )
        free = [gpu.free for gpu in self._inventory.gpus if gpu.device in device.gpus]
        split = chosen.splits and len(device.gpus) > 1 and here and min(free, default=0) > 0  # as llama.cpp does
        shares = tuple(each / sum(free) for each in free) if split else ()
        return Placement(device, model, spec, footprint_of(model, spec), node, shares)


def _other(text: str, target: Model) -> tuple[Model, Device, str]:
    """A further drafter, MODEL@DEVICE: the model, the device, and whose tokens it is asked in. Raises HeteroError."""
    name, at, where = text.rpartition("@")
    device = parse_device(where) if at and name else None
    if device is None or device.node:
        raise ConfigError(f"also_draft: {text!r}: write MODEL@DEVICE, a device of this machine")
    model = find_model(name, "drafter", target)
    return model, device, spoken(target, model)


def _here(nodes: Sequence[Node]) -> Node | None:
    return next((node for node in nodes if node.here), None)


def _strategy(config: Config, drafter: Model | None) -> str:
    name = config.strategy if config.strategy not in ("", AUTO) else "ahead" if drafter is not None else "off"
    if name not in NAMES:
        raise ConfigError(f"strategy: {name!r} is unknown: choose {', '.join((AUTO, *NAMES))}")
    if name != "off" and drafter is None:
        raise ConfigError(f"strategy: {name!r} needs a drafter: name one with --draft, or choose --strategy off")
    return name
