"""A plan at work: who does what where, and how fast it turned out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from hetero.planning.plan import Placement, Plan
from hetero.planning.reviser import Reviser
from hetero.workers.runtime.status import WorkerStatus


def running(
    plan: Plan, placements: Sequence[Placement], statuses: Mapping[str, WorkerStatus], reviser: Reviser | None = None
) -> dict[str, object]:
    """For programs: bytes, seconds, tokens a second. ``placements``: where the roles are now; ``foreseen``: the plans
    this one was chosen from, where it was, with what has been ``revised`` since."""
    roles = []
    for placement in placements:
        spec, status = placement.spec, statuses.get(placement.name)
        roles.append(
            {
                "role": placement.name,
                "device": str(placement.device),
                "engine": spec.engine,
                "model": placement.model.name,
                "memory_planned": placement.memory.total,
                "memory": status.memory if status is not None else None,
                "loaded_s": status.loaded_s if status is not None else None,
            }
        )
    target = next((status for status in statuses.values() if status.role == "target"), None)
    strategy, gamma = reviser.follows if reviser is not None else (plan.strategy, plan.target.spec.gamma)
    return {
        "strategy": strategy,
        "gamma": gamma,
        "context": plan.context,
        "parallel": plan.target.spec.sequences * len(plan.targets),
        "roles": roles,
        "measured": msgspec.to_builtins(target.speeds) if target is not None and target.speeds is not None else None,
        "drafters": msgspec.to_builtins(target.drafters) if target is not None else [],
        "foreseen": list(plan.foreseen),
        "revised": _revised(reviser) if reviser is not None else None,
    }


def _revised(reviser: Reviser) -> dict[str, object]:
    """Forwards in times of what was foreseen, and what follows from it."""
    found = reviser.measured
    return {
        "target_forward": round(found.target, 3),
        "drafter_forward": round(found.drafter, 3),
        "agreement": found.alpha,
        "streams": found.streams,
        "proposed": reviser.proposed,
    }
