"""All plans for two models on this machine, the fastest first: what each would do, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from hetero.config import Config
from hetero.data import HELD_OUT
from hetero.errors import ConfigError, HeteroError
from hetero.placement.agreement import Agreement, assumed
from hetero.placement.candidates import Candidate, candidates
from hetero.placement.device import Gpu, Inventory
from hetero.planning.estimates import Estimates
from hetero.planning.plan import Placement, Plan
from hetero.planning.planner import Planner
from hetero.planning.profiles import Profiles, agreement_of, profile_of
from hetero.workers.decoding.policy.strategy import AUTO
from hetero.workers.runtime.trial import Company, Trial
from hetero.workers.simulation.forecast import Duet, Forecast, Play

_ALPHA = 0.7  # assumed where two models cannot be asked
_TOKENS, _TEXT = 500, 400  # of a forecast; of the text the models are asked about
_PROMPT = 512  # tokens, whose time is reported
_DEPTH = 256  # tokens in the target's cache
SHELL = 4e-4  # seconds that a forward costs in a worker beside the engine's: messages, tree, walk
_LINK = 1.5e-4  # seconds one way between two processes of a machine
_BUSY = 0.9  # a device that works for more of its time is what limits a plan


@dataclass(frozen=True)
class Entry:
    """A plan with what it would do. ``together``: tokens a second of ``streams`` at once; ``first``: seconds to the
    first token of a prompt of 512; ``load``: seconds until both are loaded; ``share`` of the verifier bound; ``limit``:
    what holds it back; ``duet``: what was foreseen of it."""

    candidate: Candidate
    plan: Plan
    forecast: Forecast
    together: float
    streams: int
    first: float
    load: float
    share: float
    limit: str
    duet: Duet

    @property
    def rate(self) -> float:
        """Tokens a second of one stream."""
        return self.forecast.rate


@dataclass(frozen=True)
class Ranking:
    """``entries``: the fastest first; ``rejected``: what cannot be, with the reason."""

    entries: tuple[Entry, ...]
    rejected: tuple[tuple[str, str], ...]
    agreement: Agreement


class Ranker:
    """Ranks the plans that a Config leaves open. ``say`` is told what takes its time."""

    def __init__(
        self, config: Config, inventory: Inventory, planner: Planner, say: Callable[[str], None], dry: bool = False
    ) -> None:
        """``dry``: nothing is tried, costs are estimates. Raises HeteroError."""
        if config.verifiers > 1:
            raise ConfigError("verifiers: plans are foreseen for one: leave it out, or name a strategy other than auto")
        self._config, self._inventory, self._planner = config, inventory, planner
        self._base = planner.plan(fits=False)  # what does not fit so may fit otherwise
        text = HELD_OUT.read_text()[60_000:80_000]
        gpus = {str(gpu.device): gpu.name for gpu in inventory.gpus}
        tokens = self._base.target.model.tokenizer.encode(text)[:_TEXT]
        self._costs = Estimates(len(inventory.topology.fast)) if dry else Profiles(self._base.target, tokens, gpus, say)
        self._agreement: Agreement | None = None

    def rank(self) -> Ranking:
        """All plans. Raises HeteroError where there is none."""
        entries: list[Entry] = []
        rejected: list[tuple[str, str]] = []
        for candidate in self._open():
            try:
                entries.append(self._entry(candidate))
            except HeteroError as error:
                rejected.append((str(candidate), str(error)))
        if not entries:
            raise ConfigError(rejected[0][1] if rejected else "strategy: no plan is left by these settings")
        entries.sort(key=lambda entry: (-entry.rate, entry.candidate.drafter is not None))
        return Ranking(tuple(entries), tuple(rejected), self._agreement or assumed(_ALPHA))

    def _open(self) -> list[Candidate]:
        """What the user's settings leave open."""
        config, base = self._config, self._base
        found = list(candidates(self._inventory, self._planner.drafting, self._layers))
        if config.target_device or config.draft_device:
            kinds = dict.fromkeys((c.strategy, c.gamma) for c in found if c.drafter is not None)
            device, layers = base.target.device, base.target.spec.gpu_layers
            found = [Candidate(device, None, "off", 0, layers)]
            if base.drafter is not None:
                pairs = [Candidate(device, base.drafter.device, *kind, layers) for kind in kinds]
                found += [pair for pair in pairs if pair.strategy == "serial" or pair.overlaps]
        if config.gamma:
            found = list(dict.fromkeys(replace(c, gamma=config.gamma) for c in found))
        if config.strategy not in ("", AUTO):
            if config.strategy == "mirror":
                raise ConfigError("strategy: mirror is not foreseen, it hangs on the target's early exit: measure it")
            found = [candidate for candidate in found if candidate.strategy == config.strategy]
        return found

    def _entry(self, candidate: Candidate) -> Entry:
        """Raises HeteroError where the plan cannot be."""
        plan = self.planner_of(candidate).plan()
        duet, trials = self._duet(candidate, plan)
        streams = self._config.parallel
        forecast = Play(duet, _TOKENS, seed=1).result()
        together = forecast
        if streams > 1:
            together = Play(duet, max(100, _TOKENS // streams), seed=2, streams=streams).result(5)
        prefill, load = trials[0].prefill, max(trial.load for trial in trials)
        first = _PROMPT / prefill if prefill else 0.0
        share, limit = forecast.rate / bound(duet), _limit(forecast, duet)
        return Entry(candidate, plan, forecast, together.rate, streams, first, load, share, limit, duet)

    def _layers(self, gpu: Gpu, beside: bool) -> int:
        """How many of the target's layers a GPU can hold, beside the drafter or not; -1: all, or it does not tell."""
        base, count = self._base, self._base.target.model.shape.layers
        taken = base.drafter.memory.total if beside and base.drafter is not None else 0
        memory = base.target.memory
        if gpu.kind == "mps":  # its memory is the CPU's
            return -1
        few = int(count * (gpu.free - taken - memory.work) / max(1, memory.weights + memory.kv))
        return few if gpu.free and few < count else -1

    def planner_of(self, candidate: Candidate) -> Planner:
        """Who plans a candidate. Raises HeteroError."""
        base = self._base
        changes: dict[str, object] = {"target_device": str(candidate.target), "strategy": candidate.strategy}
        if candidate.layers >= 0:
            changes["gpu_layers"] = candidate.layers
        if base.target.device.is_cpu and candidate.target.is_cpu and candidate.drafter is not None:
            changes["target_engine"] = base.target.spec.engine  # chosen for windows; alone another may be the fastest
        if candidate.drafter is not None:
            changes |= {"draft_device": str(candidate.drafter), "gamma": candidate.gamma}
            if base.drafter is not None and base.drafter.device.is_cpu and candidate.drafter.is_cpu:
                changes["draft_engine"] = base.drafter.spec.engine
        return self._planner.but(**changes)

    def _duet(self, candidate: Candidate, plan: Plan) -> tuple[Duet, list[Trial]]:
        """What is to be foreseen, and what was tried for it, of the target first."""
        target, drafter = self._tried(plan, "target"), None
        if plan.drafter is not None:
            drafter = self._tried(plan, "drafter")
            self._agreement = self._agreement or agreement_of(target, drafter)
            # A drafter that works all the time shares the memory with the target; of those that take turns each finds
            # the caches cold.
            if plan.target.device.is_cpu and plan.drafter.device.is_cpu:
                company: Company = "beside" if candidate.overlaps and candidate.strategy != "serial" else "turns"
                target = self._in_company(plan.target, plan.drafter, target, company)
                drafter = self._in_company(plan.drafter, plan.target, drafter, company)
        verify = profile_of(target, SHELL)
        draft = profile_of(drafter, SHELL) if drafter is not None else None
        duet = Duet(
            candidate.strategy,
            candidate.gamma,
            lambda rows: verify(rows, _DEPTH),
            draft,
            self._agreement or assumed(_ALPHA),
            _LINK,
            rows=target.rows,
            exact=target.exact,
            verify_look=verify.look,
            draft_look=draft.look if draft is not None else 0.0,
            calibrate=_flat(drafter.calibrate) if drafter is not None and drafter.calibrate else None,
        )
        return duet, [target] + ([drafter] if drafter is not None else [])

    def _tried(self, plan: Plan, role: str) -> Trial:
        placement = plan.target if role == "target" else plan.drafter
        assert placement is not None
        found = self._costs.of(placement)
        if found is None:
            engine, name = placement.spec.engine, placement.model.name
            raise ConfigError(f"{role}: {engine} does not run {name} here, or there is no estimate of it")
        return found

    def _in_company(self, one: Placement, other: Placement, alone: Trial, company: Company) -> Trial:
        """A trial in the company of the other role, else the one alone."""
        found = self._costs.of(one, other, company)
        if found is None:
            return alone
        return msgspec.structs.replace(alone, forward=found.forward, look=found.look, calibrate=found.calibrate)


def _flat(seconds: float) -> Callable[[int], float]:
    return lambda rows: seconds


def bound(duet: Duet) -> float:
    """The verifier bound: tokens a second that no chain of drafts can pass."""
    alpha = duet.agreement.alpha if duet.draft is not None else 0.0
    return max(sum(alpha**k for k in range(rows)) / duet.verify(rows) for rows in range(1, min(16, duet.rows) + 1))


def _limit(found: Forecast, duet: Duet) -> str:
    """What a plan waits for."""
    if duet.draft is None or found.verifier >= _BUSY:
        return "verifier"
    return "link" if 2 * duet.link > duet.draft(1) else "drafter"
